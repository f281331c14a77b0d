"""Promises of spans.py: whole words of the text itself, the same whoever draws, in any script."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import regex
from miniature import make_corpus

from small_modernbert.data import labels
from small_modernbert.data.keys import words_key
from small_modernbert.labelling import lengths
from small_modernbert.labelling.spans import LONGEST, SHORTEST, draw_span
from small_modernbert.labelling.teacher_labels import Labeller, Slices
from small_modernbert.labelling.teacher_reading import Reader
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.teachers import load_teacher
from small_modernbert.runs import stages

TEXTS = [
    " ".join(f"w{number:02}x{place:03}," for place in range(60 + number)) for number in range(40)
]
HOBBIT = (
    "In a hole in the ground there lived a hobbit, not a nasty, dirty, wet hole, filled with the "
    "ends of worms and an oozy smell, nor yet a dry, bare, sandy hole with nothing in it to sit "
    "down on or to eat: it was a hobbit-hole, and that means comfort."
)


def test_span_is_a_run_of_whole_words() -> None:
    """A span stands in its text, begins and ends between words, and is drawn alike each time."""
    spans = [draw_span(text, 1.0) for text in TEXTS]
    assert spans == [draw_span(text, 1.0) for text in TEXTS]
    assert len({span[3:7] for span in spans}) > 20, "they begin at different places"
    for text, span in zip(TEXTS, spans, strict=True):
        words, own = text.split(), span.split()
        begin = words.index(own[0])
        assert words[begin : begin + len(own)] == own
        assert SHORTEST <= len(own) <= LONGEST


def test_share_of_the_texts_is_drawn() -> None:
    """No text at 0, about half of them at one half, and never one that is short."""
    assert [draw_span(text, 0.0) for text in TEXTS] == TEXTS
    changed = sum(draw_span(text, 0.5) != text for text in TEXTS)
    assert 10 < changed < 30
    assert draw_span("a short text", 1.0) == "a short text"


def test_a_script_without_spaces_has_words_too() -> None:
    """An ideograph is a word: a Chinese text is no single word that is left whole."""
    text = "今天天气很好我们去公园散步" * 12
    span = draw_span(text, 1.0)
    assert span in text
    assert SHORTEST <= len(span) <= LONGEST


@pytest.mark.parametrize(
    "text",
    [
        "e\u0301te\u0301 na\u0308ive Zu\u0308rich co\u0302te\u0301, " * 15,  # marks of their own
        "look \U0001f468\u200d\U0001f469\u200d\U0001f467 at \U0001f44d\U0001f3fd this " * 15,
        "הַיֶּלֶד הָלַךְ לְבֵית הַסֵּפֶר " * 15,
        "ประเทศไทยเป็นประเทศที่ตั้งอยู่ในภูมิภาคเอเชีย" * 3,
        "ប្រទេសកម្ពុជាជាប្រទេសមួយនៅអាស៊ី" * 5,  # consonants below consonants
    ],
)
def test_no_character_is_torn_apart(text: str) -> None:
    """A letter and its marks, an emoji and what it is joined to: in a span whole, or not at all."""
    for number in range(20):
        whole = f"{text} {number}"
        begins = {0, *(character.end() for character in regex.finditer(r"\X", whole))}
        span = draw_span(whole, 1.0)
        assert span != whole
        places = [place for place in begins if whole.startswith(span, place)]
        assert any(place + len(span) in begins for place in places)


def test_the_same_on_any_machine() -> None:
    """What is drawn follows from the text alone, not from Python's hashes or the platform."""
    assert draw_span(HOBBIT, 1.0) == (
        "with the ends of worms and an oozy smell, nor yet a dry, bare, sandy hole with nothing in "
        "it to sit down on or to eat: it was a"
    )
    assert draw_span(HOBBIT, 0.5) == HOBBIT


def test_a_span_is_no_text_that_is_kept_apart(tmp_path: Path) -> None:
    """Where a held-out text or a question of an evaluation set is drawn, the text stays whole."""
    spans = [draw_span(text, 1.0) for text in TEXTS]
    held_out, question = spans[3].upper(), spans[5].rstrip(",") + "?"
    corpus = make_corpus(
        tmp_path, {"train": TEXTS, "held_out": [held_out]}, kept_apart=[words_key(question)]
    )
    (read, _), *_ = Slices.of(corpus, len(TEXTS), 1.0).read("train")
    assert [row for row in range(len(TEXTS)) if read[row] == TEXTS[row]] == [3, 5]
    assert [read[row] for row in (0, 39)] == [spans[0], spans[39]]


def test_spans_are_not_longer_than_the_student_reads(
    tmp_path: Path, teacher_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Texts are counted as they are labelled: a long passage is no matter where a span is."""
    corpus = make_corpus(tmp_path, {"train": TEXTS, "held_out": TEXTS[:2]})
    reader = Reader(load_teacher(teacher_folder), Prompts())
    spans = Slices.of(corpus, 8, 1.0)
    assert lengths.compare(reader, spans, 0, LONGEST + 1)["longer_than_student"] == 2  # held out
    shorter = lengths.compare(reader, spans, 0, 20)["longer_than_student"]
    drawn = [draw_span(text, 1.0) for text in TEXTS]
    assert shorter == 2 + sum(len(span.split()) > 20 for span in drawn)
    whole = lengths.compare(reader, Slices.of(corpus, 8), 0, 20)
    assert whole["longer_than_student"] == len(TEXTS) + 2


def test_labels_are_of_the_spans(
    tmp_path: Path, teacher_folder: Path, open_stage: Callable[..., stages.Stage]
) -> None:
    """Training texts are stored as the spans that the teacher read; held-out texts stay whole."""
    corpus = make_corpus(tmp_path / "corpus", {"train": TEXTS[:30], "held_out": TEXTS[30:]})
    reader = Reader(load_teacher(teacher_folder), Prompts())
    slices = Slices.of(corpus, 8, 0.5)
    with open_stage() as stage:
        labeller = Labeller(reader, slices, stage, lambda rows: None)
        labeller.label(labeller.fit(48, 0), "digest")
        stored = labels.open_labels(stage.building)
        assert stored.index["span_share"] == 0.5
        train = list(stored.texts("train"))
        vectors = stored.vectors("train", labeller.scratch / "train")
        assert list(stored.texts("held_out")) == TEXTS[30:]
    assert train == [draw_span(text, 0.5) for text in TEXTS[:30]]
    assert train != TEXTS[:30]
    wanted = reader.teacher.encode(train, normalize_embeddings=True)
    np.testing.assert_allclose(np.asarray(vectors, dtype=np.float32), wanted, atol=2e-3)
