"""Texts that stay on disk: columns of a memory-mapped Arrow file, read a slice at a time.

A corpus of millions of documents is some gigabytes of text, and several times that as Python's
strings. Here it lies in a file without a name, which goes when nobody reads it any more.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

import numpy as np
import pyarrow as pa

from small_modernbert.runs.errors import UserError


class StoredTexts(Sequence[str | None]):
    """A column of texts, or of nulls, in a memory-mapped file."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...
    def __getitem__(self, index: int | slice) -> str | None | list[str | None]:
        """Return one text, or a list of them for a slice."""
        if isinstance(index, slice):
            rows = range(len(self))[index]
            if rows.step != 1:
                return [self[row] for row in rows]
            return self._column.slice(rows.start, len(rows)).to_pylist()
        return self._column[range(len(self))[index]].as_py()


class ChosenTexts(Sequence[str]):
    """Some rows of texts that stay where they are."""

    def __init__(self, texts: Sequence[str], rows: np.ndarray) -> None:
        """Choose rows.

        Args:
            texts: whose slices are lists.
            rows: ascending int64 numbers of them.
        """
        self._texts, self._rows = texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one text, or a list of them for a slice."""
        if not isinstance(index, slice):
            return self._texts[int(self._rows[index])]
        rows = self._rows[index].tolist()
        if not rows:
            return []
        # One slice of the texts, which a file gives at once.
        first = min(rows)
        window = self._texts[first : max(rows) + 1]
        return [window[row - first] for row in rows]


def store(
    batches: Iterable[Mapping[str, Sequence[str | None]]], names: Sequence[str]
) -> dict[str, StoredTexts]:
    """Write columns of texts to a file, batch by batch, and return them as they lie there.

    Args:
        batches: column -> some cells, all of one length.
        names: of the columns.

    Raises:
        UserError: a cell is no text, or the disk has no room.
    """
    schema = pa.schema([(name, pa.large_string()) for name in names])
    handle, path = tempfile.mkstemp(suffix=".arrow")
    os.close(handle)
    try:
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                cells = [pa.array(batch[name], type=pa.large_string()) for name in names]
                writer.write_batch(pa.record_batch(cells, schema=schema))
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            f"a text is wanted in {' and '.join(names)}: {error}; write it as one"
        ) from error
    except OSError as error:
        folder = tempfile.gettempdir()
        raise UserError(f"{folder}: {error}; name another folder for it with TMPDIR") from error
    finally:
        os.unlink(path)  # what is mapped stays there to be read
    return {name: StoredTexts(table.column(name)) for name in names}
