"""The sentence on a model's worth follows from paired differences, and never from few queries."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.evaluation import verdict
from small_modernbert.evaluation.benchmark import TEACHER, WORDS, Benchmark, Row
from small_modernbert.evaluation.rankings import Hits

ENGLISH = "the river and the town are on the map that was made of the north in the year of {}"
GERMAN = "der Fluss und die Stadt sind auf der Karte, die im Jahr {} vom Norden gemacht wurde"


def make(tmp_path: Path, number: int, text: str = ENGLISH, **found: float) -> Benchmark:
    """Return a benchmark whose rows find the answer of a share of the queries, at once.

    Beside the set of documents like `text` stands an English one, of which all find everything.
    """
    ids = [str(row) for row in range(number)]
    questions = RetrievalSet(
        name="mine",
        query_ids=[f"q{row}" for row in ids],
        queries=[f"query {row}" for row in ids],
        document_ids=ids,
        documents=[text.format(row) for row in ids],
        relevant={f"q{row}": {row: 1.0} for row in ids},
    )
    general = dataclasses.replace(
        questions, name="squad", documents=[ENGLISH.format(row) for row in ids]
    )
    made = Benchmark([questions, general], [], tmp_path, ([], []))
    everything = np.arange(number, dtype=np.int64)[:, None]
    for label, share in found.items():
        label = {"words": WORDS, "teacher": TEACHER, "both": f"student + {WORDS}"}.get(label, label)
        right = np.arange(number) < round(share * number)
        rows = np.where(right, np.arange(number), -1)[:, None].astype(np.int64)
        hits = Hits(rows, right[:, None].astype(np.float32))
        all_right = Hits(everything, np.ones_like(hits.scores))
        made._finish(Row(label, label), {"mine": hits, "squad": all_right})
    return made


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"student": 0.8, "teacher": 0.85, "words": 0.6, "both": 0.9}, "Yes: the model beside"),
        ({"student": 0.6, "teacher": 0.85, "words": 0.6, "both": 0.61}, "Not shown"),
        ({"student": 0.2, "teacher": 0.55, "words": 0.6, "both": 0.3}, "No: the model beside"),
        ({"student": 0.2, "teacher": 0.3, "words": 0.6, "both": 0.7}, "No: already the teacher"),
        ({"student": 0.8, "teacher": 0.85}, "no row of BM25"),
    ],
)
def test_the_answer(tmp_path: Path, found: dict[str, float], said: str) -> None:
    """Two standard errors decide; a teacher that cannot read the text is named first."""
    figures, answer, *_ = verdict.judge(make(tmp_path, 200, **found), "mine", "student")
    assert said in answer
    assert f"student {found['student']:.3f}" in figures
    assert "200 queries over 200 passages" in figures


def test_few_queries_tell_nothing(tmp_path: Path) -> None:
    """Whatever the figures are."""
    made = make(tmp_path, 20, student=1.0, teacher=1.0, words=0.1, both=1.0)
    assert "Nobody can tell" in verdict.judge(made, "mine", "student")[1]


def test_what_training_changed(tmp_path: Path) -> None:
    """The difference to the row before is given with its error."""
    made = make(tmp_path, 200, student=0.8, start=0.5)
    assert (
        "Training made it better on these documents: +0.300"
        in (verdict.judge(made, "mine", "student", before="start")[-1])
    )
    gain = verdict.compare(made, "mine", "student", "start")
    differences = np.repeat([1.0, 0.0], [60, 140])
    assert gain.error == pytest.approx(differences.std(ddof=1) / np.sqrt(200))

    unchanged = make(tmp_path / "kept", 200, student=0.8, start=0.8)
    assert "which was kept" in verdict.judge(unchanged, "mine", "student", before="start")[-1]


@pytest.mark.parametrize(
    ("text", "teacher", "said"),
    [
        (GERMAN, 0.59, "no more than plain word matching, -0.010 ± 0.007. It has 1.000 on"),
        (GERMAN, 0.3, "finds less"),
        (ENGLISH, 0.59, "no more than plain word matching, -0.010 ± 0.007."),
        (GERMAN, 0.9, ""),  # a teacher of many languages
    ],
)
def test_a_teacher_of_another_language(
    tmp_path: Path, text: str, teacher: float, said: str
) -> None:
    """Figures say so: those of the teacher beside words', and how common the common words are."""
    made = make(tmp_path, 200, text, student=0.3, teacher=teacher, words=0.6)
    doubt = " ".join(verdict.judge(made, "mine", "student")[2:])
    assert said in doubt
    assert bool(doubt) == bool(said)
    assert ("another language" in doubt) == (bool(said) and text == GERMAN)
