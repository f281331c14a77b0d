"""Retrieval sets: queries over a corpus, with the documents that answer each, checked.

`assemble` builds one out of three tables, wherever they were read. What it leaves out is counted
and said; what would give a wrong figure is refused.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from small_modernbert.runs.errors import UserError

MEND = "mend the set"
JUDGEMENT_COUNTS = (
    "judgements",
    "irrelevant_judgements",
    "judgements_of_missing_queries",
    "judgements_of_missing_documents",
)
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
        ids; BEIR leaves them out of their own rankings. One that is judged to answer is kept.
        """
        row_of = {document: row for row, document in enumerate(self.document_ids)}
        rows = [
            -1 if query in self.relevant[query] else row_of.get(query, -1)
            for query in self.query_ids
        ]
        return np.array(rows, dtype=np.int64)

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
    judged, queries and documents that stand twice (same id, same text), judgements of queries that
    are not there, and of a score of 0 or less. A judged document that is not there counts as
    relevant and never returned, as trec_eval has it.

    Raises:
        UserError: an id stands twice with two texts, a text is missing, a score is no number, or
            the judgements answer no query.
    """
    where = f"{where}, set {name}"
    query_rows, repeated_queries = _check_ids(queries["_id"], queries["text"], f"{where}, queries")
    document_rows, repeated = _check_ids(corpus["_id"], corpus["text"], f"{where}, corpus")
    relevant, counts = _judgements(qrels, query_rows, document_rows, where)
    judged = [query for query in query_rows if query in relevant]
    documents, texts, blank = _documents(corpus, document_rows, relevant.values(), where)
    made = RetrievalSet(
        name=name,
        query_ids=judged,
        queries=check_texts(
            queries["text"], f"{where}, queries", [query_rows[query] for query in judged]
        ),
        document_ids=documents,
        documents=texts,
        relevant={query: relevant[query] for query in judged},
        counts={
            "queries": len(judged),
            "documents": len(documents),
            "unjudged_queries": len(query_rows) - len(judged),
            "repeated_queries": repeated_queries,
            "repeated_documents": repeated,
            "blank_documents": blank,
            **counts,
        },
    )
    made.counts["queries_in_the_corpus"] = int((made.own_rows >= 0).sum())
    _say(made.counts, where)
    return made


def _documents(
    corpus: Mapping[str, Sequence[Any]],
    rows: Mapping[str, int],
    relevant: Iterable[Iterable[str]],
    where: str,
) -> tuple[list[str], Sequence[str], int]:
    """Return the ids and texts of a corpus, each document once, and how many were blank.

    A lazy column holds millions of texts and stays one; those in memory are looked at.
    """
    texts: Sequence[str] = corpus["text"]
    in_memory = isinstance(texts, list)
    if in_memory:
        for column in ("text", "title"):
            _check_types(corpus.get(column, []), "title" in corpus, f"{where}, corpus")
    if "title" in corpus:
        texts = TitledTexts(corpus["title"], texts)
    ids = list(rows)
    if len(ids) < len(texts):
        texts = [texts[row] for row in rows.values()]
    elif not in_memory:
        return ids, texts, 0
    return _leave_out_blank(ids, texts[:], relevant, where)


def _judgements(
    qrels: Mapping[str, Sequence[Any]],
    queries: Mapping[str, int],
    documents: Mapping[str, int],
    where: str,
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return the grades of each query's documents, and what was counted on the way.

    Raises:
        UserError: nothing answers anything.
    """
    relevant: dict[str, dict[str, float]] = {}
    counts = dict.fromkeys(JUDGEMENT_COUNTS, 0)
    lost: list[str] = []
    given = qrels.get("score") or [1] * len(qrels["query-id"])
    scores = check_numbers(given, f"{where}, qrels, column score")
    for query, answers, score in zip(qrels["query-id"], qrels["corpus-id"], scores, strict=True):
        query = _id_among(query, queries)
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
            grades[document] = max(score, grades.get(document, 0))
    if all(documents.keys().isdisjoint(grades) for grades in relevant.values()):
        reason = f"the judgements name what is not there ({lost[0]})" if lost else "all are 0"
        raise UserError(
            f"{where}: no query has a relevant document: {reason}; query-id and corpus-id must be "
            f"ids of the set's queries and documents, score above 0 for an answer; {MEND}"
        )
    return relevant, counts


def _say(counts: Mapping[str, int], where: str) -> None:
    meanings = {
        "unjudged_queries": "queries left out: unjudged",
        "repeated_queries": "queries left out: they stand twice",
        "repeated_documents": "documents left out: they stand twice",
        "blank_documents": "documents left out: blank",
        "judgements_of_missing_queries": "judgements left out: the query is not there",
        "judgements_of_missing_documents": (
            "judged documents are not there; they count as relevant and not returned"
        ),
        "queries_in_the_corpus": "queries stand in the corpus; each is left out of its own ranking",
    }
    for name, meaning in meanings.items():
        if counts[name]:
            logger.info("%s: %s %s", where, f"{counts[name]:,}", meaning)


def _id(value: Any) -> str:  # noqa: ANN401  a cell of a table
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _id_among(value: Any, known: Mapping[str, int]) -> str:  # noqa: ANN401  a cell of a table
    name = _id(value)
    # A column of integers with a gap is written as "12.0" by pandas.
    if name not in known and _WHOLE_FLOAT.fullmatch(name):
        return name.partition(".")[0]
    return name


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


def check_texts(values: Sequence[Any], where: str, rows: Sequence[int] | None = None) -> list[str]:
    """Return the cells of a column, all or those of some rows, if each is a text with a word.

    Raises:
        UserError: one is not; `where` and its row are named.
    """
    rows = range(len(values)) if rows is None else rows
    for row in rows:
        value = values[row]
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}, row {row + 1:,}: a text is wanted, not {str(value)[:80]!r}")
    return [values[row] for row in rows]


def _check_types(values: Sequence[Any], may_be_missing: bool, where: str) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, str) and not (value is None and may_be_missing):
            raise UserError(f"{where}, row {row + 1:,}: a text is wanted, not {str(value)[:80]!r}")


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


def _leave_out_blank(
    ids: list[str], texts: Sequence[str], relevant: Iterable[Iterable[str]], where: str
) -> tuple[list[str], Sequence[str], int]:
    """Leave out documents without a word, which every model would give some vector.

    Raises:
        UserError: one of them answers a query.
    """
    blank = {ids[row] for row, text in enumerate(texts) if not text or text.isspace()}
    if lost := blank.intersection(*[set().union(*relevant)]):
        raise UserError(
            f"{where}, corpus: document {min(lost)!r} answers a query and is blank; {MEND}"
        )
    if not blank:
        return ids, texts, 0
    kept = [row for row, name in enumerate(ids) if name not in blank]
    return [ids[row] for row in kept], [texts[row] for row in kept], len(blank)
