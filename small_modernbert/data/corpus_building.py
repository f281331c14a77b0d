"""From sources to shards through the disk, so that memory does not grow with the texts.

Each source is cleaned, cut and fingerprinted once, into a *spill* of its own: a Parquet file and,
written last, its counts, which mark it as done. What is kept and in which order is decided on the
fingerprints of all of them (see selection.py); then the texts are read once more and scattered to
the shards. A rerun after a kill takes up the spills that are done.

Memory: one batch of rows while a spill is written; one shard of texts, or `SCATTER_ROWS` of them,
while the shards are. Disk: beside the texts, 2 × permutations + 8 × bands bytes a row.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from small_modernbert.data import corpora, workers
from small_modernbert.data.cleaning import Chunker, Reason, clean
from small_modernbert.data.duplicates import MinHash, text_key
from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError

# Rows in memory before they are handed to the files of their shards.
SCATTER_ROWS = 50_000
ROWS, COUNTS = "rows.parquet", "done.json"


@dataclasses.dataclass(frozen=True)
class Spill:
    """A source's cleaned rows on disk."""

    folder: Path
    counts: dict[str, dict[str, int]]  # label -> "read", "extra chunks" and reasons -> texts

    @property
    def rows(self) -> int:
        """Number of rows."""
        return pq.read_metadata(self.folder / ROWS).num_rows

    def batches(self, columns: list[str]) -> Iterator["pa.RecordBatch"]:
        """Yield its rows in order.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / ROWS
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            yield from file.iter_batches(corpora.READ_ROWS, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} is damaged ({error}); remove {self.folder} and run the same command again"
            ) from None

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers."""
        parts = [batch.column(0).to_numpy() for batch in self.batches([name])]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def label_numbers(self, labels: list[str]) -> NDArray[np.int32]:
        """Return every row's label as its place in `labels`."""
        known = pa.array(labels, pa.string())
        places = (pc.index_in(batch.column(0), known) for batch in self.batches(["source"]))
        parts = [place.to_numpy(zero_copy_only=False) for place in places]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def signatures(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return (rows, permutations) signatures of some rows, given in ascending order."""
        parts, begin, width = [], 0, 0
        for batch in self.batches(["signature"]):
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
    """

    source: corpora.Source
    tokenizer_file: Path
    max_tokens: int
    minhash: MinHash | None
    min_characters: int

    @property
    def schema(self) -> pa.Schema:
        """The columns of a spill."""
        fields = [*corpora.shard_schema(), pa.field("key", pa.uint64())]
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
        counts: dict[str, Counter[str]] = {}
        texts, labels = [], []
        for cell, label in corpora.flatten(self.source, batch):
            counter = counts.setdefault(label, Counter())
            counter["read"] += 1
            text = clean(cell, self.min_characters)
            if isinstance(text, Reason):
                counter[text] += 1
            else:
                texts.append(text)
                labels.append(label)
        chunker = _chunker(self.tokenizer_file, self.max_tokens)
        chunked = chunker.chunk(texts)
        for pieces, label in zip(chunked, labels, strict=True):
            counts[label]["extra chunks"] += len(pieces) - 1
        kept = [text for pieces in chunked for text, _ in pieces]
        columns: list[Any] = [
            pa.array(kept, pa.string()),
            pa.array(
                [label for pieces, label in zip(chunked, labels, strict=True) for _ in pieces],
                pa.string(),
            ),
            pa.array([tokens for pieces in chunked for _, tokens in pieces], pa.int32()),
            pa.array([text_key(text) for text in kept], pa.uint64()),
        ]
        if self.minhash is not None:
            signatures = self.minhash.signatures(chunker.words.ids(kept))
            columns.append(
                pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(2 * self.minhash.permutations),
                    len(kept),
                    [None, pa.py_buffer(np.ascontiguousarray(signatures))],
                )
            )
            columns += [pa.array(hashes) for hashes in self.minhash.band_hashes(signatures).T]
        rows = len(batch[self.source.columns[0]])
        return rows, pa.RecordBatch.from_arrays(columns, schema=self.schema), counts


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
        executor: the processes that prepare; see `workers.pool`.
    """
    done = folder / COUNTS
    if done.exists():
        return Spill(folder, storage.read_json(done, f"remove {folder} and run again"))
    storage.remove(folder)
    folder.mkdir(parents=True)
    counts: dict[str, Counter[str]] = {}
    source = preparation.source
    total = corpora.count_source(source)
    batches = corpora.read_source(source, seed)
    with (
        pq.ParquetWriter(
            folder / ROWS, preparation.schema, compression="lz4", write_page_checksum=True
        ) as writer,
        report.progress(description=f"read {source.name}", total=total, unit=" rows") as bar,
    ):
        for rows, prepared, found in workers.ordered_map(executor, preparation, batches):
            for label, counter in found.items():
                counts.setdefault(label, Counter()).update(counter)
            if prepared.num_rows:
                writer.write_batch(prepared)
            bar.update(rows)
    storage.fsync_path(folder / ROWS)
    storage.write_json(done, counts)
    return Spill(folder, {label: dict(counter) for label, counter in counts.items()})


def write_shards(
    spills: list[Spill],
    places: NDArray[np.int64],
    held_out_rows: int,
    shard_rows: int,
    folder: Path,
    scratch: Path,
) -> dict[str, dict[str, Any]]:
    """Write the kept rows in their order to `folder`; return the manifest's entries.

    Rows go to one file a shard in `scratch` as they are read, and each shard is put in order in
    memory afterwards.

    Args:
        spills: the rows.
        places: of every row of all spills in the order wanted; -1 leaves a row out.
        held_out_rows: so many of the first places are the held-out shard.
        shard_rows: rows of a training shard.
        folder: of the corpus.
        scratch: a folder to use and to remove.
    """
    held_out = [(f"held_out/shard-{0:05d}.parquet", 0, held_out_rows)] if held_out_rows else []
    kept = int((places >= 0).sum())
    train = [
        (f"train/shard-{number:05d}.parquet", begin, min(begin + shard_rows, kept))
        for number, begin in enumerate(range(held_out_rows, kept, shard_rows))
    ]
    shards = held_out + train
    storage.remove(scratch)
    scratch.mkdir(parents=True)
    _scatter(spills, places, np.array([begin for _, begin, _ in shards]), scratch)
    entries = {}
    for number, (name, _, _) in enumerate(
        report.progress(shards, description="write shards", unit=" shards")
    ):
        path = scratch / str(number)
        with pa.OSFile(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
            table = reader.read_all()
        table = table.sort_by("place").drop_columns(["place"])
        entries[name] = corpora.write_shard(folder / name, table)
        storage.remove(path)
    storage.remove(scratch)
    return entries


def _scatter(
    spills: list[Spill], places: NDArray[np.int64], begins: NDArray[np.int64], scratch: Path
) -> None:
    schema = corpora.shard_schema().append(pa.field("place", pa.int64()))
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
        for batch in spill.batches(corpora.shard_schema().names):
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
