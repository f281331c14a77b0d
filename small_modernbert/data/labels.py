"""Label shards: texts, what part each plays, and a teacher's vector of each in half precision.

{train,held_out}/shard-*.parquet    text, label, role
labels.json                         the shards, the width of the vectors, how the teacher read
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from small_modernbert.data import outlets, shards
from small_modernbert.data.shards import shard_path as shard_path
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

SPLITS = ("train", "held_out")
LAYOUT = shards.Layout(
    index="labels.json",
    columns={"text": "text", "label": "numbers", "role": "text"},
    splits=SPLITS,
    cure="run: python create_distil_dataset.py --overwrite",
    facts={"dimension": int},
)


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
    _check(path, texts, halves)
    labels = pa.FixedSizeListArray.from_arrays(pa.array(halves.reshape(-1)), halves.shape[1])
    columns = {
        "text": pa.array(texts, pa.string()),
        "label": labels,
        "role": pa.array(roles or ["text"] * len(texts), pa.string()),
    }
    table = pa.table(columns, metadata={"facts": json.dumps(facts or {})})
    shards.write_shard(path, table, table.schema)


def _check(path: Path, texts: list[str], halves: np.ndarray) -> None:
    if not np.isfinite(halves).all():
        row = int(np.flatnonzero(~np.isfinite(halves).all(axis=1))[0])
        raise UserError(
            f"{path}, row {row}: the teacher's vector of {texts[row][:80]!r} holds NaN or "
            "infinity; label in full precision: python create_distil_dataset.py --overwrite "
            "--precision fp32"
        )
    if blank := [row for row, text in enumerate(texts) if not text or text.isspace()]:
        raise UserError(
            f"{path}, row {blank[0]}: the text is blank, and its vector would say nothing; clean "
            "the corpus again: python mlm/create_dataset.py --overwrite"
        )


def add_facts(paths: Iterable[Path], outlet: outlets.Outlet = shards.HERE) -> dict[str, Any]:
    """Return the facts of some shards, numbers added up, also inside of theirs."""
    total: dict[str, Any] = {}
    for path in paths:
        for name, value in outlet.facts_of(path, LAYOUT.cure).items():
            if isinstance(value, dict):
                parts = total.setdefault(name, {})
                for part, number in value.items():
                    parts[part] = parts.get(part, 0) + number
            else:
                total[name] = total.get(name, 0) + value
    return total


def write_index(
    folder: Path,
    dimension: int,
    counts: Mapping[str, int],
    facts: Mapping[str, Any] | None = None,
    outlet: outlets.Outlet = shards.HERE,
) -> None:
    """Write labels.json, which makes a folder of label shards complete.

    Args:
        folder: with all the shards.
        dimension: width of the vectors.
        counts: split -> number of its shards.
        facts: what else is said of them: the `teacher`'s digest, the `max_tokens` that it read of
            a text at most, its `prompts` by role, how many texts are of which of the `roles`, and
            how many of them were `cut`.
        outlet: where the shards have gone.
    """
    facts = {"dimension": dimension, **(facts or {})}
    shards.write_index(folder, LAYOUT, counts, facts, outlet)


class Labels(shards.ShardFolder):
    """A finished folder of label shards."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.index["dimension"]

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

    def check_batch(self, path: Path, batch: pa.RecordBatch) -> None:
        """Refuse vectors that are not as wide as the index says."""
        if "label" not in batch.schema.names:
            return
        column = batch.column("label")
        fixed = pa.types.is_fixed_size_list(column.type)
        widths = [column.type.list_size] if fixed else pc.list_value_length(column).to_pylist()
        wrong = [width for width in widths if width != self.dimension]
        if wrong:
            raise UserError(
                f"{path}, column 'label': a vector of {wrong[0]} numbers, not {self.dimension} as "
                f"in {LAYOUT.index}; {self.cure}"
            )

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of a split in order."""
        return self.column(split, "text")

    def vectors(self, split: str, cache: Path) -> np.ndarray:
        """Return the vectors of a split, `(rows, dimension)` float16, memory-mapped from `cache`.

        The file is written on the first call; memory stays flat in the number of rows.

        Raises:
            UserError: see `batches`.
        """
        shape = (self.counts[split], self.dimension)
        if not cache.exists() or cache.stat().st_size != 2 * shape[0] * shape[1]:
            with storage.replacing(cache) as place, place.open("wb") as stream:
                for batch in self.batches(split, ["label"]):
                    values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                    stream.write(values.astype(np.float16, copy=False).tobytes())
        if shape[0] == 0:
            return np.zeros(shape, dtype=np.float16)
        return np.memmap(cache, dtype=np.float16, mode="r", shape=shape)


def open_labels(folder: Path) -> Labels:
    """Open a folder of label shards.

    Raises:
        UserError: it holds none, see `shards.read_index`.
    """
    return Labels(folder, LAYOUT, shards.read_index(folder, LAYOUT))
