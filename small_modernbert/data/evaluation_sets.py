"""Evaluation sets: queries, documents and which answer which; graded pairs of sentences.

Read from folders in the NanoBEIR layout, or from the hub. Imports nothing heavy; `datasets` is
imported only when a set comes from the hub.

    <folder>/corpus/<set>.parquet    _id, text
    <folder>/queries/<set>.parquet   _id, text
    <folder>/qrels/<set>.parquet     query-id, corpus-id
"""

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from small_modernbert.data import parquet
from small_modernbert.runs import hub
from small_modernbert.runs.errors import UserError

ASSETS = "python get_offline_assets.py"
KINDS: dict[str, parquet.Kind] = {
    "_id": "any",
    "query-id": "any",
    "corpus-id": "any",
    "score": "number",
    "label": "number",
}
NANOBEIR = "sentence-transformers/NanoBEIR-en"
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
        relevant: query id -> ids of the documents that answer it, at least one each.
        counts: what was read and left out, by reason (`unjudged_queries`, ...).
    """

    name: str
    query_ids: list[str]
    queries: list[str]
    document_ids: list[str]
    documents: Sequence[str]
    relevant: dict[str, set[str]]
    counts: dict[str, int] = field(default_factory=dict)

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


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences with a graded score, or with a yes-or-no label.

    Attributes:
        name: as the tables show it.
        first: one sentence of each pair.
        second: the other one.
        gold: human scores (any scale) or labels (0 and 1).
        graded: scores, to be ranked (Spearman); else labels, to be retrieved (average precision).
    """

    name: str
    first: list[str]
    second: list[str]
    gold: list[float]
    graded: bool


def load_retrieval_set(folder: Path, name: str) -> RetrievalSet:
    """Read one set of a folder in the NanoBEIR layout (see the module's docstring).

    Raises:
        UserError: a file or column is missing, an id stands twice, or a judgement names a query
            or a document that is not there.
    """
    corpus = _read_table(folder, "corpus", name, ("_id", "text"), ("title",))
    queries = _read_table(folder, "queries", name, ("_id", "text"))
    qrels = _read_table(folder, "qrels", name, ("query-id", "corpus-id"), ("score",))
    return assemble(name, queries, corpus, qrels, where=str(folder))


def list_retrieval_sets(folder: Path) -> list[str]:
    """Return the names of the sets in a folder of the NanoBEIR layout, sorted."""
    return sorted(path.stem for path in (folder / "queries").glob("*.parquet"))


def has_retrieval_set(folder: Path, name: str) -> bool:
    """Say whether a folder holds a set, in one file or in the hub's shards."""
    return bool(_table_files(folder, "queries", name))


def assemble(
    name: str,
    queries: Mapping[str, Sequence[Any]],
    corpus: Mapping[str, Sequence[Any]],
    qrels: Mapping[str, Sequence[Any]],
    where: str,
) -> RetrievalSet:
    """Build a set out of its three tables, each a mapping from column to values, and check it.

    Queries without a judgement are left out and counted; judgements with a score of 0 or less
    judge a document irrelevant, so they are counted and not used. A `title` column is put before
    the text, as BEIR does.

    Raises:
        UserError: an id stands twice, a text is missing, or a judgement points nowhere.
    """
    where = f"{where}, set {name}"
    query_ids = _check_ids(queries["_id"], f"{where}, queries")
    document_ids = _check_ids(corpus["_id"], f"{where}, corpus")
    _check_texts(queries["text"], f"{where}, queries")
    documents: Sequence[str] = corpus["text"]
    # A lazy column holds millions of texts; those in memory are looked at.
    in_memory = isinstance(documents, list)
    if in_memory:
        for column in ("text", "title"):
            _check_types(corpus.get(column, []), "title" in corpus, f"{where}, corpus")
    if "title" in corpus:
        documents = TitledTexts(corpus["title"], corpus["text"])

    query_set, document_set = set(query_ids), set(document_ids)
    relevant: dict[str, set[str]] = {}
    lost_queries: list[str] = []
    lost_documents: list[str] = []
    irrelevant = 0
    scores = qrels.get("score") or [1] * len(qrels["query-id"])
    _check_numbers(scores, f"{where}, qrels, column score")
    for query, document, score in zip(qrels["query-id"], qrels["corpus-id"], scores, strict=True):
        query, wanted = str(query), document if isinstance(document, list) else [document]
        if score <= 0:
            irrelevant += 1
            continue
        if query not in query_set:
            lost_queries.append(query)
        for one in map(str, wanted):
            if one not in document_set:
                lost_documents.append(one)
            else:
                relevant.setdefault(query, set()).add(one)
    for lost, kind in ((lost_queries, "queries"), (lost_documents, "documents")):
        if lost:
            raise UserError(
                f"{where}: {len(lost):,} of {len(qrels['query-id']):,} judgements name {kind} that "
                f"are not there (the first is {lost[0]!r}); make the set again: "
                "python get_offline_assets.py"
            )
    judged = [i for i, query in enumerate(query_ids) if query in relevant]
    if not judged:
        raise UserError(f"{where}: no query has a relevant document")
    blank = 0
    if in_memory:
        document_ids, documents, blank = _leave_out_blank(
            document_ids, documents, relevant.values(), where
        )
    counts = {
        "queries": len(judged),
        "documents": len(document_ids),
        "judgements": sum(map(len, relevant.values())),
        "unjudged_queries": len(query_ids) - len(judged),
        "irrelevant_judgements": irrelevant,
        "blank_documents": blank,
    }
    if counts["unjudged_queries"]:
        logger.info("%s: %s queries left out: unjudged", where, f"{counts['unjudged_queries']:,}")
    return RetrievalSet(
        name=name,
        query_ids=[query_ids[i] for i in judged],
        queries=[queries["text"][i] for i in judged],
        document_ids=document_ids,
        documents=documents,
        relevant=relevant,
        counts=counts,
    )


def load_nanobeir(name: str, revision: str | None = None) -> RetrievalSet:
    """Read one set of NanoBEIR (`NanoMSMARCO`, `NanoHotpotQA`, ...) from the hub.

    Raises:
        UserError: the hub can't be reached, or has no such set.
    """
    tables = [
        load_hub_split(NANOBEIR, config, name, revision)[:]
        for config in ("queries", "corpus", "qrels")
    ]
    return assemble(name, *tables, where=NANOBEIR)


def load_named(names: Sequence[str], folder: Path | None) -> list[RetrievalSet]:
    """Read sets by name: from a folder in the NanoBEIR layout, or NanoBEIR's from the hub."""
    return [load_retrieval_set(folder, name) if folder else load_nanobeir(name) for name in names]


def load_hotpotqa(
    corpus: str, qrels: str, distractors: int, seed: int
) -> tuple[RetrievalSet, list[str]]:
    """Read BEIR HotpotQA's test queries over all its documents, or over a seeded sample.

    Args:
        corpus: hub id (or folder) with the configs `queries` and `corpus`, `id@revision` if pinned.
        qrels: hub id (or folder) with the split `test`.
        distractors: how many documents stand beside all the relevant ones; 0 means the full
            corpus of 5.2M, whose texts are then read lazily.
        seed: draws the distractors.

    Returns:
        The set, and the ids of the distractors (empty for the full corpus).

    Raises:
        UserError: the hub can't be reached, or a judgement points nowhere.
    """
    corpus_id, corpus_revision = hub.split_revision(corpus)
    qrels_id, qrels_revision = hub.split_revision(qrels)
    judgements = load_hub_split(qrels_id, None, "test", qrels_revision)[:]
    wanted = {str(query) for query in judgements["query-id"]}
    all_queries = load_hub_split(corpus_id, "queries", "queries", corpus_revision)[:]
    kept = [i for i, query in enumerate(all_queries["_id"]) if str(query) in wanted]
    queries = {name: [all_queries[name][i] for i in kept] for name in ("_id", "text")}
    table = load_hub_split(corpus_id, "corpus", "corpus", corpus_revision)
    if distractors == 0:
        lazy = {name: table[name] for name in ("_id", "title", "text")}
        return assemble("hotpotqa", queries, lazy, judgements, where=corpus), []
    gold = {str(document) for document in judgements["corpus-id"]}
    rows, chosen = choose_documents(map(str, table["_id"]), gold, distractors, seed)
    sample = table.select(rows)[:]
    return assemble("hotpotqa", queries, sample, judgements, where=corpus), chosen


def choose_documents(
    ids: Iterable[str], gold: set[str], distractors: int, seed: int
) -> tuple[list[int], list[str]]:
    """Choose every gold document and a seeded sample of the others.

    Returns:
        Row numbers to keep, ascending, and the ids of the sampled distractors in corpus order.
    """
    gold_rows, others, names = [], [], []
    for row, name in enumerate(ids):
        if name in gold:
            gold_rows.append(row)
        else:
            others.append(row)
            names.append(name)
    sample = random.Random(seed).sample(range(len(others)), min(distractors, len(others)))
    sample.sort()
    return sorted(gold_rows + [others[i] for i in sample]), [names[i] for i in sample]


def load_sentence_pairs(reference: str, folder: Path | None) -> SentencePairs:
    """Read `sentence1, sentence2, score` (graded) or `sentence1, sentence2, label` (0 or 1).

    Args:
        reference: hub id (`id@revision` if pinned; its split `test`), or what the pairs are called
            when `folder` is given.
        folder: a Parquet file with those columns, or None for the hub.

    Raises:
        UserError: the file or the hub's answer has other columns, or can't be had.
    """
    wanted, optional = ("sentence1", "sentence2"), ("score", "label")
    if folder is not None:
        name = folder.stem
        columns = _read_parquet([folder], wanted, optional)
    else:
        repository, revision = hub.split_revision(reference)
        name = repository.rpartition("/")[2]
        columns = load_hub_split(repository, None, "test", revision)[:]
    gold = "score" if "score" in columns else "label"
    if missing := [column for column in (*wanted, gold) if column not in columns]:
        raise UserError(f"{reference} has no column {missing[0]!r}; it has {', '.join(columns)}")
    where = f"{folder or reference}, column"
    for column in wanted:
        _check_texts(columns[column], f"{where} {column}")
    _check_numbers(columns[gold], f"{where} {gold}")
    if gold == "label" and not set(columns[gold]) <= {0, 1}:
        raise UserError(f"{where} label: 0 and 1 are wanted, not {sorted(set(columns[gold]))[:5]}")
    return SentencePairs(
        name=name,
        first=list(columns["sentence1"]),
        second=list(columns["sentence2"]),
        gold=[float(value) for value in columns[gold]],
        graded=gold == "score",
    )


def read_texts(paths: list[Path]) -> list[str]:
    """Return the distinct texts of Parquet files with a `text` column, in their order.

    Raises:
        UserError: a file can't be read or has no such column, or nothing is left.
    """
    found = _read_parquet(paths, ("text",), ())["text"]
    good = [text for text in found if isinstance(text, str) and text.strip()]
    if not good:
        raise UserError(f"{paths[0]} and its like hold no text")
    if len(good) < len(found):
        logger.info(
            "%s: %s rows left out: blank or not text", paths[0], f"{len(found) - len(good):,}"
        )
    return list(dict.fromkeys(good))


def load_hub_split(repository: str, config: str | None, split: str, revision: str | None) -> Any:  # noqa: ANN401  a datasets.Dataset; naming it would import it
    """Load one split of a hub dataset (or of a folder in its layout), memory-mapped.

    Raises:
        UserError: it can't be had; the message names `make run`.
    """
    import datasets

    if not Path(repository).is_dir():
        hub.warn_unpinned(repository, revision)
    try:
        return datasets.load_dataset(repository, config, split=split, revision=revision)
    except Exception as error:  # whatever the hub's many libraries raise, with the cure
        raise hub.explain(error, f"dataset {repository}", split) from error


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


def _table_files(folder: Path, part: str, name: str) -> list[Path]:
    # One file, or shards as the hub names them: <set>-00000-of-00002.parquet.
    path = folder / part / f"{name}.parquet"
    return [path] if path.is_file() else sorted((folder / part).glob(f"{name}-*-of-*.parquet"))


def _read_table(
    folder: Path,
    part: str,
    name: str,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> dict[str, list[Any]]:
    paths = _table_files(folder, part, name)
    if not paths:
        known = ", ".join(list_retrieval_sets(folder)) or "none"
        raise UserError(
            f"{folder / part / name}.parquet is not there (sets in this folder: {known}); "
            "run: python get_offline_assets.py"
        )
    return _read_parquet(paths, columns, optional)


def _read_parquet(
    paths: list[Path], columns: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for path in paths:
        kinds = {name: KINDS.get(name, "text") for name in (*columns, *optional)}
        rows = parquet.read_columns(
            path,
            {name: kinds[name] for name in columns},
            f"mend it, or remove it and run: {ASSETS}",
            optional={name: kinds[name] for name in optional},
        )
        if found and rows.keys() != found.keys():
            raise UserError(
                f"{path} has other columns than the shards before it: {', '.join(rows)}, not "
                f"{', '.join(found)}; mend it, or remove it and run: {ASSETS}"
            )
        for column, values in rows.items():
            found.setdefault(column, []).extend(values)
    return found


def _check_ids(values: Sequence[Any], where: str) -> list[str]:
    ids, seen = [], set()
    for row, value in enumerate(values):
        name = str(value)
        if value is None or name in seen:
            wrong = "is missing" if value is None else f"{name!r} stands twice"
            raise UserError(f"{where}, row {row + 1:,}, column _id: the id {wrong}")
        seen.add(name)
        ids.append(name)
    return ids


def _check_texts(values: Sequence[Any], where: str) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}, row {row + 1:,}: a text is wanted, not {str(value)[:80]!r}")


def _check_types(values: Sequence[Any], may_be_missing: bool, where: str) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, str) and not (value is None and may_be_missing):
            raise UserError(f"{where}, row {row + 1:,}: a text is wanted, not {str(value)[:80]!r}")


def _check_numbers(values: Sequence[Any], where: str) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}, row {row + 1:,}: a number is wanted, not {value!r}")


def _leave_out_blank(
    ids: list[str], documents: Sequence[str], relevant: Iterable[set[str]], where: str
) -> tuple[list[str], Sequence[str], int]:
    """Leave out documents without a word, which every model would give some vector.

    Raises:
        UserError: one of them answers a query.
    """
    # As one slice: titles are joined to their texts once.
    texts = documents[:]
    blank = {ids[row] for row, text in enumerate(texts) if not text or text.isspace()}
    if lost := blank.intersection(*[set().union(*relevant)]):
        raise UserError(
            f"{where}, corpus: document {min(lost)!r} answers a query and is blank; mend the set"
        )
    if not blank:
        return ids, documents, 0
    logger.info("%s: %s documents left out: blank", where, f"{len(blank):,}")
    kept = [row for row, name in enumerate(ids) if name not in blank]
    return [ids[row] for row in kept], [texts[row] for row in kept], len(blank)
