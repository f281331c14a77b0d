"""Whether a model is worth having on somebody's own documents: one set, said in sentences.

Differences are of the same queries under two rankings, so their error is that of the paired
differences; what is within two standard errors is called no difference.
"""

import dataclasses

import numpy as np

from small_modernbert.data import languages
from small_modernbert.data.own_sets import ENOUGH_QUERIES
from small_modernbert.evaluation.benchmark import TEACHER, WORDS, Benchmark, Row

LOST = 0.8  # a teacher that has less than this share of word matching's nDCG does not know the text


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more one row finds than another on the same queries.

    Attributes:
        mean: of the differences of nDCG@10.
        error: its standard error.
    """

    mean: float
    error: float

    @property
    def sign(self) -> int:
        """1 or -1 where the difference is more than two standard errors, else 0."""
        return 0 if abs(self.mean) <= 2 * self.error else int(np.sign(self.mean))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"


def compare(made: Benchmark, name: str, ours: str, theirs: str) -> Difference:
    """Return how much more `ours` finds than `theirs` on the queries of a set."""
    differences = made.query_scores(ours, name) - made.query_scores(theirs, name)
    error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.inf
    return Difference(float(differences.mean()), float(error))


def judge(made: Benchmark, name: str, student: str, before: str = "") -> list[str]:
    """Return sentences on whether the student is worth it on a set; the first ends in the answer.

    Args:
        made: the benchmark, its rows made.
        name: of the set.
        student: its row; rows of teacher, BM25 and both together are used where they are there.
        before: the row of the same model before it was trained, if there is one.
    """
    questions = next(each for each in made.sets if each.name == name)
    number = len(questions.queries)
    row, teacher = made.rows[student], made.rows.get(TEACHER)
    finds = f"{student} {_ndcg(row, name):.3f}"
    if teacher is not None:
        finds += f", teacher {_ndcg(teacher, name):.3f}"
        if row.documents_per_second and teacher.documents_per_second:
            times = row.documents_per_second / teacher.documents_per_second
            finds += f" at {1 / times:.2f} of the student's speed"
    both = f"{student} + {WORDS}"
    if WORDS in made.rows:
        finds += f", {WORDS} {_ndcg(made.rows[WORDS], name):.3f}"
    if both in made.rows:
        finds += f", {both} {_ndcg(made.rows[both], name):.3f}"
    size = f"{number:,} queries over {len(questions.documents):,} passages"
    sentences = [
        f"{name} ({size}), nDCG@10: {finds}.",
        _answer(made, name, student, both, number),
    ]
    if doubt := _doubt(made, name, number):
        sentences.append(doubt)
    if before in made.rows:
        gain = compare(made, name, student, before)
        what = {1: "made it better", 0: "made no sure difference", -1: "made it worse"}[gain.sign]
        if gain.mean == gain.error == 0:
            sentences.append(f"Training gave nothing better than {before}, which was kept.")
        else:
            sentences.append(f"Training {what} on these documents: {gain}.")
    return sentences


def _answer(made: Benchmark, name: str, student: str, both: str, number: int) -> str:
    if number < ENOUGH_QUERIES:
        return (
            f"Is it worth it here? Nobody can tell by {number} queries: bring more documents, or "
            "queries of your own."
        )
    if WORDS not in made.rows:
        return "Is it worth it here? There is no row of BM25 to compare it with."
    words = _ndcg(made.rows[WORDS], name)
    teacher = made.rows.get(TEACHER)
    if teacher is not None and _ndcg(teacher, name) < LOST * words:
        return (
            f"Is it worth it here? No: already the teacher finds {_ndcg(teacher, name):.3f} where "
            f"plain word matching finds {words:.3f}. It was not made for this text; take another "
            "teacher, or BM25."
        )
    ahead = compare(made, name, both if both in made.rows else student, WORDS)
    what = "the model beside word matching" if both in made.rows else "the model"
    answers = {
        1: f"Yes: {what} finds more than words alone, {ahead}.",
        0: f"Not shown: {what} finds no more than words alone, {ahead}.",
        -1: f"No: {what} finds less than words alone, {ahead}.",
    }
    return f"Is it worth it here? {answers[ahead.sign]}"


def _doubt(made: Benchmark, name: str, number: int) -> str:
    """Return what speaks against the teacher: it finds no more than words do. Empty for nothing."""
    if number < ENOUGH_QUERIES or TEACHER not in made.rows or WORDS not in made.rows:
        return ""
    ahead = compare(made, name, TEACHER, WORDS)
    if ahead.sign > 0:
        return ""
    teacher, than = made.rows[TEACHER], "less" if ahead.sign else "no more"
    doubt = f"Already the teacher alone finds {than} than plain word matching, {ahead}."
    own = next(each for each in made.sets if each.name == name)
    for other in made.sets:
        words = languages.compare(own.documents, other.documents)
        much = words.foreign > languages.MUCH and other is not own
        if much and _ndcg(teacher, name) < _ndcg(teacher, other.name):
            return (
                f"{doubt} It has {_ndcg(teacher, other.name):.3f} on {other.name}, whose hundred "
                f"commonest words are {words.theirs:.0%} of its text and {words.ours:.0%} of "
                f"yours: {words.foreign:.0%} of yours is in another language than the teacher's, "
                "or no prose. Try a teacher that was made for it, or for many languages: --teacher."
            )
    return doubt


def _ndcg(row: Row, name: str) -> float:
    return row.retrieval[name]["ndcg@10"]
