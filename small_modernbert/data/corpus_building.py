"""From sources to shards through the disk, so that memory does not grow with the texts.

Each source is cleaned, cut and fingerprinted once, into a *spill* of its own: a folder of one
shard, or of one for each part of the source (see corpus_tasks.py). What is kept and in which order
is decided on the fingerprints of all of them (see corpus_selection.py); then the texts are read
once more and scattered to the shards. A rerun after a kill takes up the spills that are done.

Memory: one batch of rows while a spill is written; one shard of texts, or `SCATTER_ROWS` of them,
while the shards are. Disk: beside the texts, 2 × permutations + 8 × bands bytes a row.
"""

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from small_modernbert.data import corpus, parquet, shards, sources, workers
from small_modernbert.data.chunking import Chunker
from small_modernbert.data.cleaning import Cleaning, Reason, clean
from small_modernbert.data.duplicates import MinHash, word_ids
from small_modernbert.data.keys import text_key
from small_modernbert.data.leaks import LeakFilter, read_filter
from small_modernbert.data.outlets import Outlet
from small_modernbert.runs import report, storage

# Rows in memory before they are handed to the files of their shards.
SCATTER_ROWS = 50_000

# What is read of a row again and again is not its text; fingerprints are any columns beside these.
SPILL = shards.Layout(
    index="spill.json",
    columns=corpus.LAYOUT.columns,
    splits=("rows",),
    cure="remove {folder} and run the same command again",
    facts={"counts": dict},
)


class Spill(shards.ShardFolder):
    """A source's cleaned rows on disk."""

    @property
    def source_counts(self) -> dict[str, dict[str, int]]:
        """Label -> "read", "extra chunks" and reasons -> texts."""
        return self.index["counts"]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.counts["rows"]

    def columns(self, *names: str) -> Iterator[pa.RecordBatch]:
        """Yield some columns of the rows, in order; see `shards.ShardFolder.batches`."""
        return self.batches("rows", names, sources.READ_ROWS)

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers."""
        parts = [batch.column(0).to_numpy() for batch in self.columns(name)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def label_numbers(self, labels: list[str]) -> NDArray[np.int32]:
        """Return every row's label as its place in `labels`."""
        known = pa.array(labels, pa.string())
        places = (pc.index_in(batch.column(0), known) for batch in self.columns("source"))
        parts = [place.to_numpy(zero_copy_only=False) for place in places]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def signatures(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return (rows, permutations) signatures of some rows, given in ascending order."""
        parts, begin, width = [], 0, 0
        for batch in self.columns("signature"):
            low, high = np.searchsorted(rows, (begin, begin + batch.num_rows))
            column = batch.column(0)
            width = column.type.byte_width // 2
            parts.extend(column.take(pa.array(rows[low:high] - begin)).to_pylist())
            begin += batch.num_rows
        return np.frombuffer(b"".join(parts), dtype=np.uint16).reshape(len(parts), width)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What becomes of a batch of a source's rows; it travels to the processes that do it.

    Attributes:
        source: where the rows are from.
        tokenizer_file: a tokenizer.json, which cuts and counts.
        max_tokens: of a text.
        minhash: None for no fingerprints for near duplicates.
        min_characters: see `cleaning.clean`.
        cleaning: likewise.
        leaks: a file of evaluation texts that no row may hold, see `leaks.read_filter`; None for
            none. It is a file, because each process reads it once, and this travels often.
    """

    source: sources.TextSource
    tokenizer_file: Path
    max_tokens: int
    minhash: MinHash | None
    min_characters: int
    cleaning: Cleaning = "none"
    leaks: Path | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns of a spill."""
        fields = [*corpus.SCHEMA, pa.field("key", pa.uint64())]
        if self.minhash is not None:
            fields.append(pa.field("signature", pa.binary(2 * self.minhash.permutations)))
            fields += [pa.field(f"band{band}", pa.uint64()) for band in range(self.minhash.bands)]
        return pa.schema(fields)

    def __call__(
        self, batch: dict[str, list[Any]]
    ) -> tuple[int, pa.RecordBatch, dict[str, Counter[str]]]:
        """Return the number of rows given, what is left of them, and what became of each.

        The counts are label -> "read", "extra chunks" and reasons -> texts.
        """
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        texts: list[str] = []
        kept: list[sources.Cell] = []
        for cell in sources.flatten(self.source, batch):
            counter = counts[cell.label]
            counter["read"] += 1
            text = clean(cell.value, self.min_characters, self.cleaning)
            if isinstance(text, Reason):
                counter[text] += 1
            else:
                texts.append(text)
                kept.append(cell)
        chunker = _chunker(self.tokenizer_file, self.max_tokens)
        rows: list[tuple[str, str, str, int]] = []
        ids: list[list[int]] = []
        for pieces, cell in zip(chunker.chunk(texts), kept, strict=True):
            counts[cell.label]["extra chunks"] += len(pieces) - 1
            rows.extend((text, cell.label, cell.role, len(own)) for text, own in pieces)
            ids.extend(own for _, own in pieces)
        reasons = [
            self._find_fault(row[0], chunker.knows(own)) for row, own in zip(rows, ids, strict=True)
        ]
        for row, reason in zip(rows, reasons, strict=True):
            if reason is not None:
                counts[row[1]][reason] += 1
        good = [reason is None for reason in reasons]
        rows, ids = list(compress(rows, good)), list(compress(ids, good))
        columns = zip(*rows, strict=True) if rows else [[] for _ in corpus.SCHEMA]
        arrays = [
            pa.array(cells, field.type) for cells, field in zip(columns, corpus.SCHEMA, strict=True)
        ]
        arrays += self._fingerprints([row[0] for row in rows], ids, chunker.unknown)
        read = len(batch[self.source.columns[0]])
        return read, pa.RecordBatch.from_arrays(arrays, schema=self.schema), counts

    def _find_fault(self, text: str, known: bool) -> Reason | None:
        """Return why a text that fits is dropped all the same."""
        if not known:
            return Reason.UNKNOWN
        if self.leaks is not None and _leaks(self.leaks).find(text) is not None:
            return Reason.LEAK
        return None

    def _fingerprints(
        self, texts: list[str], ids: list[list[int]], unknown: int | None
    ) -> list[pa.Array]:
        """Return the columns by which duplicates are known."""
        keys = pa.array([text_key(text) for text in texts], pa.uint64())
        if self.minhash is None:
            return [keys]
        # What the tokenizer does not know would look alike in every text: then words are compared.
        shingled = [
            word_ids(text) if unknown in tokens else tokens
            for text, tokens in zip(texts, ids, strict=True)
        ]
        signatures = self.minhash.signatures(shingled)
        stored = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(2 * self.minhash.permutations),
            len(texts),
            [None, pa.py_buffer(np.ascontiguousarray(signatures))],
        )
        return [keys, stored, *map(pa.array, self.minhash.band_hashes(signatures).T)]


@functools.lru_cache(maxsize=1)
def _leaks(path: Path) -> LeakFilter:
    return read_filter(path)


@functools.lru_cache(maxsize=1)
def _chunker(tokenizer_file: Path, max_tokens: int) -> Chunker:
    from tokenizers import Tokenizer

    return Chunker(Tokenizer.from_file(str(tokenizer_file)), max_tokens)


def write_spill(
    folder: Path, preparation: Preparation, seed: int, executor: Executor | None = None
) -> Spill:
    """Clean, cut and fingerprint one source into `folder`, or take up what is done there.

    Args:
        folder: of this source alone.
        preparation: of its rows.
        seed: of a capped source's choice of rows.
        executor: processes that share the work; None = this one.
    """
    if not (folder / SPILL.index).exists():
        storage.remove(folder)
        source = preparation.source
        total = sources.count_source(source)
        with report.progress(description=f"read {source.name}", total=total, unit=" rows") as bar:
            whole = sources.Part()
            write_part(folder, 0, preparation, whole, seed, executor=executor, advance=bar.update)
    return join_parts(folder, preparation, 1)


def write_part(
    folder: Path,
    number: int,
    preparation: Preparation,
    part: sources.Part,
    seed: int,
    *,
    executor: Executor | None = None,
    advance: Callable[[int], object] = lambda rows: None,
) -> Counter[str]:
    """Clean, cut and fingerprint a part of a source: one shard of its spill, and its counts.

    Args:
        folder: of the spill.
        number: of the part.
        preparation: of its rows.
        part: which rows.
        seed: of a capped source's choice of rows.
        executor: processes that share the work; None = this one.
        advance: told of the rows that were read.

    Returns:
        "read", "extra chunks" and reasons -> texts.
    """
    counts: dict[str, Counter[str]] = {}
    batches = sources.read_part(preparation.source, part, seed)

    def prepared() -> Iterator[pa.RecordBatch]:
        for rows, batch, counted in workers.ordered_map(executor, preparation, batches):
            _add_counts(counts, counted)
            if batch.num_rows:
                yield batch
            advance(rows)

    shards.write_shard(shards.shard_path(folder, "rows", number), prepared(), preparation.schema)
    storage.write_json(_counts_path(folder, number), counts)
    return sum(counts.values(), Counter())


def join_parts(folder: Path, preparation: Preparation, parts: int) -> Spill:
    """Make one spill of the parts of a source, whoever wrote them, and open it."""
    if not (folder / SPILL.index).exists():
        counts: dict[str, Counter[str]] = {}
        for number in range(parts):
            path = _counts_path(folder, number)
            _add_counts(counts, storage.read_json(path, "run the same command again"))
        shards.write_index(folder, SPILL, {"rows": parts}, {"counts": counts})
    return open_spill(folder, preparation.schema)


def _add_counts(counts: dict[str, Counter[str]], more: Mapping[str, Mapping[str, int]]) -> None:
    for label, counter in more.items():
        counts.setdefault(label, Counter()).update(counter)


def _counts_path(folder: Path, number: int) -> Path:
    return folder / "counts" / f"{number:05d}.json"


def open_spill(folder: Path, schema: pa.Schema) -> Spill:
    """Open a source's cleaned rows with all the columns that they have."""
    kinds: dict[str, parquet.Kind] = {
        field.name: SPILL.columns.get(field.name, "any") for field in schema
    }
    layout = dataclasses.replace(SPILL, columns=kinds)
    return Spill(folder, layout, shards.read_index(folder, layout))


def write_shards(
    spills: list[Spill],
    places: NDArray[np.int64],
    held_out_rows: int,
    shard_rows: int,
    folder: Path,
    scratch: Path,
    outlet: Outlet = shards.HERE,
) -> dict[str, int]:
    """Write the kept rows in their order to `folder`; return the number of shards by split.

    Rows go to one file a shard in `scratch` as they are read, and each shard is put in order in
    memory afterwards.

    Args:
        spills: the rows.
        places: of every row of all spills in the order wanted; -1 leaves a row out.
        held_out_rows: so many of the first places are the held-out shard.
        shard_rows: rows of a training shard.
        folder: of the corpus.
        scratch: a folder to use and to remove.
        outlet: where the shards go.
    """
    kept = int((places >= 0).sum())
    begins = {
        "held_out": [0] if held_out_rows else [],
        "train": list(range(held_out_rows, kept, shard_rows)),
    }
    paths = [
        shards.shard_path(folder, split, number)
        for split, starts in begins.items()
        for number in range(len(starts))
    ]
    storage.remove(scratch)
    scratch.mkdir(parents=True)
    _scatter(spills, places, np.array(sum(begins.values(), [])), scratch)
    for number, path in enumerate(
        report.progress(paths, description="write shards", unit=" shards")
    ):
        _sort_shard(scratch / str(number), path)
        outlet.send(path)
    storage.remove(scratch)
    return {split: len(starts) for split, starts in begins.items()}


def _sort_shard(part: Path, path: Path) -> None:
    """Write a shard from the file that its rows were scattered to, and remove that."""
    with pa.OSFile(str(part)) as stream, pa.ipc.open_stream(stream) as reader:
        table = reader.read_all().sort_by("place").drop_columns(["place"])
    shards.write_shard(path, table, corpus.SCHEMA)
    storage.remove(part)


def _scatter(
    spills: list[Spill], places: NDArray[np.int64], begins: NDArray[np.int64], scratch: Path
) -> None:
    schema = corpus.SCHEMA.append(pa.field("place", pa.int64()))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    writers = [
        pa.ipc.new_stream(str(scratch / str(number)), schema, options=options)
        for number in range(len(begins))
    ]

    def flush(waiting: list[pa.RecordBatch]) -> None:
        table = pa.Table.from_batches(waiting, schema)
        shard = np.searchsorted(begins, table["place"].to_numpy(), side="right") - 1
        for number in np.unique(shard).tolist():
            writers[number].write_table(table.filter(pa.array(shard == number)))

    waiting: list[pa.RecordBatch] = []
    begin = held = 0
    for spill in spills:
        for batch in spill.columns(*corpus.SCHEMA.names):
            end = begin + batch.num_rows
            batch = batch.append_column("place", pa.array(places[begin:end]))
            waiting.append(batch.filter(pa.array(places[begin:end] >= 0)))
            begin = end
            held += waiting[-1].num_rows
            if held >= SCATTER_ROWS:
                flush(waiting)
                waiting, held = [], 0
    flush(waiting)
    for writer in writers:
        writer.close()
