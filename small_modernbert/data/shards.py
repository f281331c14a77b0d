"""Folders of Parquet shards: the one way in which stages hand rows on.

    <split>/shard-00000.parquet ...    the rows; a shard is whole or not there
    <index>.json                       facts, columns, rows of each split, and of every shard its
                                       rows, bytes and sha256; written last

A shard is written beside its place, flushed and renamed, and depends on nothing but its own rows,
so a killed run goes on at the first one that is missing. Without an index a folder is unfinished.

One way of checking: opening compares the index with itself, and the names and sizes of the files
with the index. A shard's sha256 is compared when an open folder first reads it; from then on its
bytes are those that were written. Its cells are looked at as they are read (nothing missing, blank,
NaN), because whoever wrote the index may not be us. `verify` reads all of a folder in this way, at
the end of a stage.

A folder may also lie elsewhere (see `runs.places`): its shards are fetched as they are read, one at
a time, and not kept.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from small_modernbert.data import outlets, parquet
from small_modernbert.runs import places, storage
from small_modernbert.runs.errors import UserError

# Rows of a Parquet row group: what a reader must hold at once.
GROUP_ROWS = 4_096
HERE = outlets.Outlet()
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the folders of one kind hold.

    Attributes:
        index: name of the file that is written last.
        columns: of every shard, with what they hold.
        splits: names of the splits; a split may have no shard.
        cure: ends every message about a folder that cannot be used; may name the {folder}.
        facts: what the index says beside the shards, with its type; more may stand there.
    """

    index: str
    columns: Mapping[str, parquet.Kind]
    splits: tuple[str, ...]
    cure: str
    facts: Mapping[str, type] = dataclasses.field(default_factory=dict)


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Return where a shard of a split lies."""
    return folder / split / f"shard-{number:05d}.parquet"


def write_shard(
    path: Path, rows: pa.Table | Iterable[pa.Table | pa.RecordBatch], schema: pa.Schema
) -> None:
    """Write one shard, atomically, with page checksums.

    Args:
        path: see `shard_path`.
        rows: a table, or batches that are written as they come.
        schema: of the rows; its metadata is kept.

    Raises:
        UserError: the disk has no room.
    """
    tables = [rows] if isinstance(rows, pa.Table) else rows
    with (
        storage.replacing(path) as place,
        pq.ParquetWriter(place, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in tables:
            storage.check_space(path.parent, table.nbytes)
            writer.write(table, row_group_size=GROUP_ROWS)


def write_index(
    folder: Path,
    layout: Layout,
    shards: Mapping[str, int],
    facts: Mapping[str, Any] | None = None,
    outlet: outlets.Outlet = HERE,
) -> None:
    """Write the index, which makes the folder complete.

    Args:
        folder: with all the shards.
        layout: of the folder.
        shards: split -> number of its shards; a split that is not named has none.
        facts: what the index is to say beside.
        outlet: where the shards have gone.

    Raises:
        UserError: a shard is missing, or is no Parquet file.
    """
    cure, entries, columns = layout.cure.format(folder=folder), {}, {}
    paths = [
        shard_path(folder, split, number)
        for split in layout.splits
        for number in range(shards.get(split, 0))
    ]
    for path in paths:
        known = outlet.describe(path, cure)
        columns = known["columns"]
        entry = {name: known[name] for name in ("rows", "bytes", "sha256")}
        entries[path.relative_to(folder).as_posix()] = entry
    rows = {
        split: sum(entry["rows"] for name, entry in entries.items() if _split_of(name) == split)
        for split in layout.splits
    }
    index = {**(facts or {}), "columns": columns, "rows": rows, "shards": entries}
    storage.write_json(folder / layout.index, index)
    if outlet.url:
        outlet.finish(folder / layout.index)
        storage.write_json(folder / layout.index, {"url": outlet.url, **index})


@dataclasses.dataclass(frozen=True)
class ShardFolder:
    """A finished folder of shards.

    Attributes:
        folder: where its index lies.
        layout: what it holds.
        index: what its index says, facts included.
    """

    folder: Path
    layout: Layout
    index: dict[str, Any]
    _known: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """Split -> number of rows."""
        return self.index["rows"]

    @property
    def place(self) -> Path:
        """Where its shards lie."""
        return _place_of(self.folder, self.index)

    @property
    def cure(self) -> str:
        """What to do if it cannot be used."""
        return self.layout.cure.format(folder=self.folder)

    def shard_rows(self, split: str) -> list[int]:
        """Return the rows of each shard of a split, in order."""
        return [self.index["shards"][name]["rows"] for name in self._names(split)]

    def _names(self, split: str) -> list[str]:
        return [name for name in _in_order(self.index["shards"]) if _split_of(name) == split]

    def batches(
        self,
        split: str,
        columns: Sequence[str] = (),
        rows: int = GROUP_ROWS,
        numbers: Iterable[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a split in order.

        Args:
            split: one of the layout's.
            columns: to read; none given = all of the layout's.
            rows: of a batch, at most.
            numbers: of the shards to read, in the order in which to; None = all.

        Raises:
            UserError: a shard is missing, or not the one that was written; or lacks a column, or
                has a cell that is none, see `parquet.read_batches`.
        """
        kinds = {name: self.layout.columns[name] for name in columns or self.layout.columns}
        names = self._names(split)
        for name in names if numbers is None else [names[number] for number in numbers]:
            path, entry = self.place / name, self.index["shards"][name]
            seen = 0
            with self._at_hand(path, name, entry["sha256"]) as own:
                for batch in parquet.read_batches(own, kinds, self.cure, rows=rows, own=True):
                    seen += batch.num_rows
                    self.check_batch(path, batch)
                    yield batch
            if seen != entry["rows"]:
                raise UserError(
                    f"{path}: {seen:,} rows, not {entry['rows']:,} as in {self.layout.index}; "
                    f"{self.cure}"
                )

    def check_batch(self, path: Path, batch: pa.RecordBatch) -> None:
        """Refuse rows whose values cannot be meant; for kinds that know more than their types."""

    def column(self, split: str, name: str) -> Iterator[Any]:
        """Yield the cells of one column of a split, in order."""
        for batch in self.batches(split, [name]):
            yield from batch.column(0).to_pylist()

    def verify(self) -> None:
        """Read everything as a stage would.

        Raises:
            UserError: see `batches`.
        """
        for split in self.layout.splits:
            for _ in self.batches(split):
                pass

    def verify_made(self) -> None:
        """Like `verify`; of shards that were sent away only the sizes, which opening has seen."""
        if self.place == self.folder:
            self.verify()

    @contextlib.contextmanager
    def _at_hand(self, path: Path, name: str, sha256: str) -> Iterator[Path]:
        """Give a shard on this machine, compared with its sha256."""
        if name not in self._known and not path.is_file():
            raise UserError(f"{path} is not there; {self.cure}")
        with places.at_hand(path) as own:
            # What is fetched anew may be damaged anew.
            if name not in self._known or places.is_remote(path):
                if storage.sha256_file(own) != sha256:
                    raise UserError(
                        f"{path} is damaged: its sha256 is not the one in {self.layout.index}; "
                        f"{self.cure}"
                    )
                self._known.add(name)
            yield own


def read_index(folder: Path, layout: Layout) -> dict[str, Any]:
    """Return the index of a finished folder, compared with itself and with the files' sizes.

    Raises:
        UserError: it is not there, or not ours, or a file is missing or of another size.
    """
    path, cure = folder / layout.index, layout.cure.format(folder=folder)
    index = storage.read_json(path, cure)
    if not isinstance(index, dict):
        raise UserError(f"{path} is no index of shards; {cure}")
    wanted = {**layout.facts, "columns": dict, "rows": dict, "shards": dict}
    for name, kind in wanted.items():
        if type(index.get(name)) is not kind or (kind is int and index[name] <= 0):
            raise UserError(
                f"{path}: {name!r} is {str(index.get(name))[:80]!r}, nothing of ours; {cure}"
            )
    rows = dict.fromkeys(layout.splits, 0)
    for name, entry in index["shards"].items():
        _check_entry(path, name, entry, rows, cure)
    for split, number in rows.items():
        if index["rows"].get(split) != number:
            raise UserError(
                f"{path}: 'rows' of {split} is {str(index['rows'].get(split))[:80]!r}, and its "
                f"shards have {number:,}; {cure}"
            )
    place = _place_of(folder, index)
    sizes = {
        f"{split}/{name}": size
        for split in layout.splits
        for name, size in places.list_sizes(place / split).items()
    }
    for name, entry in index["shards"].items():
        _check_size(place / name, sizes.get(name), entry["bytes"], layout.index, cure)
    _note_strangers(place, layout, sizes, index["shards"])
    return index


def open_shards(folder: Path, layout: Layout) -> ShardFolder:
    """Open a finished folder; see `read_index`."""
    return ShardFolder(folder, layout, read_index(folder, layout))


def digest_rows(rows: ShardFolder) -> str:
    """Return one sha256 over the sorted rows of all splits: the same for any order and shards."""
    digests = []
    for split in rows.layout.splits:
        for batch in rows.batches(split):
            for row in batch.to_pylist():
                cells = json.dumps([split, *row.items()], ensure_ascii=False)
                digests.append(hashlib.sha256(cells.encode()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _place_of(folder: Path, index: Mapping[str, Any]) -> Path:
    url = index.get("url")
    if not url:
        return folder
    place = places.open_url(str(url), f"{folder}, its shards")  # an `Outlet` has sent them there
    if not places.is_remote(place):  # an index may come from anywhere, and must not lead about here
        raise UserError(
            f"{folder}: its index says that its shards are at {url}, on this disk; give that folder"
        )
    return place


def _check_entry(path: Path, name: str, entry: object, rows: dict[str, int], cure: str) -> None:
    """Refuse an entry that is not of our making, and add its rows to those of its split."""
    # An index may come from anywhere: no name of it leads out of the folder.
    ours = re.fullmatch(r"(\w+)/shard-\d{5,}\.parquet", name)
    good = ours is not None and ours[1] in rows and isinstance(entry, dict)
    good = good and isinstance(entry.get("sha256"), str)
    if not good or any(
        type(entry.get(key)) is not int or entry[key] < 0 for key in ("rows", "bytes")
    ):
        raise UserError(f"{path}: shard {name!r} is none of ours; {cure}")
    rows[ours[1]] += entry["rows"]


def _check_size(path: Path, there: int | None, size: int, index: str, cure: str) -> None:
    if there is None:
        raise UserError(f"{path} is not there; {cure}")
    if there != size:
        raise UserError(f"{path} is damaged: {there:,} bytes, not {size:,} as in {index}; {cure}")


def _note_strangers(
    folder: Path, layout: Layout, sizes: Iterable[str], shards: Iterable[str]
) -> None:
    there = {name for name in sizes if name.count("/") == 1 and name.endswith(".parquet")}
    if strangers := sorted(there.difference(shards)):
        logger.warning(
            "%s: %d files are not read, %s does not count them: %s",
            *(folder, len(strangers), layout.index, ", ".join(strangers[:3])),
        )


def _split_of(name: str) -> str:
    return name.partition("/")[0]


def _in_order(names: Iterable[str]) -> list[str]:
    # Beyond 99,999 shards the numbers grow longer.
    return sorted(names, key=lambda name: (_split_of(name), len(name), name))
