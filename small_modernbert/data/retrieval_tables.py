"""The three tables of a retrieval set, found in a folder and read, whatever its layout.

Columns may have other names than NanoBEIR's (`id`, `contents`, `qid`: see NAMES), a table may be
one file, the hub's shards, or a folder of files, and judgements may be TREC's: query, iteration,
document, grade, with or without a first line that names them. Imports nothing heavy.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from small_modernbert.data import file_rows, parquet, stored_texts
from small_modernbert.data.row_formats import open_text, say
from small_modernbert.runs.errors import UserError

KINDS: dict[str, parquet.Kind] = {
    "_id": "any",
    "query-id": "any",
    "corpus-id": "any",
    "score": "any",
    "label": "number",
}
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # those that must be there, others
    "queries": (("_id", "text"), ()),
    "corpus": (("_id", "text"), ("title",)),
    "qrels": (("query-id", "corpus-id"), ("score",)),
}
# What others call these columns, in lower case and without signs: Anserini, TREC, MS MARCO.
NAMES = {
    "_id": {"id", "docid", "documentid", "corpusid", "pid", "qid", "queryid"},
    "text": {"text", "contents", "content", "body", "passage", "query", "question"},
    "title": {"title"},
    "query-id": {"queryid", "qid", "query", "topic", "topicid"},
    "corpus-id": {"corpusid", "docid", "documentid", "document", "docno", "pid", "passageid"},
    "score": {"score", "rel", "relevance", "grade", "label", "judgment", "judgement"},
}
LARGE_BYTES = 1 << 25  # of a corpus' files, packed or not: beyond it its texts stay on disk
SPLITS = ("test", "dev", "validation", "train")  # of judgements; the first that is there
# Endings of tables, and of judgements as TREC writes them.
_KINDS = "parquet|pq|jsonl|ndjson|json|csv|tsv"
_PLAIN = "tsv|csv|txt|trec|qrels?"
_PLAIN_FILE = re.compile(rf".*\.({_PLAIN})(\.gz)?", re.IGNORECASE)
logger = logging.getLogger(__name__)


def find_cure(path: Path) -> str:
    """Return what to do about a file of no use: only what we laid out ourselves comes again."""
    laid_out = "assets" in path.parts
    return "mend it" + ", or remove it and run: python get_offline_assets.py" * laid_out


def find_tables(folder: Path, part: str, name: str) -> list[Path]:
    """Return the files of one table of a set, in either layout; none where there are none.

    Args:
        folder: of the sets, or in BEIR's layout of the set itself.
        part: "queries", "corpus" or "qrels".
        name: of the set.
    """
    if tables := _matching(folder / part, re.escape(name), part) or _inside(folder / part / name):
        return tables
    for place in (folder / name, folder):
        if place == folder and folder.name != name:
            continue
        if tables := _find_beside(place, part):
            return tables
    return []


def _find_beside(place: Path, part: str) -> list[Path]:
    """Return the files of one table of a set in BEIR's layout."""
    if part != "qrels":
        return _matching(place, part, part) or _inside(place / part)
    splits = {split: _matching(place / part, split, part) for split in SPLITS}
    splits = {split: paths for split, paths in splits.items() if paths}
    if len(splits) > 1:
        chosen, *others = splits
        say(
            f"{place / part}: judgements of the {chosen} split are read, those of "
            f"{', '.join(others)} left alone"
        )
    tables = next(iter(splits.values()), []) or _matching(place, r"qrels([._-]\w+)?", part)
    files = _matching(place / part, ".+?", part)
    return tables or (files if len(files) == 1 else [])


def list_sets(folder: Path) -> list[str]:
    """Return the names of the sets in a folder, sorted; a folder that is a BEIR set holds one."""
    tables = _matching(folder / "queries", ".+?", "queries")
    named = {re.split(rf"(-\d+-of-\d+)?\.({_KINDS})(\.gz)?$", path.name)[0] for path in tables}
    if _is_set(folder):
        # Its folder of queries has no sets, but shards.
        named = {folder.name}
    elif (folder / "queries").is_dir():
        named |= {path.name for path in (folder / "queries").iterdir() if _inside(path)}
    return sorted(named | {path.name for path in folder.iterdir() if _is_set(path)})


def _is_set(place: Path) -> bool:
    """Say whether a folder is a set in BEIR's layout."""
    if _matching(place, "queries", "queries"):
        return True
    # A folder of sets may hold one that is called "test"; then its queries are called so, too.
    return bool(_inside(place / "queries")) and any(
        _matching(place / "qrels", split, "qrels")
        and not _matching(place / "queries", split, "queries")
        for split in SPLITS
    )


def _matching(folder: Path, stem: str, part: str) -> list[Path]:
    """Return the files of a folder with a stem (a pattern), or its shards as the hub names them."""
    kinds = f"{_KINDS}|{_PLAIN}" if part == "qrels" else _KINDS
    pattern = re.compile(rf"{stem}(-\d+-of-\d+)?\.({kinds})(\.gz)?", re.IGNORECASE)
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in paths if path.is_file() and pattern.fullmatch(path.name))


def _inside(folder: Path) -> list[Path]:
    """Return the files of a table that is a folder of its own."""
    return _matching(folder, ".+?", "corpus")


def read_part(paths: Sequence[Path], part: str) -> Mapping[str, Sequence[Any]]:
    """Read one table of a set; see `read_table`. A column may go by a name of NAMES.

    The texts of a large corpus stay on disk (`stored_texts`).
    """
    if part == "corpus" and sum(path.stat().st_size for path in paths) > LARGE_BYTES:
        return _store_corpus(paths)
    return read_table(paths, *COLUMNS[part], NAMES)


def _store_corpus(paths: Sequence[Path]) -> dict[str, Sequence[Any]]:
    """Read a corpus: its ids into memory, its texts and titles to a file; see `read_table`."""
    ids: list[Any] = []
    with_title = "title" in _columns_of(paths[0])

    def batches() -> Iterator[dict[str, list[Any]]]:
        for path in paths:
            if ("title" in _columns_of(path)) != with_title:
                raise UserError(
                    f"{path}: one shard has titles and another one none, unlike {paths[0]}; "
                    f"{find_cure(path)}"
                )
            for batch in _batches(path, *COLUMNS["corpus"], NAMES):
                ids.extend(batch["_id"])
                yield {"title": [None] * len(batch["_id"]), **batch}

    try:
        stored = stored_texts.store(batches(), ["text", *(["title"] if with_title else [])])
    except UserError as error:
        raise UserError(f"{paths[0].parent}, corpus: {error}") from error
    return {"_id": ids, **stored}


def _columns_of(path: Path) -> set[str]:
    there = file_rows.read_columns(path, find_cure(path))
    names = [name for part in COLUMNS["corpus"] for name in part]
    called = file_rows.name_columns(path, names, there, NAMES)
    return {name for name in names if called[name] in there}


def read_table(
    paths: Sequence[Path],
    columns: Sequence[str],
    optional: Sequence[str],
    names: Mapping[str, set[str]] | None = None,
) -> dict[str, list[Any]]:
    """Read the files of a table, one after the other, as lists by column.

    Args:
        paths: the files.
        columns: those that must be there.
        optional: those to read as well where they are there.
        names: what else a column may be called, in lower case and without signs.

    Raises:
        UserError: a file can't be read, has no rows, lacks a column, or has others than those
            before it.
    """
    table: dict[str, list[Any]] = {}
    for path in paths:
        rows = _read_trec(path) if "corpus-id" in columns else None
        rows = rows or _read_rows(path, columns, optional, names or {})
        if table and rows.keys() != table.keys():
            raise UserError(
                f"{path} has other columns than the shards before it: {', '.join(rows)}, not "
                f"{', '.join(table)}; {find_cure(path)}"
            )
        for column, values in rows.items():
            table.setdefault(column, []).extend(values)
    return table


def _batches(
    path: Path, columns: Sequence[str], optional: Sequence[str], names: Mapping[str, set[str]]
) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a file, some thousands at a time, as lists by our names of the columns."""
    there = file_rows.read_columns(path, find_cure(path))
    called = file_rows.name_columns(path, (*columns, *optional), there, names)
    kinds = {called[name]: KINDS.get(name, "text") for name in columns}
    others = [called[name] for name in optional]
    for batch in file_rows.read_rows(path, kinds, find_cure(path), optional=others):
        yield {name: batch[called[name]] for name in (*columns, *optional) if called[name] in batch}


def _read_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str], names: Mapping[str, set[str]]
) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {}
    for batch in _batches(path, columns, optional, names):
        for name, cells in batch.items():
            rows.setdefault(name, []).extend(cells)
    if not rows:
        there = file_rows.read_columns(path, find_cure(path))
        called = file_rows.name_columns(path, (*columns, *optional), there, names)
        if missing := [name for name in columns if called[name] not in there]:
            raise UserError(f"{path} has no rows, and no column {missing[0]!r}; {find_cure(path)}")
        rows = {name: [] for name in (*columns, *optional) if called[name] in there}
    return rows


def _read_trec(path: Path) -> dict[str, list[Any]] | None:
    """Read judgements as TREC writes them: query, iteration, document, grade, or without iteration.

    Cells stand between tabs (commas in a CSV file) where every line has some, else between blanks.
    A first line may name them; if that is of a TSV or CSV file, it is a table like any other.

    Returns:
        The columns; None where the file is another one.
    """
    if not (ending := _PLAIN_FILE.fullmatch(path.name)):
        return None
    try:
        with open_text(path) as stream:
            lines = [line for line in stream if line.strip()]
    except (OSError, EOFError, ValueError):
        return None  # whoever reads it next says what is wrong
    is_table = ending[1].lower() in ("csv", "tsv")
    sign = "," if ending[1].lower() == "csv" else "\t"
    delimiter = sign if all(sign in line for line in lines) else None
    rows = [line.rstrip("\r\n").split(delimiter) for line in lines]
    if {len(row) for row in rows} not in ({3}, {4}):
        return None
    names = ["query-id", *["iteration"][: len(rows[0]) - 3], "corpus-id", "score"]
    if not _is_number(rows[0][-1]):
        if is_table and delimiter:
            return None
        names = [_called_by(name) for name in rows.pop(0)]
    cells = zip(*rows, strict=True) if rows else [()] * len(names)
    columns = {name: list(values) for name, values in zip(names, cells, strict=True)}
    if not {"query-id", "corpus-id"} <= columns.keys():
        raise UserError(
            f"{path}: its first line names {', '.join(columns)}; name query-id, corpus-id and "
            f"score, or leave that line out; {find_cure(path)}"
        )
    return {name: columns[name] for name in ("query-id", "corpus-id", "score") if name in columns}


def _called_by(name: str) -> str:
    """Return the column that a first line names in its own way."""
    known = ("query-id", "corpus-id", "score")
    return next((column for column in known if file_rows.plain_name(name) in NAMES[column]), name)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
