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

import dataclasses
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from small_modernbert.data import parquet
from small_modernbert.data.row_formats import (
    NAMELESS,
    READERS,
    TABLES,
    Row,
    columnar,
    ending_of,
    say,
)
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
# What others call the columns of sentence pairs (QQP, SICK, PAWS), see `name_columns`.
PAIR_NAMES = {
    "sentence1": {"sentence1", "sentencea", "text1", "texta", "question1"},
    "sentence2": {"sentence2", "sentenceb", "text2", "textb", "question2"},
    "score": {"score", "similarity", "similarityscore", "relatednessscore"},
}
# What a folder holds beside its data, and nobody means to train on.
_BESIDE = re.compile(r"(readme|licen[cs]e|changelog|contributing|dataset_infos?)\b", re.IGNORECASE)
BESIDE_ENDINGS = (".crc", ".py", ".yaml", ".yml", ".lock", ".log", ".png", ".svg")


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
    alone = len(places) == 1 and places[0].is_dir()
    below = places[0].absolute() if alone else _shared_folder(places)
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
            _say_unread(place)
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


def _say_unread(place: Path) -> None:
    """Say what lies in a folder and is of no kind that is read."""
    left = [
        path
        for path in sorted(place.rglob("*"))
        if not path.is_dir() and not _is_hidden(path, place) and not _is_data(path, place)
    ]
    # What programs put beside the data of theirs: _SUCCESS, .crc, cards without an ending.
    left = [path for path in left if path.suffix and path.suffix.lower() not in BESIDE_ENDINGS]
    if left:
        names = ", ".join(path.relative_to(place).as_posix() for path in left[:5])
        more = f" and {len(left) - 5:,} more" if len(left) > 5 else ""
        say(f"{place}: left alone, no kind of file that is read: {names}{more}")


def kinds() -> str:
    """Return the endings that are read, for a message."""
    return f"{' '.join(READERS)}, also as .gz"


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
            say(f"{file.path}: left alone, it is of the {file.split} split")
    if not chosen:
        raise UserError(f"{files[0].path.parent}: no file is of the {split} split; {cure}")
    return chosen


def read_columns(path: Path, cure: str) -> list[str]:
    """Return the names of a file's columns; of JSON, those of its first thousands of rows.

    Raises:
        UserError: see `read_rows`.
    """
    if ending_of(path) in (".parquet", ".pq"):
        return parquet.read_schema(path, cure).names
    rows = next(_batches(_reader(path, cure)(path)), [])
    return list(dict.fromkeys(name for row in rows for name in row))


def name_columns(
    path: Path, wanted: Iterable[str], there: Sequence[str], names: Mapping[str, set[str]]
) -> dict[str, str]:
    """Return what a table calls the columns that are wanted, and say where that is another name.

    Args:
        path: of the table.
        wanted: columns.
        there: those that it has.
        names: what else a column may be called, see `plain_name`. It is taken to be called so if
            its own name is not there, and one of these alone.
    """
    called = {}
    for name in wanted:
        fitting = [other for other in there if plain_name(other) in names.get(name, ())]
        called[name] = name if name in there or len(fitting) != 1 else fitting[0]
        if called[name] != name:
            say(f"{path}: the column {called[name]!r} is read as {name!r}")
    return called


def plain_name(name: str) -> str:
    """Return a column's name in lower case and without signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def count_rows(path: Path, cure: str) -> int:
    """Return the number of rows of a file; all but Parquet are read to their end for it.

    Raises:
        UserError: see `read_rows`.
    """
    if ending_of(path) in (".parquet", ".pq"):
        return parquet.count_rows(path, cure)
    return sum(1 for _ in _reader(path, cure)(path))


def read_rows(
    path: Path,
    columns: Mapping[str, parquet.Kind],
    cure: str,
    *,
    optional: Iterable[str] = (),
    begin: int = 0,
) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a file in order, some thousands at a time, as lists by column.

    Args:
        path: the file.
        columns: those to read, with what they must hold. Cells of text are given as they were
            read, whatever they are: whoever cleans them counts what is none. A number may be
            spelt as text. Text and Markdown files are the first column, whatever it is called.
        cure: what to do about a file that cannot be used; the end of the message.
        optional: columns to read as well where they are there.
        begin: row of a Parquet file to begin at.

    Raises:
        UserError: the file is of no kind that is read, is damaged, lacks a column, or has a number
            that is none; with the row.
    """
    if ending_of(path) in (".parquet", ".pq"):
        batches = _read_parquet(path, columns, cure, optional, begin)
    else:
        batches = _read_others(path, columns, cure, optional)
    for batch in batches:
        for name, kind in columns.items():
            if kind == "number":
                where = f"{path}, column {name!r}, row"
                batch[name] = [
                    _number(cell, f"{where} {number:,}", cure)
                    for number, cell in enumerate(batch[name], begin + 1)
                ]
        begin += len(next(iter(batch.values())))
        yield batch


def _read_parquet(
    path: Path, columns: Mapping[str, parquet.Kind], cure: str, optional: Iterable[str], begin: int
) -> Iterator[dict[str, list[Any]]]:
    others: dict[str, parquet.Kind] = dict.fromkeys(optional, "any")
    # Whether a cell is a number is seen cell by cell: text may spell one.
    kinds = {name: "any" if kind == "number" else kind for name, kind in columns.items()}
    reading = parquet.read_batches(path, kinds, cure, optional=others, rows=READ_ROWS, begin=begin)
    for batch in reading:
        yield {name: parquet.to_list(batch.column(name)) for name in batch.schema.names}


def _read_others(
    path: Path, columns: Mapping[str, parquet.Kind], cure: str, optional: Iterable[str]
) -> Iterator[dict[str, list[Any]]]:
    wanted: list[str] = []
    for rows in _batches(_reader(path, cure)(path)):
        if ending_of(path) in NAMELESS:
            rows = [{next(iter(columns)): row["text"]} for row in rows]
        if not wanted:
            names = dict.fromkeys(name for row in rows for name in row)
            for name in columns:
                if name not in names:
                    there = ", ".join(names) or "none"
                    named = ", by its first line" if ending_of(path) in TABLES else ""
                    raise UserError(
                        f"{path} has no column {name!r}; it has{named}: {there}; {cure}"
                    )
            wanted = [*columns, *(name for name in optional if name in names)]
        yield {name: [row.get(name) for row in rows] for name in wanted}


def _number(cell: object, where: str, cure: str) -> float | None:
    if cell is None or cell == "":
        return None
    if isinstance(cell, int | float):
        return float(cell)
    try:
        return float(cell) if isinstance(cell, str) else float("x")
    except ValueError:
        raise UserError(f"{where}: {str(cell)[:40]!r} is no number; {cure}") from None


def _shards_of(place: Path) -> list[Path]:
    """Return the shards that an index of ours names; none where there is no such index."""
    if not any(place.glob("*/shard-*.parquet")):
        return []  # a .json may be data, of any size
    for path in sorted(place.glob("*.json")):
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(index, dict) and isinstance(index.get("shards"), dict) and "columns" in index:
            return [place / name for name in sorted(index["shards"]) if (place / name).is_file()]
    return []


def _is_hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(place).parts)


def _is_data(path: Path, place: Path) -> bool:
    return not _is_hidden(path, place) and path.is_file() and ending_of(path) in READERS


def _name(path: Path, below: Path) -> str:
    stem = path.name[: -len(".gz")] if path.name.lower().endswith(".gz") else path.name
    stem = _SHARD.sub("", Path(stem).stem)
    inside = path.absolute().relative_to(below).parts[:-1] if _lies_in(below, path) else ()
    return "/".join((*inside, stem))


def _shared_folder(places: tuple[Path, ...]) -> Path:
    first = places[0].absolute()
    above = (folder for folder in first.parents if all(map(partial(_lies_in, folder), places)))
    return next(above, first.parent)


def _lies_in(folder: Path, place: Path) -> bool:
    # What lies on the disk is below nothing that lies elsewhere.
    return type(folder) is type(place) and place.absolute().is_relative_to(folder)


def _split_of(path: Path) -> str:
    # Whatever says that it is not for training is believed: test/train.csv is not trained on.
    for split in ("test", "held_out", "train"):
        if any(_WORDS[split].search(part) for part in path.parts):
            return split
    return ""


def _reader(path: Path, cure: str) -> Callable[[Path], Iterator[Row]]:
    reader = READERS.get(ending_of(path))
    if reader is None or (reader is columnar and path.name.lower().endswith(".gz")):
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
