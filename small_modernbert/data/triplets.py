"""Pairs and triplets of texts: where they come from, how they are cleaned, and judged shards.

A pair is an anchor (question, goal, sentence) and its positive, with any number of negatives.
`read_pairs` reads raw ones; `open_triplets` reads those that relabel_triplets.py has judged:

    final/triplets.json                   rows and shards per split, judge, scale, counts per source
    final/{train,dev}/shard-*.parquet     anchor, positive, negatives, positive_score,
                                          negative_scores, source
"""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from small_modernbert.data import corpora, parquet
from small_modernbert.data.cleaning import Reason, clean
from small_modernbert.data.duplicates import text_key
from small_modernbert.data.leaks import RowCounts, words_of
from small_modernbert.data.pair_sources import INDEX, find_sources
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
SPLITS = ("train", "dev")
REPEATED = "repeated pair"
NOT_ASKED_FOR = "not asked for"
IN_ORDER = frozenset({REPEATED, NOT_ASKED_FOR})  # reasons that say nothing against a source
REMAKE = "run: python relabel_triplets.py --overwrite"
SCHEMA = pa.schema(
    [
        ("anchor", pa.string()),
        ("positive", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("positive_score", pa.float32()),
        ("negative_scores", pa.list_(pa.float32())),
        ("source", pa.string()),
    ]
)
KINDS: dict[str, parquet.Kind] = {
    "anchor": "text",
    "positive": "text",
    "negatives": "texts",
    "positive_score": "number",
    "negative_scores": "numbers",
    "source": "text",
}
# A dev split of a few large groups would measure a few texts many times over.
SMALL_GROUP = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """An anchor with its positive, negatives if any came along, and where it is from."""

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    source: str


class PairCounts(RowCounts):
    """Pairs read, kept and dropped, and negatives taken out of kept ones, by source and reason."""

    def __init__(self) -> None:
        super().__init__()
        self.negatives: dict[str, Counter[str]] = {}

    def move(self, source: str, reason: str, number: int) -> None:
        """Count kept rows as dropped after all."""
        self.kept[source] -= number
        if number:
            self.dropped.setdefault(source, Counter())[reason] += number

    def drop_negatives(self, source: str, reason: str, number: int = 1) -> None:
        """Count negatives that were taken out of a row that stays."""
        self.negatives.setdefault(source, Counter())[reason] += number

    def to_json(self) -> dict[str, dict[str, object]]:
        """Return what `RowCounts` does, with `negatives_dropped` for every source."""
        return {
            source: {**row, "negatives_dropped": dict(self.negatives.get(source, Counter()))}
            for source, row in super().to_json().items()
        }


def check_sources(only: Sequence[str], counts: PairCounts) -> None:
    """Refuse sources that no row read was of.

    Raises:
        UserError: naming them, and those that there are.
    """
    if unknown := [source for source in only if source not in counts.read]:
        raise UserError(
            f"no row is of the source {', '.join(unknown)}; --sources takes some of: "
            f"{', '.join(counts.read)}"
        )


def read_pairs(
    *references: str | Path,
    seed: int = 42,
    split: str | None = None,
    cap: int | None = None,
    counts: PairCounts | None = None,
    max_lost: float = 1.0,
) -> Iterator[Pair]:
    """Yield the cleaned pairs of some sources, one after the other, in their order.

    Texts are cleaned as `cleaning.clean` does. Dropped, and counted, are rows whose anchor or
    positive is no usable text, whose positive is the anchor again, and pairs that came before.
    Negatives that are no usable text, or equal the anchor, the positive or one another, are taken
    out of their row.

    Args:
        references: see `find_sources`; all are validated before the first row is read.
        seed: of the choice where a source is capped.
        split: of hub datasets, instead of the table's.
        cap: rows to read of every source, instead of the table's; 0 = all.
        counts: what was read, kept and dropped is added here.
        max_lost: share of a source's rows that may be no use, see `corpora.check_lost`.

    Raises:
        UserError: a source is not there, can't be reached, has other columns, or too many rows
            that are no use.
    """
    counts = PairCounts() if counts is None else counts
    changes = {"split": split, "cap": cap}
    changes = {name: value for name, value in changes.items() if value is not None}
    sources = [
        dataclasses.replace(source, **changes) for one in references for source in find_sources(one)
    ]
    seen: set[int] = set()
    for source in sources:
        for batch in corpora.read_source(source.rows, seed):
            columns = [batch[name] for name in (source.anchor, source.positive, *source.negatives)]
            labels = batch[source.label] if source.label else [source.name] * len(columns[0])
            for label, anchor, positive, *negatives in zip(labels, *columns, strict=True):
                label = label if isinstance(label, str) and label else source.name
                pair = clean_pair(anchor, positive, _flat(negatives), label, counts)
                if pair is None:
                    continue
                key = pair_key(pair)
                if key in seen:
                    counts.drop(label, REPEATED)
                    continue
                seen.add(key)
                counts.kept[label] += 1
                yield pair
        for label, read in counts.read.items():
            lost = counts.dropped.get(label, Counter())
            lost = {reason: number for reason, number in lost.items() if reason not in IN_ORDER}
            corpora.check_lost(f"pairs of {source.id}, source {label!r}", read, lost, max_lost)


def _flat(cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        if isinstance(cell, list):
            yield from cell
        else:
            yield cell


def clean_pair(
    anchor: object, positive: object, negatives: Iterable[object], source: str, counts: PairCounts
) -> Pair | None:
    """Return one row cleaned, or None after counting why it is dropped; see `read_pairs`."""
    counts.read[source] += 1
    texts = []
    for column, cell in (("anchor", anchor), ("positive", positive)):
        text = clean(cell, 1)
        if isinstance(text, Reason):
            counts.drop(source, f"{column} {text}")
            return None
        texts.append(text)
    known = {words_key(text) for text in texts}
    if len(known) == 1:
        counts.drop(source, "positive repeats the anchor")
        return None
    kept = []
    for cell in negatives:
        if cell is None:
            continue
        text = clean(cell, 1)
        key = None if isinstance(text, Reason) else words_key(text)
        if key is None or key in known:
            reason = str(text) if key is None else "repeats a text of its row"
            counts.drop_negatives(source, reason)
            continue
        known.add(key)
        kept.append(text)
    return Pair(texts[0], texts[1], tuple(kept), source)


def words_key(text: str) -> int:
    """Return 64 bits that are equal for texts of the same normalised words.

    Case, Unicode form, punctuation and white space are folded (`leaks.words_of`); a text
    without a word goes by its characters.
    """
    return text_key(" ".join(words_of(text)) or text)


def words_keys(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Return `words_key` of every text, `(texts,)`."""
    return np.fromiter((words_key(text) for text in texts), dtype=np.uint64)


def pair_key(pair: Pair) -> int:
    """Return 64 bits that are equal for pairs of the same normalised anchor and positive."""
    return text_key(f"{words_key(pair.anchor):x} {words_key(pair.positive):x}")


def split_dev(
    anchors: NDArray[np.uint64], positives: NDArray[np.uint64], rows: int, seed: int
) -> NDArray[np.bool_]:
    """Choose a dev split that shares no anchor and no positive with the other rows.

    Rows that share a text, directly or through others, form a group, and only whole groups are
    drawn: those of at most a tenth of the rows wanted (or SMALL_GROUP), so that a text that
    thousands of rows share stays in training. A text counts on either side: an anchor that is
    another row's positive joins the two.

    Args:
        anchors: `words_keys` of the anchors, `(pairs,)`.
        positives: of the positives, `(pairs,)`.
        rows: dev rows wanted; a fifth of the pairs at most. Fewer come where groups are large.
        seed: of the draw.

    Returns:
        `(pairs,)`, true for dev rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    chosen = np.zeros(len(anchors), dtype=np.bool_)
    left = min(rows, len(anchors) // 5)
    if left <= 0:
        return chosen
    nodes, place = np.unique(np.concatenate([anchors, positives]), return_inverse=True)
    ends = place.reshape(2, -1)
    edges = (np.ones(len(anchors), dtype=np.bool_), (ends[0], ends[1]))
    _, group_of_node = connected_components(
        coo_array(edges, shape=(len(nodes), len(nodes))), directed=False
    )
    group = group_of_node[ends[0]]
    sizes = np.bincount(group)
    largest = max(SMALL_GROUP, left // 10)
    taken = np.zeros(len(sizes), dtype=np.bool_)
    for number in np.random.default_rng(seed).permutation(len(sizes)):
        if 0 < sizes[number] <= min(left, largest):
            taken[number] = True
            left -= int(sizes[number])
            if left == 0:
                break
    return taken[group]


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Return where shard `index` of a split lies."""
    return folder / split / f"shard-{index:05d}.parquet"


def write_shard(path: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write judged rows with the columns of SCHEMA, atomically; it may hold no row.

    Args:
        path: the shard.
        rows: column -> value.
        facts: what happened on the way, as JSON can carry it; see `read_facts`.

    Raises:
        UserError: a score is not between 0 and 1, or there is not one for each negative.
    """
    for number, row in enumerate(rows):
        scores = [row["positive_score"], *row["negative_scores"]]
        if len(row["negatives"]) != len(scores) - 1 or not all(0 <= one <= 1 for one in scores):
            raise UserError(
                f"{path}, row {number}: the judge's scores {scores} are not one between 0 and 1 "
                f"for each text; look at the row: {row['anchor'][:80]!r}"
            )
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({"facts": json.dumps(facts, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, beside, write_page_checksum=True, compression="zstd")
    storage.fsync_path(beside)
    beside.replace(path)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that `write_shard` put beside the rows.

    Raises:
        UserError: the shard is damaged, or holds none.
    """
    stored = (parquet.read_schema(path, REMAKE).metadata or {}).get(b"facts", b"")
    try:
        facts = json.loads(stored)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds no facts of its rows; {REMAKE}")
    return facts


def count_rows(path: Path) -> int:
    """Return the number of rows in a shard."""
    return parquet.count_rows(path, REMAKE)


@dataclasses.dataclass(frozen=True)
class Triplets:
    """A finished folder of judged triplets.

    Attributes:
        folder: where triplets.json lies.
        counts: split -> number of rows.
        shards: split -> number of shards.
        judge: who scored them: a name or hub id.
        scale: what a score between 0 and 1 is: "sigmoid" of a cross-encoder's logit, or a
            bi-encoder's "cosine", negative ones at 0.
    """

    folder: Path
    counts: dict[str, int]
    shards: dict[str, int]
    judge: str
    scale: str

    def batches(
        self, split: str, columns: Sequence[str] = tuple(SCHEMA.names)
    ) -> Iterator[pa.RecordBatch]:
        """Yield the record batches of a split in order, checksums verified.

        Raises:
            UserError: a shard is missing, damaged or lacks a column, or rows are missing.
        """
        seen = 0
        for index in range(self.shards[split]):
            path = shard_path(self.folder, split, index)
            kinds = {name: KINDS[name] for name in columns}
            for batch in parquet.read_batches(path, kinds, REMAKE, own=True):
                _check_scores(path, batch)
                seen += batch.num_rows
                yield batch
        if seen != self.counts[split]:
            raise UserError(
                f"{self.folder / split}: {seen:,} rows came back out of {self.counts[split]:,}; "
                f"{REMAKE}"
            )

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split in order: column -> value; lists are Python lists."""
        for batch in self.batches(split):
            yield from batch.to_pylist()


def open_triplets(folder: Path) -> Triplets:
    """Open a folder of judged triplets.

    Raises:
        UserError: it holds none, or a triplets.json that is not ours.
    """
    index = storage.read_json(folder / INDEX, "run: python relabel_triplets.py")
    kinds = {"rows": dict, "shards": dict, "judge": str, "scale": str}
    parquet.check_index(folder / INDEX, index, kinds, SPLITS, REMAKE)
    return Triplets(folder, index["rows"], index["shards"], index["judge"], index["scale"])


def _check_scores(path: Path, batch: pa.RecordBatch) -> None:
    for name in ("positive_score", "negative_scores"):
        if name in batch.schema.names:
            column = batch.column(name)
            values = pc.list_flatten(column) if pa.types.is_nested(column.type) else column
            if not pc.all(
                pc.and_(pc.greater_equal(values, 0), pc.less_equal(values, 1)), min_count=0
            ).as_py():
                raise UserError(f"{path}, column {name!r}: a score is not from 0 to 1; {REMAKE}")
    if {"negatives", "negative_scores"} <= set(batch.schema.names):
        lengths = [pc.list_value_length(batch.column(n)) for n in ("negatives", "negative_scores")]
        if not lengths[0].equals(lengths[1]):
            raise UserError(f"{path}: a row has not one score for each negative; {REMAKE}")
