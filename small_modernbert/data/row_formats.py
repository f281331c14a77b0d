"""Kinds of files with rows, and how each is read: JSON lines, JSON, CSV, TSV, text, Markdown.

A reader takes a path and yields rows, an object each; it raises ValueError for what is wrong, and
`file_rows` says where and what to do. All but Parquet may be gzipped; a byte order mark says what
the encoding is, and without one it is UTF-8.
"""

import codecs
import csv
import gzip
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from small_modernbert.runs import places

logger = logging.getLogger(__name__)
Row = dict[str, Any]
# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile(
    r"\\u[dD][89a-fA-F]"
)  # two of these may be one character, as JSON spells it
_LOOKED_AT = 4_096  # bytes of a file's beginning
_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}


@lru_cache(maxsize=1024)
def say(line: str) -> None:
    """Log a line once a process, however often a file is looked into."""
    logger.info("%s", line)


def ending_of(path: Path) -> str:
    """Return the ending that says a file's kind: in lower case, without that of gzip."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a file of text, gzipped or not, in the encoding that its first bytes tell.

    Raises:
        ValueError: it is full of zeros, as UTF-16 without a byte order mark is.
    """
    with open_bytes(path) as stream:
        head = stream.read(_LOOKED_AT)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and head.count(0) > len(head) / 5:
        order = "BE" if head[:1] == b"\0" else "LE"
        raise ValueError(
            f"every {len(head) // head.count(0)}. byte is zero, as in UTF-16 without its mark; "
            f"convert it: iconv -f UTF-16{order} -t UTF-8"
        )
    return _opened(path, "rt", encoding=encoding, newline=newline)


def open_bytes(path: Path) -> BinaryIO:
    """Open a file's bytes, gzipped or not."""
    return _opened(path, "rb")


def _opened(path: Path, mode: str, **text: str | None) -> Any:  # noqa: ANN401  bytes or text
    packed = path.name.lower().endswith(".gz")
    if places.is_remote(path):
        return path.open(mode, compression="gzip" if packed else None, **text)
    return gzip.open(path, mode, **text) if packed else path.open(mode, **text)


def _read_json_lines(path: Path) -> Iterator[Row]:
    with open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"row {number:,} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"row {number:,} is no JSON object but {type(row).__name__}")
            yield _mend(row, path) if _SURROGATE.search(line) else row


def _mend(row: Row, path: Path) -> Row:
    """Replace halves of characters, which JSON alone can spell, and no tokenizer or file takes."""
    mended = {name: _whole(cell) for name, cell in row.items()}
    if mended != row:
        say(f"{path}: half a character (a lone surrogate) in a text is read as U+FFFD")
    return mended


def _whole(cell: Any) -> Any:  # noqa: ANN401  a cell of JSON
    if isinstance(cell, list):
        return [_whole(part) for part in cell]
    if not isinstance(cell, str):
        return cell
    return cell.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_json(path: Path) -> Iterator[Row]:
    with open_text(path) as stream:
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
    halves = _SURROGATE.search(text) is not None
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise ValueError(f"row {number:,} is no JSON object but {type(row).__name__}")
        yield _mend(row, path) if halves else row


def _read_table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open_text(path, newline="") as stream:
        first = stream.readline()
    given = _DELIMITERS[ending_of(path)]
    # Where the comma is the decimal sign, spreadsheets part cells by semicolons.
    delimiter = next((sign for sign in given if sign in first), given[0])
    quoted = delimiter != "\t" or _has_quoting(path)
    with open_text(path, newline="") as stream:
        reader = csv.DictReader(
            stream,
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )
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


def _has_quoting(path: Path) -> bool:
    """Say whether the quotes of a TSV file enclose cells; often they are signs like any other.

    They do if every cell that opens one closes it, and none of these holds both a tab and a line
    end: that is two cells of different rows, one that begins and one that ends with a quote.
    """
    with open_text(path, newline="") as stream:
        try:
            for row in csv.reader(stream, delimiter="\t", strict=True):
                if any("\t" in cell and "\n" in cell for cell in row):
                    break
            else:
                return True
        except csv.Error:
            pass
    say(f"{path}: quotes do not enclose its cells; they are read as part of the texts")
    return False


def _read_lines(path: Path) -> Iterator[Row]:
    with open_text(path) as stream:
        first = True
        for line in stream:
            if text := line.rstrip("\n"):
                if first and _is_json_object(text):
                    raise ValueError("it holds JSON lines; call it .jsonl")
                first = False
                yield {"text": text}


def _is_json_object(line: str) -> bool:
    try:
        return line.startswith("{") and bool(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _read_whole(path: Path) -> Iterator[Row]:
    with open_text(path) as stream:
        yield {"text": stream.read()}


def columnar(path: Path) -> Iterator[Row]:
    """Stand for a kind that is read by columns, not row by row."""
    raise ValueError("it is read by its columns")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": columnar,
    ".pq": columnar,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_lines,
    ".md": _read_whole,
    ".markdown": _read_whole,
}
TABLES = (".csv", ".tsv")
# Their texts have no name: whichever column is asked for, they are it.
NAMELESS = (".txt", ".md", ".markdown")
