"""Retrieval sets: queries over a corpus, with the documents that answer each, checked.

`assemble` builds one out of three tables, wherever they were read. What it leaves out is counted
and said; what would give a wrong figure is refused.
"""

import logging
import math
import re
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from small_modernbert.data.cleaning import is_blank
from small_modernbert.data.stored_texts import ChosenTexts
from small_modernbert.runs.errors import UserError

MEND = "mend the set"
WINDOW = 10_000  # texts of a corpus on disk that are in memory at once
JUDGEMENT_COUNTS = (
    "judgements",
    "irrelevant_judgements",
    "contradicting_judgements",
    "judgements_of_missing_queries",
    "judgements_of_missing_documents",
)
# What a reader must know of a set, by what was counted as it was read; a number stands before it.
REMARKS = {
    "unjudged_queries": "queries left out: unjudged",
    "unanswered_queries": "queries left out: no document is judged to answer them",
    "blank_queries": "queries left out: blank",
    "repeated_queries": "queries left out: they stand twice",
    "repeated_documents": "documents left out: they stand twice",
    "blank_documents": "documents left out: blank",
    "contradicting_judgements": "judgements repeat another with another grade; the highest counts",
    "judgements_of_missing_queries": "judgements left out: the query is not there",
    "judgements_of_missing_documents": (
        "judged documents are not there (or blank); they count as relevant and not returned"
    ),
    "queries_in_the_corpus": "queries stand in the corpus; each is left out of its own ranking",
    "equal_ids": "queries have the id of a document with another text, ranked like any other",
}
_WHOLE_FLOAT = re.compile(r"-?\d+\.0+")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievalSet:
    """Queries over a corpus, with the documents that answer each query.

    Attributes:
        name: as the tables show it.
        query_ids: ids of the judged queries, in the order of `queries`.
        queries: their texts.
        document_ids: ids of the whole corpus, in the order of `documents`.
        documents: their texts; a list, or a lazy column where the corpus is large.
        relevant: query id -> id of each document that answers it -> its grade, above 0; at least
            one each. The corpus may lack some of them.
        counts: what was read and left out, by reason (`unjudged_queries`, ...).
    """

    name: str
    query_ids: list[str]
    queries: list[str]
    document_ids: list[str]
    documents: Sequence[str]
    relevant: dict[str, dict[str, float]]
    counts: dict[str, int] = field(default_factory=dict)

    @cached_property
    def own_rows(self) -> np.ndarray:
        """The row of the document that is each query itself, `(queries,)`; -1 where none is.

        Where queries are taken from the corpus (ArguAna, Quora) they stand in it under their own
        ids; BEIR leaves them out of their own rankings. One that is judged to answer is kept, and
        one that holds another text: where both are numbered from 1, equal ids say nothing.
        """
        rows = [
            row if row >= 0 and _plain(query) in _plain(self.documents[row]) else -1
            for query, row in zip(self.queries, self._equal_ids, strict=True)
        ]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def _equal_ids(self) -> list[int]:
        """The row of the document under each query's id that is not judged to answer it, or -1."""
        asked = set(self.query_ids)
        row_of = {name: row for row, name in enumerate(self.document_ids) if name in asked}
        return [
            -1 if query in self.relevant[query] else row_of.get(query, -1)
            for query in self.query_ids
        ]

    @property
    def graded(self) -> bool:
        """Whether judgements have grades that differ."""
        return len({grade for grades in self.relevant.values() for grade in grades.values()}) > 1

    def first_queries(self, number: int) -> "RetrievalSet":
        """Return the set with its first `number` queries over all documents; 0 means all."""
        if number <= 0 or number >= len(self.queries):
            return self
        ids = self.query_ids[:number]
        return replace(
            self,
            query_ids=ids,
            queries=self.queries[:number],
            relevant={query: self.relevant[query] for query in ids},
            counts=self.counts | {"queries_left_out": len(self.queries) - number},
        )


class TitledTexts(Sequence[str]):
    """Texts with their titles before them, joined when they are read."""

    def __init__(self, titles: Sequence[str | None], texts: Sequence[str | None]) -> None:
        self._titles = titles
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one joined text, or a list of them for a slice."""
        if isinstance(index, slice):
            pairs = zip(self._titles[index], self._texts[index], strict=True)
            return [f"{title or ''} {text or ''}".strip() for title, text in pairs]
        return f"{self._titles[index] or ''} {self._texts[index] or ''}".strip()


def assemble(
    name: str,
    queries: Mapping[str, Sequence[Any]],
    corpus: Mapping[str, Sequence[Any]],
    qrels: Mapping[str, Sequence[Any]],
    where: str,
) -> RetrievalSet:
    """Build a set out of its three tables, each a mapping from column to values, and check it.

    Ids are texts: an integer, a float that is whole and their spellings are one id. A `title`
    column is put before the text, as BEIR does. Left out, counted and said: queries that nobody
    judged or whose documents are all of score 0, queries and documents that are blank or stand
    twice (same id, same text), judgements of queries that are not there, and of a score of 0 or
    less. A judged document that is not there counts as relevant and never returned, as trec_eval
    has it; of two grades of one document the higher counts.

    Raises:
        UserError: an id stands twice with two texts, a cell is no text, a score is no number, or
            the judgements answer no query.
    """
    where = f"{where}, set {name}"
    query_rows, repeated_queries = _check_ids(queries["_id"], queries["text"], f"{where}, queries")
    document_rows, repeated = _check_ids(corpus["_id"], corpus["text"], f"{where}, corpus")
    documents, texts, blank = _documents(corpus, document_rows, where)
    there = document_rows.keys() if not blank else set(documents)
    relevant, counts, judged = _judgements(qrels, query_rows, there, where)
    _check_types(queries["text"], f"{where}, queries")
    asked = _asked(queries["text"], query_rows, relevant, where)
    made = RetrievalSet(
        name=name,
        query_ids=list(asked),
        queries=list(asked.values()),
        document_ids=documents,
        documents=texts,
        relevant={query: relevant[query] for query in asked},
        counts={
            "queries": len(asked),
            "documents": len(documents),
            "unjudged_queries": len(query_rows.keys() - judged),
            "unanswered_queries": len(query_rows.keys() & judged - relevant.keys()),
            "blank_queries": len(relevant) - len(asked),
            "repeated_queries": repeated_queries,
            "repeated_documents": repeated,
            "blank_documents": blank,
            **counts,
        },
    )
    made.counts["queries_in_the_corpus"] = own = int((made.own_rows >= 0).sum())
    made.counts["equal_ids"] = sum(row >= 0 for row in made._equal_ids) - own
    _say(made.counts, where)
    return made


def _asked(
    texts: Sequence[str], rows: Mapping[str, int], relevant: Container[str], where: str
) -> dict[str, str]:
    """Return id -> text of the queries that have an answer, without blank ones."""
    asked = {query: texts[row] for query, row in rows.items() if query in relevant}
    asked = {query: text for query, text in asked.items() if text and not is_blank(text)}
    if not asked:
        raise UserError(f"{where}: the queries that were judged are blank; {MEND}")
    return asked


def _documents(
    corpus: Mapping[str, Sequence[Any]], rows: Mapping[str, int], where: str
) -> tuple[list[str], Sequence[str], int]:
    """Return the ids and texts of a corpus, each document once, and how many were blank.

    A column on disk stays there: it is looked at window by window, as one in memory is.
    """
    texts: Sequence[str] = corpus["text"]
    in_memory = isinstance(texts, list)
    if in_memory:
        for column in ("text", "title"):
            _check_types(corpus.get(column, []), f"{where}, corpus")
    if "title" in corpus:
        texts = TitledTexts(corpus["title"], texts)
    # Every model would give a blank document some vector.
    blank = {
        start + place
        for start in range(0, len(texts), WINDOW)
        for place, text in enumerate(texts[start : start + WINDOW])
        if not text or is_blank(text)
    }
    kept = {name: row for name, row in rows.items() if row not in blank} if blank else rows
    chosen = np.fromiter(kept.values(), dtype=np.int64, count=len(kept))
    texts = texts if len(kept) == len(texts) else ChosenTexts(texts, chosen)
    return list(kept), texts[:] if in_memory else texts, len(rows) - len(kept)


def _judgements(
    qrels: Mapping[str, Sequence[Any]],
    queries: Mapping[str, int],
    documents: Set[str],
    where: str,
) -> tuple[dict[str, dict[str, float]], dict[str, int], set[str]]:
    """Return the grades of each query's documents, what was counted, and the queries judged at all.

    Raises:
        UserError: nothing answers anything.
    """
    relevant: dict[str, dict[str, float]] = {}
    counts = dict.fromkeys(JUDGEMENT_COUNTS, 0)
    lost: list[str] = []
    judged: set[str] = set()
    given = qrels.get("score") or [1] * len(qrels["query-id"])
    scores = check_numbers(given, f"{where}, qrels, column score")
    for query, answers, score in zip(qrels["query-id"], qrels["corpus-id"], scores, strict=True):
        query = _id_among(query, queries)
        judged.add(query)
        if score <= 0:
            counts["irrelevant_judgements"] += 1
            continue
        if query not in queries:
            counts["judgements_of_missing_queries"] += 1
            lost.append(f"query {query!r}")
            continue
        for answer in answers if isinstance(answers, list) else [answers]:
            document = _id_among(answer, documents)
            if document not in documents:
                counts["judgements_of_missing_documents"] += 1
                lost.append(f"document {document!r}")
            grades = relevant.setdefault(query, {})
            counts["judgements"] += document not in grades
            counts["contradicting_judgements"] += grades.get(document, score) != score
            grades[document] = max(score, grades.get(document, 0))
    _check_answers(relevant, documents, lost, where)
    return relevant, counts, judged


def _check_answers(
    relevant: Mapping[str, Mapping[str, float]],
    documents: Set[str],
    lost: Sequence[str],
    where: str,
) -> None:
    if all(documents.isdisjoint(grades) for grades in relevant.values()):
        reason = f"the judgements name what is not there ({lost[0]})" if lost else "all are 0"
        raise UserError(
            f"{where}: no query has a relevant document: {reason}; query-id and corpus-id must be "
            f"ids of the set's queries and documents, score above 0 for an answer; {MEND}"
        )


def _say(counts: Mapping[str, int], where: str) -> None:
    for name, meaning in REMARKS.items():
        if counts.get(name):
            logger.info("%s: %s %s", where, f"{counts[name]:,}", meaning)


def _id(value: Any) -> str:  # noqa: ANN401  a cell of a table
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _id_among(value: Any, known: Container[str]) -> str:  # noqa: ANN401  a cell of a table
    name = _id(value)
    if name in known:
        return name
    # A column of integers with a gap is written as "12.0" by pandas.
    name = name.strip()
    return name.partition(".")[0] if _WHOLE_FLOAT.fullmatch(name) else name


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _check_ids(
    values: Sequence[Any], texts: Sequence[Any], where: str
) -> tuple[dict[str, int], int]:
    """Return each id's row, and how many rows repeat an earlier one."""
    rows: dict[str, int] = {}
    repeated = 0
    for row, value in enumerate(values):
        name = "" if value is None or value != value else _id(value)  # NaN is not itself
        if not name:
            raise UserError(f"{where}, row {row + 1:,}, column _id: the id is missing; {MEND}")
        if name not in rows:
            rows[name] = row
        elif texts[rows[name]] == texts[row]:
            repeated += 1
        else:
            raise UserError(
                f"{where}, row {row + 1:,}, column _id: the id {name!r} stands twice, with two "
                f"texts; {MEND}"
            )
    return rows, repeated


def check_texts(values: Sequence[Any], where: str) -> list[str]:
    """Return the cells of a column, if each is a text with a word.

    Raises:
        UserError: one is not; `where` and its row are named.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str) or is_blank(value):
            raise UserError(
                f"{where}, row {row + 1:,}: a text is wanted, not {str(value)[:80]!r}; {MEND}"
            )
    return list(values)


def _check_types(values: Sequence[Any], where: str) -> None:
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise UserError(
                f"{where}, row {row + 1:,}: a text is wanted, not {str(value)[:80]!r}; {MEND}"
            )


def check_numbers(values: Sequence[Any], where: str) -> list[float]:
    """Return the cells of a column as numbers, also where they are spelt as text.

    Raises:
        UserError: one is no number, or not finite; `where` and its row are named.
    """
    numbers = []
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{where}, row {row + 1:,}: a number is wanted, not {value!r}; {MEND}")
        numbers.append(number)
    return numbers
