"""Promises of spans.py: whole words of the text itself, the same whoever draws, in any script."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from miniature import make_corpus

from small_modernbert.data import labels
from small_modernbert.labelling.spans import LONGEST, SHORTEST, draw_span
from small_modernbert.labelling.teacher_labels import Labeller, Slices
from small_modernbert.labelling.teacher_reading import Reader
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.teachers import load_teacher
from small_modernbert.runs import stages

TEXTS = [
    " ".join(f"w{number:02}x{place:03}," for place in range(60 + number)) for number in range(40)
]


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


def test_labels_are_of_the_spans(
    tmp_path: Path, teacher_folder: Path, open_stage: Callable[..., stages.Stage]
) -> None:
    """Training texts are stored as the spans that the teacher read; held-out texts stay whole."""
    corpus = make_corpus(tmp_path / "corpus", {"train": TEXTS[:30], "held_out": TEXTS[30:]})
    reader = Reader(load_teacher(teacher_folder), Prompts())
    slices = dataclasses.replace(Slices.of(corpus, 8), span_share=0.5)
    with open_stage() as stage:
        labeller = Labeller(reader, slices, stage, lambda rows: None)
        labeller.label(labeller.fit(48, 0), "digest")
        stored = labels.open_labels(stage.building)
        train = list(stored.texts("train"))
        vectors = stored.vectors("train", labeller.scratch / "train")
        assert list(stored.texts("held_out")) == TEXTS[30:]
    assert train == [draw_span(text, 0.5) for text in TEXTS[:30]]
    assert train != TEXTS[:30]
    wanted = reader.teacher.encode(train, normalize_embeddings=True)
    np.testing.assert_allclose(np.asarray(vectors, dtype=np.float32), wanted, atol=2e-3)
