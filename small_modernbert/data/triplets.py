"""Judged triplets: what relabel_triplets.py writes, an anchor with a scored positive and negatives.

{train,dev}/shard-*.parquet    anchor, positive, negatives, positive_score, negative_scores,
                               source, role (of the anchor, see `sources.PairSource`)
triplets.json                  the shards, judge, scale, counts per source
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from small_modernbert.data import parquet, shards
from small_modernbert.data.shards import shard_path as shard_path
from small_modernbert.runs.errors import UserError

SPLITS = ("train", "dev")
BOUNDS = {"logit": (-1e4, 1e4)}  # of scores by their scale; all others are from 0 to 1
SCHEMA = pa.schema(
    [
        ("anchor", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("positive_score", pa.float32()),
        ("negative_scores", pa.list_(pa.float32())),
        ("source", pa.string()),
        ("role", pa.string()),
    ]
)
LAYOUT = shards.Layout(
    index="triplets.json",
    columns={
        "anchor": "text",
        "positive": "text",
        "negatives": "texts",
        "positive_score": "number",
        "negative_scores": "numbers",
        "source": "text",
        "role": "text",
    },
    splits=SPLITS,
    cure="run: python relabel_triplets.py --overwrite",
    facts={"judge": str, "scale": str},
)


def write_shard(
    path: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any], scale: str = "sigmoid"
) -> None:
    """Write judged rows with the columns of SCHEMA, atomically; it may hold no row.

    Args:
        path: the shard.
        rows: column -> value.
        facts: what happened on the way, as JSON can carry it; see `read_facts`.
        scale: of the scores, see `Triplets.scale`.

    Raises:
        UserError: a score is not on the scale, or there is not one for each negative.
    """
    low, high = BOUNDS.get(scale, (0.0, 1.0))
    for number, row in enumerate(rows):
        scores = [row["positive_score"], *row["negative_scores"]]
        fits = len(row["negatives"]) == len(scores) - 1
        if not fits or not all(low <= score <= high for score in scores):
            raise UserError(
                f"{path}, row {number} ({row['anchor'][:80]!r}): the judge's scores {scores} are "
                f"not one from {low:g} to {high:g} for each text; judge in full precision: "
                "python relabel_triplets.py --precision fp32 --overwrite"
            )
    schema = SCHEMA.with_metadata({"facts": json.dumps(facts, sort_keys=True)})
    whole = [{"role": "query", **row} for row in rows]
    shards.write_shard(path, pa.Table.from_pylist(whole, schema=schema), schema)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that `write_shard` put beside the rows.

    Raises:
        UserError: the shard is damaged, or holds none.
    """
    stored = (parquet.read_schema(path, LAYOUT.cure).metadata or {}).get(b"facts", b"")
    try:
        facts = json.loads(stored)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds no facts of its rows; {LAYOUT.cure}")
    return facts


def write_index(folder: Path, counts: Mapping[str, int], facts: Mapping[str, Any]) -> None:
    """Write triplets.json, which makes a folder of judged shards complete.

    Args:
        folder: with all the shards.
        counts: split -> number of its shards.
        facts: "judge": who scored, "scale": what a score is, see `Triplets`; others may be added.
    """
    shards.write_index(folder, LAYOUT, counts, facts)


class Triplets(shards.ShardFolder):
    """A finished folder of judged triplets."""

    @property
    def judge(self) -> str:
        """Who scored them: a name or hub id."""
        return self.index["judge"]

    @property
    def scale(self) -> str:
        """What a score is: the "logit" of a cross-encoder, its "sigmoid", or a "cosine".

        Sigmoids and cosines are from 0 to 1, negative cosines at 0. A margin of logits is no margin
        of sigmoids or cosines: whoever trains on margins asks for the kind.
        """
        return self.index["scale"]

    def check_batch(self, path: Path, batch: pa.RecordBatch) -> None:
        """Refuse scores that are not on the scale, or not one for each negative."""
        names = set(batch.schema.names)
        low, high = BOUNDS.get(self.scale, (0.0, 1.0))
        for name in names & {"positive_score", "negative_scores"}:
            column = batch.column(name)
            values = pc.list_flatten(column) if pa.types.is_nested(column.type) else column
            inside = pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))
            if not pc.all(inside, min_count=0).as_py():
                raise UserError(
                    f"{path}, column {name!r}: a score is not from {low:g} to {high:g}; {self.cure}"
                )
        lists = ("negatives", "negative_scores")
        if names.issuperset(lists):
            texts, scores = (pc.list_value_length(batch.column(name)) for name in lists)
            if not texts.equals(scores):
                raise UserError(f"{path}: a row has not one score for each negative; {self.cure}")

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split in order: column -> value; lists are Python lists."""
        for batch in self.batches(split):
            yield from batch.to_pylist()


def open_triplets(folder: Path) -> Triplets:
    """Open a folder of judged triplets.

    Raises:
        UserError: it holds none, see `shards.read_index`.
    """
    return Triplets(folder, LAYOUT, shards.read_index(folder, LAYOUT))
