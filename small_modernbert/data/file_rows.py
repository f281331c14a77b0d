"""Rows out of files as people keep them: Parquet, JSON lines, JSON, CSV, TSV, text, Markdown.

    .parquet .pq                columns
    .jsonl .ndjson .json        an object a row; .json may also hold a list, or a list a column
    .csv .tsv                   a first line with the names of the columns
    .txt                        one text a line, column `text`, as the datasets library reads it
    .md .markdown               one text a file, column `text`

All but Parquet may be gzipped (.jsonl.gz). Endings may be in upper case, a byte order mark and
Windows' line ends are no part of a text, columns that nobody asks for are left alone, and an object
may lack a column that others have. In a folder, files of all these kinds are read, at any depth;
of a data set with splits (train-00000.parquet, test/x.csv) only the split that is asked for.
"""

import codecs
import csv
import dataclasses
import gzip
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from small_modernbert.data import parquet
from small_modernbert.runs.errors import UserError

READ_ROWS = 2_000
# Words that name a split, as the datasets library knows them, and ours. They stand alone in a
# name: "test-00000" is one of a test split, "latest" is none.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "held_out": ("held_out", "validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {
    split: re.compile(rf"(?:^|[^a-z0-9])(?:{'|'.join(words)})(?:[^a-z0-9]|$)", re.IGNORECASE)
    for split, words in SPLIT_WORDS.items()
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# What a folder holds beside its data, and nobody means to train on.
_BESIDE = re.compile(r"(readme|licen[cs]e|changelog|contributing|dataset_infos?)\b", re.IGNORECASE)
logger = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Attributes:
        path: where it lies.
        name: what its rows are called where they do not say it: the path below the place that was
            named, without endings.
        split: "train", "held_out" or "test"; empty where there are no splits: for a file that was
            named itself, and in a folder where no path names one.
    """

    path: Path
    name: str
    split: str = ""


def find_files(*places: Path, cure: str) -> list[DataFile]:
    """Return the files of some places, each a file or a folder, in order.

    A file that is named itself is read whatever it is called.

    Raises:
        UserError: a place is not there, or holds no file of a kind that is read.
    """
    below = places[0] if len(places) == 1 and places[0].is_dir() else _shared_folder(places)
    files = []
    for place in places:
        if place.is_dir():
            inside = _shards_of(place) or [
                path for path in sorted(place.rglob("*")) if _is_data(path, place)
            ]
            # A card beside data is no text; a folder of notes may have a readme.md among them.
            data = [path for path in inside if not _BESIDE.match(path.name)] or inside
            if not data:
                raise UserError(f"{place} holds no file that is read ({kinds()}); {cure}")
            splits = [_split_of(path.relative_to(place)) for path in data]
            # Beside files of other splits, one that names none is for training.
            rest = "train" if any(splits) else ""
            files += [
                DataFile(path, _name(path, below), split or rest)
                for path, split in zip(data, splits, strict=True)
            ]
        elif place.is_file():
            _reader(place, cure)
            files.append(DataFile(place, _name(place, below)))
        else:
            raise UserError(f"{place} is not there; {cure}")
    return files


def kinds() -> str:
    """Return the endings that are read, for a message."""
    return f"{' '.join(_READERS)}, also as .gz"


def split_named(word: str) -> str | None:
    """Return the split that a word names: "dev" is held out; None where it names none."""
    return next((split for split, words in SPLIT_WORDS.items() if word in words), None)


def select_split(files: Sequence[DataFile], split: str, cure: str) -> list[DataFile]:
    """Return the files of one split, and say which others are left alone.

    Raises:
        UserError: there is none.
    """
    chosen = [file for file in files if file.split in (split, "")]
    for file in files:
        if file not in chosen:
            logger.info("%s: left alone, it is of the %s split", file.path, file.split)
    if not chosen:
        raise UserError(f"{files[0].path.parent}: no file is of the {split} split; {cure}")
    return chosen


def read_columns(path: Path, cure: str) -> list[str]:
    """Return the names of a file's columns; of JSON, those of its first thousands of rows.

    Raises:
        UserError: see `read_rows`.
    """
    if _ending(path) in (".parquet", ".pq"):
        return parquet.read_schema(path, cure).names
    rows = next(_batches(_reader(path, cure)(path)), [])
    return list(dict.fromkeys(name for row in rows for name in row))


def count_rows(path: Path, cure: str) -> int:
    """Return the number of rows of a file; all but Parquet are read to their end for it.

    Raises:
        UserError: see `read_rows`.
    """
    if _ending(path) in (".parquet", ".pq"):
        return parquet.count_rows(path, cure)
    return sum(1 for _ in _reader(path, cure)(path))


def read_rows(
    path: Path,
    columns: Mapping[str, parquet.Kind],
    cure: str,
    *,
    optional: Iterable[str] = (),
) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a file in order, some thousands at a time, as lists by column.

    Args:
        path: the file.
        columns: those to read, with what they must hold. Cells of text are given as they were
            read, whatever they are: whoever cleans them counts what is none. A number may be
            spelt as text in CSV alone.
        cure: what to do about a file that cannot be used; the end of the message.
        optional: columns to read as well where they are there.

    Raises:
        UserError: the file is of no kind that is read, is damaged, lacks a column, or has a number
            that is none; with the row.
    """
    if _ending(path) in (".parquet", ".pq"):
        others: dict[str, parquet.Kind] = dict.fromkeys(optional, "any")
        for batch in parquet.read_batches(path, columns, cure, optional=others, rows=READ_ROWS):
            yield {name: parquet.to_list(batch.column(name)) for name in batch.schema.names}
        return
    spelt = _ending(path) in (".csv", ".tsv")
    wanted, begin = [*columns], 0
    for rows in _batches(_reader(path, cure)(path)):
        if not begin:
            names = dict.fromkeys(name for row in rows for name in row)
            for name in columns:
                if name not in names:
                    there = ", ".join(names) or "none"
                    raise UserError(f"{path} has no column {name!r}; it has: {there}; {cure}")
            wanted += [name for name in optional if name in names and name not in columns]
        batch = {name: [row.get(name) for row in rows] for name in wanted}
        for name, kind in columns.items():
            if kind == "number":
                where = f"{path}, column {name!r}, row"
                batch[name] = [
                    _number(cell, spelt, f"{where} {number:,}", cure)
                    for number, cell in enumerate(batch[name], begin + 1)
                ]
        begin += len(rows)
        yield batch


def _number(cell: object, spelt: bool, where: str, cure: str) -> float | None:
    if cell is None or (spelt and cell == ""):
        return None
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return cell
    if spelt and isinstance(cell, str):
        try:
            return float(cell)
        except ValueError:
            pass
    raise UserError(f"{where}: {str(cell)[:40]!r} is no number; {cure}")


def _shards_of(place: Path) -> list[Path]:
    """Return the shards that an index of ours names; none where there is no such index."""
    for path in sorted(place.glob("*.json")):
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(index, dict) and isinstance(index.get("shards"), dict) and "columns" in index:
            return [place / name for name in sorted(index["shards"]) if (place / name).is_file()]
    return []


def _is_data(path: Path, place: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
    return not hidden and path.is_file() and _ending(path) in _READERS


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _name(path: Path, below: Path) -> str:
    stem = path.name[: -len(".gz")] if path.name.lower().endswith(".gz") else path.name
    stem = _SHARD.sub("", Path(stem).stem)
    return (path.relative_to(below).parent / stem).as_posix()


def _shared_folder(places: tuple[Path, ...]) -> Path:
    return Path(os.path.commonpath([place.parent.absolute() for place in places]))


def _split_of(path: Path) -> str:
    # Whatever says that it is not for training is believed: test/train.csv is not trained on.
    for split in ("test", "held_out", "train"):
        if any(_WORDS[split].search(part) for part in path.parts):
            return split
    return ""


def _reader(path: Path, cure: str) -> Callable[[Path], Iterator[Row]]:
    reader = _READERS.get(_ending(path))
    if reader is None or (reader is _no_rows and path.name.lower().endswith(".gz")):
        kind = path.suffix or "a file without an ending"
        raise UserError(
            f"{path} cannot be read: {kind} is no kind that is ({kinds()}); save it as one of "
            f"these, or {cure}"
        )

    def explained(path: Path) -> Iterator[Row]:
        try:
            if not path.stat().st_size:
                raise ValueError("it is empty")
            yield from reader(path)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} cannot be read: it is no UTF-8 ({error.reason} at byte {error.start:,}); "
                f"convert it (iconv -f LATIN1 -t UTF-8, say), or {cure}"
            ) from None
        except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
            raise UserError(f"{path} cannot be read ({error}); {cure}") from None

    return explained


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == READ_ROWS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _open(path: Path, newline: str | None = None) -> TextIO:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as stream:
        wide = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return opened(path, "rt", encoding="utf-16" if wide else "utf-8-sig", newline=newline)


def _read_json_lines(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"row {number:,} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"row {number:,} is no JSON object but {type(row).__name__}")
            yield row


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        text = stream.read()
    try:
        whole = json.loads(text)
    except ValueError:
        # Many a file of JSON lines is called .json.
        yield from _read_json_lines(path)
        return
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    if isinstance(whole, dict) and whole and all(isinstance(v, list) for v in whole.values()):
        lengths = {len(cells) for cells in whole.values()}
        if len(lengths) > 1:
            raise ValueError(f"its columns have {sorted(lengths)} rows")
        whole = [dict(zip(whole, row, strict=True)) for row in zip(*whole.values(), strict=True)]
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise ValueError(f"row {number:,} is no JSON object but {type(row).__name__}")
        yield row


def _read_table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if _ending(path) == ".tsv" else ","
    with _open(path, newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"it has the column {twice!r} {names.count(twice)} times")
        try:
            for number, row in enumerate(reader, 1):
                if None in row:
                    raise ValueError(
                        f"row {number:,} has {len(names) + len(row[None])} cells, and there are "
                        f"{len(names)} columns; put texts with a {delimiter!r} into quotes"
                    )
                yield row
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num:,}: {error}") from None


def _read_lines(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        for line in stream:
            if text := line.rstrip("\n"):
                yield {"text": text}


def _read_whole(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        yield {"text": stream.read()}


def _no_rows(path: Path) -> Iterator[Row]:
    raise UserError(f"{path} is read by its columns")


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _no_rows,
    ".pq": _no_rows,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_lines,
    ".md": _read_whole,
    ".markdown": _read_whole,
}
