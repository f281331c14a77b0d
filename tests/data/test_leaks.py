"""The leak filter: what leaves training, what may stay, and what is counted."""

import time

import pytest

from small_modernbert.data.keys import words_of
from small_modernbert.data.leaks import (
    NGRAM_WORDS,
    SAME_NGRAM,
    SAME_TEXT,
    LeakFilter,
    RowCounts,
)

PASSAGE = (
    "Persian, also known by its endonym Farsi, is one of the Western Iranian languages within the "
    "Indo-Iranian branch of the Indo-European language family."
)


def make_filter(*texts: str) -> LeakFilter:
    """Return a filter that knows `texts` as the evaluation set "held"."""
    leaks = LeakFilter()
    leaks.add("held", texts)
    return leaks


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ("Is the sky blue?", "is the sky blue"),  # case and punctuation
        ("is  the\tsky\nblue", "is the sky blue"),  # white space
        ("the ﬁle is ＡＢＣ", "The file is abc"),  # compatibility forms: ligature, full width
        ("STRASSE nach Köln", "straße nach Ko\u0308ln"),  # case folding, combining marks
        ("he does n't know", "He does n’t know."),  # typographic apostrophe
        ("snake_case word", "snake case word"),  # the underscore is punctuation
    ],
)
def test_same_words_are_the_same_text(training: str, evaluation: str) -> None:
    """Spelling that carries no meaning does not hide a leak, whichever side it is on."""
    found = make_filter(evaluation).find(training)
    assert found is not None
    assert (found.rule, found.evaluation_set) == (SAME_TEXT, "held")
    assert make_filter(training).find(evaluation) is not None


def test_thirteen_words_in_a_row_leak_and_twelve_do_not() -> None:
    """The rule is 13: one word less in common stays, wherever in the text the run stands."""
    words = words_of(PASSAGE)
    leaks = make_filter(PASSAGE)
    for start in (0, 3, len(words) - NGRAM_WORDS):
        shared = " ".join(words[start : start + NGRAM_WORDS])
        found = leaks.find(f"Before it: {shared} and after.")
        assert found is not None and found.rule == SAME_NGRAM
        shorter = " ".join(words[start : start + NGRAM_WORDS - 1])
        assert leaks.find(f"before it came {shorter} zzz and more words after") is None


def test_short_texts_are_compared_as_a_whole_only() -> None:
    """A short question inside a longer training text, or the reverse, is no leak by the rule."""
    leaks = make_filter("is the sky blue")
    assert (
        leaks.find("my child asked: is the sky blue, and why is it not green at night then") is None
    )
    assert leaks.find("the sky") is None


def test_reordered_words_and_empty_texts_stay() -> None:
    """Only runs in the same order count, and a text without words matches nothing."""
    leaks = make_filter(PASSAGE, "", "?!")
    assert leaks.find(" ".join(reversed(words_of(PASSAGE)))) is None
    assert leaks.find("...") is None


def test_the_first_set_is_named() -> None:
    """A text of two evaluation sets is counted once, for the set that was added first."""
    leaks = make_filter(PASSAGE)
    leaks.add("later", [PASSAGE, "only later"])
    first, second = leaks.find(PASSAGE), leaks.find("Only later!")
    assert first is not None and first.evaluation_set == "held"
    assert second is not None and str(second) == "same text as in later"


def test_counts_add_up() -> None:
    """Every row read is either kept or stands under a reason."""
    counts = RowCounts()
    for number in range(10):
        counts.read["a"] += 1
        if number % 3:
            counts.kept["a"] += 1
        else:
            counts.drop("a", "empty" if number else "duplicate")
    found = counts.to_json()["a"]
    assert found == {"read": 10, "kept": 6, "dropped": {"duplicate": 1, "empty": 3}}


def test_filter_is_quick() -> None:
    """178,000 texts are a matter of seconds: no comparison of every text with every other."""
    leaks = make_filter(*(f"{PASSAGE} {number}" for number in range(2_000)))
    texts = [f"word{number} " * 27 for number in range(10_000)]
    begun = time.process_time()
    assert not any(leaks.find(text) for text in texts)
    assert time.process_time() - begun < 3.0
