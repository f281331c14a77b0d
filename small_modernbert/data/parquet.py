"""Parquet files that others wrote: opened, checked, and refused by name where they are no use.

Every file is read here, so that every page's checksum is compared, a file that is no Parquet is
called what it is, and a column that is missing, doubled or of another type is named. Checksums
cover pages, not a file's footer: what must not change at all has its sha256
in an index, see shards.py.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from small_modernbert.runs import places
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "texts", "number", "numbers", "any"]
BATCH_ROWS = 4_096
MAGIC = b"PAR1"
# What a file that is no Parquet begins with; the first that fits names it.
_OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer; fetch the file itself: git lfs pull"),
    (b"<", "an HTML or XML page, as a failed download leaves it"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip file"),
    (b"PARE", "an encrypted Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)


def read_schema(path: Path, cure: str) -> "pa.Schema":
    """Return the schema of a Parquet file; its metadata is data, nothing of it is executed.

    Raises:
        UserError: the file is not there, or is no Parquet file; `cure` ends the message.
    """
    with _open(path, cure) as file:
        return file.schema_arrow


def count_rows(path: Path, cure: str) -> int:
    """Return the number of rows that a Parquet file says it has.

    Raises:
        UserError: see `read_schema`.
    """
    with _open(path, cure) as file:
        return file.metadata.num_rows


def read_batches(
    path: Path,
    columns: Mapping[str, Kind],
    cure: str,
    *,
    optional: Mapping[str, Kind] | None = None,
    rows: int = BATCH_ROWS,
    own: bool = False,
    begin: int = 0,
) -> Iterator["pa.RecordBatch"]:
    """Yield the rows of a Parquet file in order, checksums compared.

    Args:
        path: the file.
        columns: those to read, with what they must hold: text, texts (or lists of them), a number,
            numbers in lists, anything. A column of nothing but nulls may stand for any.
        cure: what to do about a file that cannot be used; the end of the message.
        optional: columns to read as well where they are there.
        rows: of a batch, at most.
        own: the file is of our own making, so that no cell may be missing, blank, no UTF-8, or
            (in lists of numbers) not finite: such rows were cleaned away when it was written.
        begin: row to begin at; row groups before it are not read.

    Raises:
        UserError: the file is not there, is no Parquet file, is damaged, lacks a column, has one
            twice or one of another type, or gives other rows than its footer says; or it is to be
            our own, and a cell is not.
    """
    with _open(path, cure) as file:
        wanted = _check_columns(path, file.schema_arrow, columns, optional or {}, cure)
        groups, seen = _groups_from(file, begin)
        for batch in file.iter_batches(rows, row_groups=groups, columns=list(wanted)):
            batch = batch.select(list(wanted))
            passed = min(max(0, begin - seen), batch.num_rows)
            seen, batch = seen + passed, batch.slice(passed)
            batch.validate(full=own)
            if own:
                _check_cells(path, batch, wanted, seen, cure)
            seen += batch.num_rows
            yield batch
        if seen != file.metadata.num_rows:
            raise UserError(
                f"{path} is damaged: {seen:,} rows of {file.metadata.num_rows:,}; {cure}"
            )


def read_columns(
    path: Path,
    columns: Mapping[str, Kind],
    cure: str,
    *,
    optional: Mapping[str, Kind] | None = None,
) -> dict[str, list[Any]]:
    """Return the columns of a Parquet file as lists, those that are optional only if there.

    Raises:
        UserError: see `read_batches`.
    """
    cells: dict[str, list[Any]] = {}
    batches = read_batches(path, columns, cure, optional=optional)
    for batch in batches:
        for name in batch.schema.names:
            cells.setdefault(name, []).extend(to_list(batch.column(name)))
    if not cells:
        there = read_schema(path, cure).names
        cells = {name: [] for name in (*columns, *(optional or {})) if name in there}
    return cells


def to_list(column: "pa.Array") -> list[Any]:
    """Return a column's cells; text that is no UTF-8 (a lone surrogate, say) stays bytes."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        kind = pa.binary()
        if not _is_text(column.type):
            kind = pa.list_(kind)
        return [_decode(cell) for cell in column.cast(kind).to_pylist()]


def _decode(cell: bytes | list[Any] | None) -> Any:  # noqa: ANN401  text, bytes, None, or a list
    if isinstance(cell, list):
        return [_decode(inner) for inner in cell]
    try:
        return cell if cell is None else cell.decode()
    except UnicodeDecodeError:
        return cell


@contextmanager
def _open(path: Path, cure: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path} is not there; {cure}")
    if why := _not_parquet(path):
        raise UserError(f"{path} cannot be read: it {why}; {cure}")
    # A damaged footer can ask for anything: lengths of terabytes, negative counts, odd schemas.
    wrong = (pa.ArrowException, OSError, MemoryError, OverflowError, ValueError, KeyError)
    try:
        # Elsewhere, only the parts that are asked for are fetched.
        source = path.open("rb") if places.is_remote(path) else path
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            yield file
    except wrong as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read, it is damaged ({reason[:300]}); {cure}") from None


def _groups_from(file: Any, begin: int) -> tuple[list[int], int]:  # noqa: ANN401  pyarrow's
    """Return the row groups that hold rows from `begin` on, and the first row of the first."""
    groups, first, end = [], file.metadata.num_rows, 0
    for group in range(file.num_row_groups):
        start, end = end, end + file.metadata.row_group(group).num_rows
        if end > begin or not begin:
            first = min(first, start)
            groups.append(group)
    return groups, first


def _not_parquet(path: Path) -> str | None:
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    with path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(max(0, size - len(MAGIC)))
        tail = stream.read()
    if head.startswith(MAGIC):
        return None if tail == MAGIC else "is damaged: cut short, a Parquet file's end is missing"
    for begin, name in _OTHERS:
        if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(begin):
            return f"is no Parquet file but {name}"
    if tail == MAGIC:
        return "is damaged: a Parquet file's beginning is missing"
    printable = sum(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)
    text = printable > 0.9 * len(head)
    return f"is no Parquet file but {'text (CSV?)' if text else 'of an unknown kind'}"


def _check_columns(
    path: Path,
    schema: "pa.Schema",
    columns: Mapping[str, Kind],
    optional: Mapping[str, Kind],
    cure: str,
) -> dict[str, Kind]:
    names = schema.names
    wanted = {**columns, **{name: kind for name, kind in optional.items() if name in names}}
    for name, kind in wanted.items():
        if name not in names:
            there = ", ".join(repr(name)[1:-1] for name in names) or "none"
            raise UserError(f"{path} has no column {name!r}; it has: {there}; {cure}")
        if names.count(name) > 1:
            raise UserError(f"{path} has the column {name!r} {names.count(name)} times; {cure}")
        stored = schema.field(name).type
        if not _holds(stored, kind):
            what = {"texts": "text or lists of it", "numbers": "lists of numbers"}.get(kind, kind)
            raise UserError(f"{path}, column {name!r} holds {stored}, not {what}; {cure}")
    return wanted


def _check_cells(
    path: Path, batch: "pa.RecordBatch", columns: Mapping[str, Kind], before: int, cure: str
) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, kind in columns.items():
        column, rows = batch.column(name), None
        wrong = pc.is_null(column).to_numpy(zero_copy_only=False)
        if not wrong.any() and pa.types.is_nested(column.type):
            rows = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
            wrong = pc.is_null(column).to_numpy(zero_copy_only=False)
        why = "there is no value"
        if not wrong.any() and kind in ("text", "texts"):
            blank = pc.or_(pc.utf8_is_space(column), pc.equal(pc.binary_length(column), 0))
            wrong, why = blank.to_numpy(zero_copy_only=False), "the text is blank"
        elif not wrong.any() and kind == "numbers":
            wrong = ~np.isfinite(column.to_numpy(zero_copy_only=False))
            why = "a number is NaN or infinite"
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            row = before + 1 + (place if rows is None else int(rows[place]))
            raise UserError(f"{path}, row {row:,}, column {name!r}: {why}; {cure}")


def _holds(stored: "pa.DataType", kind: Kind) -> bool:
    import pyarrow as pa

    types = pa.types
    if kind == "any" or types.is_null(stored):
        return True
    lists = types.is_list(stored) or types.is_large_list(stored) or types.is_fixed_size_list(stored)
    if kind == "texts":
        return _is_text(stored) or (lists and _holds(stored.value_type, "text"))
    if kind == "numbers":
        return lists and _holds(stored.value_type, "number")
    if kind == "text":
        return _is_text(stored)
    plain = types.is_integer(stored) or types.is_floating(stored) or types.is_boolean(stored)
    return plain or types.is_decimal(stored)  # what DuckDB writes for 0.8


def _is_text(stored: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(stored):
        return _is_text(stored.value_type)
    return types.is_string(stored) or types.is_large_string(stored) or types.is_string_view(stored)
