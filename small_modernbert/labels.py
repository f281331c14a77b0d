"""Label shards: Parquet files with the columns `text` and `label`, a teacher's vector in fp16."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from small_modernbert import storage
from small_modernbert.errors import UserError

INDEX = "labels.json"


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Return where shard `index` of a split lies."""
    return folder / split / f"shard-{index:05d}.parquet"


def write_shard(path: Path, texts: list[str], vectors: np.ndarray) -> None:
    """Write one shard, atomically.

    Args:
        path: the shard.
        texts: n texts.
        vectors: `(n, dimension)`, finite.

    Raises:
        UserError: a vector holds NaN or infinity.
        ValueError: the numbers of rows differ.
    """
    if len(texts) != len(vectors):
        raise ValueError(f"{len(texts)} texts for {len(vectors)} vectors")
    halves = np.ascontiguousarray(vectors, dtype=np.float16)
    if not np.isfinite(halves).all():
        row = int(np.flatnonzero(~np.isfinite(halves).all(axis=1))[0])
        raise UserError(
            f"{path}, row {row}: the teacher's vector holds NaN or infinity; look at the text: "
            f"{texts[row][:80]!r}"
        )
    labels = pa.FixedSizeListArray.from_arrays(pa.array(halves.reshape(-1)), halves.shape[1])
    table = pa.table({"text": pa.array(texts, pa.string()), "label": labels})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, beside, write_page_checksum=True, compression="zstd")
    storage.fsync_path(beside)
    beside.replace(path)


@dataclass(frozen=True)
class Labels:
    """A finished folder of label shards.

    Attributes:
        folder: where `labels.json` lies.
        dimension: width of the vectors.
        rows: split -> number of rows.
        shards: split -> number of shards.
    """

    folder: Path
    dimension: int
    rows: dict[str, int]
    shards: dict[str, int]

    def check_width(self, hidden_size: int) -> None:
        """Refuse labels that are not as wide as the student.

        Raises:
            UserError: with the command that labels again for this student.
        """
        if hidden_size != self.dimension:
            raise UserError(
                f"the labels in {self.folder} are {self.dimension} wide and the student "
                f"{hidden_size}; label again for this student: python create_distil_dataset.py "
                f"--dimension {hidden_size}"
            )

    def batches(self, split: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the record batches of a split in order, checksums verified.

        Raises:
            UserError: a shard is missing, damaged, or lacks a column.
        """
        for index in range(self.shards[split]):
            path = shard_path(self.folder, split, index)
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    missing = set(columns) - set(file.schema_arrow.names)
                    if missing:
                        raise UserError(f"{path} has no column {sorted(missing)[0]!r}")
                    yield from file.iter_batches(columns=columns)
            except (OSError, pa.ArrowException) as error:
                raise UserError(
                    f"{path} cannot be read ({error}); remove its stage's folder and run: "
                    "python create_distil_dataset.py"
                ) from None

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of a split in order."""
        for batch in self.batches(split, ["text"]):
            yield from batch.column(0).to_pylist()

    def vectors(self, split: str, cache: Path) -> np.ndarray:
        """Return the vectors of a split, `(rows, dimension)` float16, memory-mapped from `cache`.

        The file is written on the first call; memory stays flat in the number of rows.
        """
        shape = (self.rows[split], self.dimension)
        if not cache.exists() or cache.stat().st_size != 2 * shape[0] * shape[1]:
            cache.parent.mkdir(parents=True, exist_ok=True)
            beside = cache.with_name(f".{cache.name}.partial")
            with beside.open("wb") as stream:
                for batch in self.batches(split, ["label"]):
                    column = batch.column(0)
                    stream.write(column.flatten().to_numpy(zero_copy_only=False).tobytes())
            if beside.stat().st_size != 2 * shape[0] * shape[1]:
                raise UserError(
                    f"{self.folder}/{split}: the vectors are not {shape[0]:,} of {shape[1]} numbers"
                )
            beside.replace(cache)
        if shape[0] == 0:
            return np.zeros(shape, dtype=np.float16)
        return np.memmap(cache, dtype=np.float16, mode="r", shape=shape)


def open_labels(folder: Path) -> Labels:
    """Open a folder of label shards.

    Raises:
        UserError: it holds none.
    """
    index = storage.read_json(folder / INDEX, "run: python create_distil_dataset.py")
    return Labels(folder, index["dimension"], index["rows"], index["shards"])
