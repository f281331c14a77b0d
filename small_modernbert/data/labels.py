"""Label shards: texts, what part each plays, and a teacher's vector of each in half precision."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from small_modernbert.data import parquet
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
INDEX = "labels.json"
SPLITS = ("train", "held_out")
REMAKE = "remove its stage's folder and run: python create_distil_dataset.py"
KINDS: dict[str, parquet.Kind] = {"text": "text", "label": "numbers", "role": "text"}


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Return where shard `index` of a split lies."""
    return folder / split / f"shard-{index:05d}.parquet"


def write_shard(
    path: Path,
    texts: list[str],
    vectors: np.ndarray,
    roles: Sequence[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write one shard, atomically.

    Args:
        path: the shard.
        texts: n texts.
        vectors: `(n, dimension)`, finite.
        roles: "query", "document" or "text" of each; None for "text".
        facts: of the shard, kept with it, see `add_facts`.

    Raises:
        UserError: a vector holds NaN or infinity, or a text is blank.
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
    if blank := [row for row, text in enumerate(texts) if not text or text.isspace()]:
        raise UserError(
            f"{path}, row {blank[0]}: the text is blank, and its vector would say nothing; clean "
            "the corpus again: python mlm/create_dataset.py --overwrite"
        )
    labels = pa.FixedSizeListArray.from_arrays(pa.array(halves.reshape(-1)), halves.shape[1])
    columns = {
        "text": pa.array(texts, pa.string()),
        "label": labels,
        "role": pa.array(roles or ["text"] * len(texts), pa.string()),
    }
    table = pa.table(columns, metadata={"facts": json.dumps(facts or {})})
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.check_space(path.parent, table.nbytes)
    beside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, beside, write_page_checksum=True, compression="zstd")
    storage.fsync_path(beside)
    beside.replace(path)


def add_facts(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the facts of some shards, numbers added up, also inside of theirs."""
    total: dict[str, Any] = {}
    for path in paths:
        stored = (parquet.read_schema(path, REMAKE).metadata or {}).get(b"facts", b"{}")
        for name, value in json.loads(stored).items():
            if isinstance(value, dict):
                parts = total.setdefault(name, {})
                for part, number in value.items():
                    parts[part] = parts.get(part, 0) + number
            else:
                total[name] = total.get(name, 0) + value
    return total


@dataclass(frozen=True)
class Labels:
    """A finished folder of label shards.

    Attributes:
        folder: where `labels.json` lies.
        dimension: width of the vectors.
        rows: split -> number of rows.
        shards: split -> number of shards.
        facts: what labels.json says beside: the `teacher`'s digest, the `max_tokens` that it read
            of a text at most, its `prompts` by role, how many texts are of which of the `roles`,
            and how many of them were `cut`.
    """

    folder: Path
    dimension: int
    rows: dict[str, int]
    shards: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)

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
            UserError: a shard is missing, damaged, lacks a column, or has a row without a text or
                with a label of another width or with NaN; or the rows are not as many as the index
                says.
        """
        self._note_strangers(split)
        seen = 0
        for index in range(self.shards[split]):
            path = shard_path(self.folder, split, index)
            kinds: dict[str, parquet.Kind] = {name: KINDS[name] for name in columns}
            for batch in parquet.read_batches(path, kinds, REMAKE, own=True):
                if "label" in columns:
                    self._check_widths(path, batch.column("label"))
                seen += len(batch)
                yield batch
        if seen != self.rows[split]:
            raise UserError(
                f"{self.folder / split}: {seen:,} rows came back out of {self.rows[split]:,}; "
                f"{REMAKE}"
            )

    def _note_strangers(self, split: str) -> None:
        # The last one's name sorts last: a count of billions in a file is no reason to list them.
        end = shard_path(self.folder, split, self.shards[split]).name
        found = sorted(path.name for path in (self.folder / split).glob("*.parquet"))
        if strangers := [name for name in found if name >= end or not name.startswith("shard-")]:
            logger.warning(
                "%s: %d files are not read, %s does not count them: %s",
                *(self.folder / split, len(strangers), INDEX, ", ".join(strangers[:3])),
            )

    def _check_widths(self, path: Path, column: pa.Array) -> None:
        fixed = pa.types.is_fixed_size_list(column.type)
        widths = [column.type.list_size] if fixed else pc.list_value_length(column).to_pylist()
        if any(width != self.dimension for width in widths):
            wrong = next(width for width in widths if width != self.dimension)
            raise UserError(
                f"{path}, column 'label': a vector of {wrong} numbers, not {self.dimension} as in "
                f"{INDEX}; {REMAKE}"
            )

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of a split in order."""
        for batch in self.batches(split, ["text"]):
            yield from batch.column(0).to_pylist()

    def vectors(self, split: str, cache: Path) -> np.ndarray:
        """Return the vectors of a split, `(rows, dimension)` float16, memory-mapped from `cache`.

        The file is written on the first call; memory stays flat in the number of rows.

        Raises:
            UserError: see `batches`.
        """
        shape = (self.rows[split], self.dimension)
        if not cache.exists() or cache.stat().st_size != 2 * shape[0] * shape[1]:
            cache.parent.mkdir(parents=True, exist_ok=True)
            beside = cache.with_name(f".{cache.name}.partial")
            with beside.open("wb") as stream:
                for batch in self.batches(split, ["label"]):
                    values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                    stream.write(values.astype(np.float16, copy=False).tobytes())
            storage.fsync_path(beside)
            beside.replace(cache)
        if shape[0] == 0:
            return np.zeros(shape, dtype=np.float16)
        return np.memmap(cache, dtype=np.float16, mode="r", shape=shape)


def open_labels(folder: Path) -> Labels:
    """Open a folder of label shards.

    Raises:
        UserError: it holds none, or a labels.json that is not ours.
    """
    index = storage.read_json(folder / INDEX, "run: python create_distil_dataset.py")
    kinds = {"dimension": int, "rows": dict, "shards": dict}
    parquet.check_index(folder / INDEX, index, kinds, SPLITS, REMAKE)
    facts = {name: value for name, value in index.items() if name not in kinds}
    return Labels(folder, index["dimension"], index["rows"], index["shards"], facts)
