"""No text of an evaluation set may stand in a training file: the rule, and the counting.

Two texts are the same when their normalised words and signs are (case, Unicode form, punctuation
and white space folded, see `keys.tokens_of`): a question about C is none about C++. A training text
of 13 words or more also leaks when any 13 of its words in a row stand in an evaluation text,
whatever is written between them. What leaks leaves training, never evaluation.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from small_modernbert.data.keys import tokens_of, words_key, words_of
from small_modernbert.runs import storage

NGRAM_WORDS = 13
SAME_TEXT = "same text"
SAME_NGRAM = f"{NGRAM_WORDS} words in a row"


def ngrams_of(words: list[str]) -> Iterator[str]:
    """Yield every run of 13 words, joined by blanks; none for a shorter text."""
    for start in range(len(words) - NGRAM_WORDS + 1):
        yield " ".join(words[start : start + NGRAM_WORDS])


@dataclasses.dataclass(frozen=True)
class Leak:
    """Why a training text must go: the rule that it broke and the evaluation set it stands in."""

    rule: str
    evaluation_set: str

    def __str__(self) -> str:
        return f"{self.rule} as in {self.evaluation_set}"


class LeakFilter:
    """Finds training texts that stand in an evaluation set.

    Holds the evaluation texts only, as plain strings, so that a match is never an accident of
    hashing; memory does not grow with the training text that streams past.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._ngrams: dict[str, str] = {}

    def add(self, evaluation_set: str, texts: Iterable[str]) -> None:
        """Add the texts of one evaluation set; a text in two sets counts for the first."""
        for text in texts:
            words = words_of(text)
            if not words:
                continue
            self._texts.setdefault(" ".join(tokens_of(text)), evaluation_set)
            for ngram in ngrams_of(words):
                self._ngrams.setdefault(ngram, evaluation_set)

    def find(self, text: str) -> Leak | None:
        """Return why a training text must go, or None when it may stay."""
        words = words_of(text)
        if (name := self._texts.get(" ".join(tokens_of(text)))) is not None:
            return Leak(SAME_TEXT, name)
        for ngram in ngrams_of(words):
            if (name := self._ngrams.get(ngram)) is not None:
                return Leak(SAME_NGRAM, name)
        return None


def short_keys(path: Path) -> list[int]:
    """Return `words_key` of the texts of `write_filter` that have fewer than 13 words, ascending.

    Such a text may stand inside a longer training text that stays; its own words alone must not.
    """
    texts = storage.read_json(path, "run the same command again").values()
    short = (text for each in texts for text in each if len(words_of(text)) < NGRAM_WORDS)
    return sorted({words_key(text) for text in short})


def write_filter(path: Path, texts: Mapping[str, Iterable[str]]) -> None:
    """Write evaluation texts, by the name of their set, for `read_filter`."""
    storage.write_json(path, {name: list(some) for name, some in texts.items()})


def read_filter(path: Path) -> LeakFilter:
    """Return the filter of what `write_filter` wrote."""
    leaks = LeakFilter()
    for name, texts in storage.read_json(path, "run the same command again").items():
        leaks.add(name, texts)
    return leaks


class RowCounts:
    """Rows read, kept and dropped, per source and reason; what the tables and manifests show."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {}

    def drop(self, source: str, reason: str) -> None:
        """Count one row that was read and not kept."""
        self.dropped.setdefault(source, Counter())[reason] += 1

    def to_json(self) -> dict[str, dict[str, object]]:
        """Return {source: {read, kept, dropped: {reason: rows}}}; read = kept + all dropped."""
        return {
            source: {
                "read": self.read[source],
                "kept": self.kept[source],
                "dropped": dict(sorted(self.dropped.get(source, Counter()).items())),
            }
            for source in self.read
        }
