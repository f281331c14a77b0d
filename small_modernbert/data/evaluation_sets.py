"""Where evaluation sets come from: folders, files, the hub; retrieval sets and sentence pairs.

A retrieval set is read from a folder in one of two layouts, each of whose files may be compressed
(.gz), or from the hub. Imports nothing heavy; `datasets` is imported only for the hub.

    <folder>/corpus/<set>.parquet    _id, text, title (may be missing)      NanoBEIR's layout
    <folder>/queries/<set>.parquet   _id, text
    <folder>/qrels/<set>.parquet     query-id, corpus-id, score (1 where it is missing)

    <folder>/<set>/corpus.jsonl      the same columns                       BEIR's layout
    <folder>/<set>/queries.jsonl
    <folder>/<set>/qrels/test.tsv
"""

import csv
import gzip
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from small_modernbert.data import parquet
from small_modernbert.data.retrieval_sets import RetrievalSet, assemble, check_numbers, check_texts
from small_modernbert.runs import hub
from small_modernbert.runs.errors import UserError

ASSETS = "python get_offline_assets.py"
KINDS: dict[str, parquet.Kind] = {
    "_id": "any",
    "query-id": "any",
    "corpus-id": "any",
    "score": "any",
    "label": "number",
}
NANOBEIR = "sentence-transformers/NanoBEIR-en"
QRELS_SPLITS = ("test", "dev", "validation", "train")  # of the BEIR layout; the first that is there
STS_DEV = "sts-dev"  # what a hub dataset's validation split is called in figures
logger = logging.getLogger(__name__)


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
    """Read one set of a folder, in either layout (see the module's docstring).

    Raises:
        UserError: a file or column is missing, or `assemble` refuses the set.
    """
    columns = {
        "queries": (("_id", "text"), ()),
        "corpus": (("_id", "text"), ("title",)),
        "qrels": (("query-id", "corpus-id"), ("score",)),
    }
    beir = _beir_folder(folder, name)
    if beir is None and not _table_files(folder, "queries", name):
        known = ", ".join(list_retrieval_sets(folder)) or "none"
        raise UserError(
            f"{folder} holds no set {name!r}, neither queries/{name}.parquet nor "
            f"{name}/queries.jsonl (sets in this folder: {known}); name one of them, or for the "
            f"offline sets run: {ASSETS}"
        )
    tables = [
        _read_table(folder, part, name, *wanted)
        if beir is None
        else _read_beir(beir, part, *wanted)
        for part, wanted in columns.items()
    ]
    return assemble(name, *tables, where=str(folder))


def list_retrieval_sets(folder: Path) -> list[str]:
    """Return the names of the sets in a folder, sorted; a folder that is a BEIR set holds one."""
    names = {path.stem for path in (folder / "queries").glob("*.parquet")}
    inside = {path.name for path in folder.iterdir() if _file(path, "queries.jsonl")}
    return sorted(names | inside | ({folder.name} if _file(folder, "queries.jsonl") else set()))


def has_retrieval_set(folder: Path, name: str) -> bool:
    """Say whether a folder holds a set, in either layout."""
    return bool(_table_files(folder, "queries", name)) or _beir_folder(folder, name) is not None


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


def load_sentence_pairs(reference: str, path: Path | None, split: str = "test") -> SentencePairs:
    """Read `sentence1, sentence2, score` (graded) or `sentence1, sentence2, label` (0 or 1).

    Args:
        reference: hub id (`id@revision` if pinned), or what the pairs are called when there is a
            file.
        path: a Parquet file with those columns, or None for the hub.
        split: of a hub dataset.

    Raises:
        UserError: the file or the hub's answer has other columns, or can't be had.
    """
    wanted, optional = ("sentence1", "sentence2"), ("score", "label")
    if path is not None:
        name = path.stem
        columns = _read_parquet([path], wanted, optional)
    else:
        repository, revision = hub.split_revision(reference)
        name = STS_DEV if split == "validation" else repository.rpartition("/")[2]
        columns = load_hub_split(repository, None, split, revision)[:]
    gold = "score" if "score" in columns else "label"
    if missing := [column for column in (*wanted, gold) if column not in columns]:
        raise UserError(f"{reference} has no column {missing[0]!r}; it has {', '.join(columns)}")
    where = f"{path or reference}, column"
    first, second = (check_texts(columns[side], f"{where} {side}") for side in wanted)
    numbers = check_numbers(columns[gold], f"{where} {gold}")
    if gold == "label" and not set(numbers) <= {0, 1}:
        shown = sorted(set(columns[gold]))[:5]
        raise UserError(f"{where} label: 0 and 1 are wanted, not {shown}")
    return SentencePairs(name, first, second, numbers, graded=gold == "score")


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
        raise UserError(
            f"{folder / part / name}.parquet is not there, but queries/{name}.parquet is; put it "
            f"there, or for the offline sets run: {ASSETS}"
        )
    return _read_parquet(paths, columns, optional)


def _file(folder: Path, name: str) -> Path | None:
    """Return a file of a folder, or its compressed form; None if neither is there."""
    return next((folder / n for n in (name, f"{name}.gz") if (folder / n).is_file()), None)


def _beir_folder(folder: Path, name: str) -> Path | None:
    """Return the folder of a set in the BEIR layout: below `folder`, or `folder` itself."""
    if _file(folder / name, "queries.jsonl"):
        return folder / name
    return folder if folder.name == name and _file(folder, "queries.jsonl") else None


def _read_beir(
    folder: Path, part: str, columns: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, list[Any]]:
    if part == "qrels":
        return _read_qrels(folder / "qrels", (*columns, *optional))
    path = _file(folder, f"{part}.jsonl")
    if path is None:
        raise UserError(f"{folder / part}.jsonl is not there; a set of the BEIR layout needs it")
    rows: list[dict[str, Any]] = []
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number:,} is no JSON ({error}); mend it") from None
            if isinstance(row, dict):
                rows.append(row)
    for column in columns:
        if not any(column in row for row in rows):
            there = ", ".join(rows[0]) if rows else "no row"
            raise UserError(f"{path} has no column {column!r}; it has: {there}")
    return {
        column: [row.get(column) for row in rows]
        for column in (*columns, *optional)
        if column in columns or any(column in row for row in rows)
    }


def _read_qrels(folder: Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """Read judgements: BEIR's three columns with a header, or TREC's four without one."""
    paths = [path for split in QRELS_SPLITS if (path := _file(folder, f"{split}.tsv"))]
    if not paths:
        raise UserError(f"{folder / 'test.tsv'} is not there; a set of the BEIR layout needs it")
    with _open(paths[0]) as stream:
        rows = [row for row in csv.reader(stream, delimiter="\t") if row]
    if rows and len(rows[0]) == 1:
        rows = [row[0].split() for row in rows]
    if rows and rows[0][-1] == "score":
        rows = rows[1:]
    if rows and len(rows[0]) == 4:
        rows = [[row[0], *row[2:]] for row in rows]
    if wrong := next((place for place, row in enumerate(rows) if len(row) != len(columns)), None):
        raise UserError(f"{paths[0]}, judgement {wrong + 1:,}: {len(columns)} columns are wanted")
    return {column: [row[place] for row in rows] for place, column in enumerate(columns)}


def _open(path: Path) -> IO[str]:
    """Open a text file, compressed or not, whatever its line ends and byte order mark."""
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", errors="replace")


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
