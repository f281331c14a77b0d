"""Training examples: an anchor, its positive and any number of negatives, as numbers of texts.

A text that stands in many rows (a passage with several questions, a common answer) is kept,
tokenised and, inside a batch, encoded once.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from small_modernbert.data import shards, triplets
from small_modernbert.data.keys import words_keys
from small_modernbert.data.leaks import LeakFilter
from small_modernbert.data.pairs import Pair, pair_key, split_dev
from small_modernbert.data.sources import Role

# The rows that a run trains on, judged or not: a judge that was not asked has given NaN.
LAYOUT = shards.Layout(
    index="rows.json",
    columns=dict(triplets.LAYOUT.columns),
    splits=triplets.SPLITS,
    cure="remove {folder} and run the same command again",
)
# Of `Examples`: what grows row by row.
COLUMNS = {
    **dict.fromkeys(("anchors", "positives", "negatives", "offsets", "sources"), np.int64),
    **dict.fromkeys(("positive_scores", "negative_scores"), np.float32),
    "asking": np.bool_,
}
logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One example as it is read.

    Attributes:
        anchor: a question, or one of two texts that belong together.
        positive: its answer.
        negatives: texts that are not; may be empty.
        source: where it is from.
        positive_score: a judge's, of anchor and positive; NaN if none was asked.
        negative_scores: a judge's, of anchor and each negative; empty if none was asked.
        role: of the anchor: "query", or "text" where both sides are alike.
    """

    anchor: str
    positive: str
    negatives: Sequence[str] = ()
    source: str = ""
    positive_score: float = float("nan")
    negative_scores: Sequence[float] = ()
    role: Role = "query"


@dataclass(frozen=True)
class Examples:
    """Rows of anchor, positive and negatives over a list of distinct texts.

    Attributes:
        texts: the distinct texts.
        keys: `(texts,)` uint64; equal for texts that differ in case and punctuation only.
        anchors: `(rows,)` int64, numbers of texts.
        positives: `(rows,)` int64.
        negatives: `(negatives,)` int64, those of the first row first.
        offsets: `(rows + 1,)` int64; row i has `negatives[offsets[i]:offsets[i + 1]]`.
        sources: `(rows,)` int64, places in `source_names`.
        source_names: in order of first appearance.
        positive_scores: `(rows,)` float32; NaN where no judge was asked.
        negative_scores: `(negatives,)` float32, likewise.
        asking: `(rows,)` bool, whether the anchor is a query; else both sides are alike.
    """

    texts: list[str]
    keys: np.ndarray
    anchors: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    source_names: list[str]
    positive_scores: np.ndarray
    negative_scores: np.ndarray
    asking: np.ndarray

    def __len__(self) -> int:
        return len(self.anchors)

    @cached_property
    def owners(self) -> np.ndarray:
        """Each negative's row, `(negatives,)`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def judged(self) -> bool:
        """Whether a judge has scored every positive and every negative."""
        return bool(
            np.isfinite(self.positive_scores).all() and np.isfinite(self.negative_scores).all()
        )

    def with_prompts(self, query: str, document: str, text: str = "") -> "Examples":
        """Return the examples with a prompt before each text, by the part that it plays.

        Where the anchor is a query the others are documents; else all are plain texts. A text that
        is a query somewhere is one everywhere, and else a document if it is one somewhere.
        """
        if not query and not document and not text:
            return self
        prompts = (text, document, query)
        part = np.zeros(len(self.texts), dtype=np.int64)
        part[self.positives[self.asking]] = 1
        part[self.negatives[self.asking[self.owners]]] = 1
        part[self.anchors[self.asking]] = 2
        texts = [prompts[own] + words for own, words in zip(part, self.texts, strict=True)]
        return replace(self, texts=texts)

    def texts_of(self, row: int) -> np.ndarray:
        """Return the numbers of a row's texts: anchor, positive, negatives."""
        own = self.negatives[self.offsets[row] : self.offsets[row + 1]]
        return np.concatenate([[self.anchors[row], self.positives[row]], own])

    def negative_places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where some rows' negatives stand in `negatives`, and whose of `rows` each is."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.offsets[rows][owners] + within, owners

    def lengths(self, tokens_of_text: np.ndarray) -> np.ndarray:
        """Return the tokens of each row, all its texts together, `(rows,)`."""
        total = tokens_of_text[self.anchors] + tokens_of_text[self.positives]
        return total + np.bincount(
            self.owners, weights=tokens_of_text[self.negatives], minlength=len(self)
        ).astype(np.int64)

    def row_keys(self) -> list[tuple[int, ...]]:
        """Return the keys of each row's texts."""
        return [tuple(self.keys[self.texts_of(row)].tolist()) for row in range(len(self))]

    def rows_per_source(self, rows: np.ndarray | None = None) -> dict[str, int]:
        """Count rows, or some of them, by source."""
        chosen = self.sources if rows is None else self.sources[rows]
        counts = np.bincount(chosen, minlength=len(self.source_names))
        return dict(zip(self.source_names, counts.tolist(), strict=True))

    def take(self, rows: np.ndarray) -> "Examples":
        """Return the examples of some rows; the texts stay, so their numbers do."""
        places, _ = self.negative_places(rows)
        counts = self.offsets[rows + 1] - self.offsets[rows]
        return replace(
            self,
            anchors=self.anchors[rows],
            positives=self.positives[rows],
            negatives=self.negatives[places],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            sources=self.sources[rows],
            positive_scores=self.positive_scores[rows],
            negative_scores=self.negative_scores[places],
            asking=self.asking[rows],
        )

    def with_negatives(self) -> "Examples":
        """Return the rows that have a negative."""
        return self.take(np.flatnonzero(np.diff(self.offsets) > 0))

    def hardest(self, number: int) -> "Examples":
        """Return the rows with `number` negatives at most, those that the judge scores highest."""
        # By row, then by falling score; equal scores in the order they came in.
        order = np.lexsort((-self.negative_scores, self.owners))
        counts = np.diff(self.offsets)
        rank = np.arange(len(order)) - np.repeat(self.offsets[:-1], counts)
        places = np.sort(order[rank < number])
        return replace(
            self,
            negatives=self.negatives[places],
            negative_scores=self.negative_scores[places],
            offsets=np.concatenate([[0], np.cumsum(np.minimum(counts, number))]),
        )


def collect(
    rows: Iterable[Row], evaluation_texts: Mapping[str, Iterable[str]] | None = None
) -> tuple[Examples, dict[str, int]]:
    """Number the texts of cleaned rows, and leave out what stands in an evaluation set.

    A row goes when its anchor or its positive does, a negative alone when it does itself
    (see `leaks` for when a text leaks).

    Args:
        rows: read once; cleaned as `pairs.read_pairs` does.
        evaluation_texts: name of a set -> its texts.

    Returns:
        The examples, and what was left out: reason -> rows, or negatives where it says so.
    """
    texts = _Texts()
    for name, forbidden in (evaluation_texts or {}).items():
        texts.leaks.add(name, forbidden)
    dropped: Counter[str] = Counter()
    source_numbers: dict[str, int] = {}
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    columns["offsets"].append(0)
    for row in rows:
        anchor, positive = texts.number(row.anchor), texts.number(row.positive)
        if leak := texts.leak_of[anchor] or texts.leak_of[positive]:
            dropped[leak] += 1
            continue
        scores = row.negative_scores or [float("nan")] * len(row.negatives)
        for text, score in zip(row.negatives, scores, strict=True):
            negative = texts.number(text)
            if leak := texts.leak_of[negative]:
                dropped[f"negative: {leak}"] += 1
                continue
            columns["negatives"].append(negative)
            columns["negative_scores"].append(score)
        columns["anchors"].append(anchor)
        columns["positives"].append(positive)
        columns["offsets"].append(len(columns["negatives"]))
        columns["sources"].append(source_numbers.setdefault(row.source, len(source_numbers)))
        columns["positive_scores"].append(row.positive_score)
        columns["asking"].append(row.role == "query")
    for reason, left_out in sorted(dropped.items()):
        logger.info("%s left out: %s", f"{left_out:,}", reason)
    arrays = {name: np.asarray(columns[name], dtype=dtype) for name, dtype in COLUMNS.items()}
    examples = Examples(
        texts=list(texts.numbers),
        keys=words_keys(texts.numbers),
        source_names=list(source_numbers),
        **arrays,
    )
    return examples, dict(dropped)


@dataclass
class _Texts:
    """Distinct texts, numbered as they come, and the evaluation set that each one stands in."""

    leaks: LeakFilter = field(default_factory=LeakFilter)
    numbers: dict[str, int] = field(default_factory=dict)
    leak_of: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        """Return a text's number."""
        place = self.numbers.setdefault(text, len(self.numbers))
        if place == len(self.leak_of):
            self.leak_of.append(str(self.leaks.find(text) or ""))
        return place


def from_pairs(pairs: Iterable[Pair]) -> Iterator[Row]:
    """Turn raw pairs into rows."""
    fields = ("anchor", "positive", "negatives", "source", "role")
    return (Row(**{name: getattr(pair, name) for name in fields}) for pair in pairs)


def from_judged(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Turn rows of judged triplets (`triplets.Triplets.rows`) into rows."""
    return (Row(**{name: row[name] for name in Row._fields}) for row in rows)


def part(
    pairs: Sequence[Pair], dev: Sequence[Pair], dev_rows: int, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Part training pairs from dev pairs.

    Args:
        pairs: read for training.
        dev: a dev split of their own; training pairs that are in it go. If empty, `dev_rows` are
            taken from `pairs` (see `pairs.split_dev`).
        dev_rows: see `dev`.
        seed: of the draw.

    Returns:
        Training pairs and dev pairs.
    """
    if dev:
        reserved = {pair_key(pair) for pair in dev}
        return [pair for pair in pairs if pair_key(pair) not in reserved], list(dev)
    sides = (words_keys(getattr(pair, side) for pair in pairs) for side in ("anchor", "positive"))
    chosen = split_dev(*sides, dev_rows, seed)
    return [pairs[i] for i in np.flatnonzero(~chosen)], [pairs[i] for i in np.flatnonzero(chosen)]


def draw(sources: Sequence[str], number: int, seed: int, *, evenly: bool) -> np.ndarray:
    """Draw rows at random.

    Args:
        sources: of each row.
        number: of rows wanted; 0 = all.
        seed: of the draw.
        evenly: as many of each source as there are, what a small one lacks shared by the others;
            else each row has the same chance.

    Returns:
        Row numbers, ascending.
    """
    shuffled = np.random.default_rng(seed).permutation(len(sources))
    if not number or number >= len(sources):
        return np.sort(shuffled)
    if not evenly:
        return np.sort(shuffled[:number])
    names, source = np.unique(np.asarray(sources), return_inverse=True)
    groups = sorted((shuffled[source[shuffled] == name] for name in range(len(names))), key=len)
    chosen: list[np.ndarray] = []
    for place, group in enumerate(groups):
        chosen.append(group[: number // (len(groups) - place)])
        number -= len(chosen[-1])
    return np.sort(np.concatenate(chosen))


def write_rows(folder: Path, splits: Mapping[str, Sequence[Row]], facts: Mapping[str, Any]) -> None:
    """Write the rows of each split, and last rows.json, which says `facts` beside."""
    schema = triplets.SCHEMA
    for split, rows in splits.items():
        table = pa.Table.from_pylist([row._asdict() for row in rows], schema=schema)
        shards.write_shard(shards.shard_path(folder, split, 0), table, schema)
    shards.write_index(folder, LAYOUT, dict.fromkeys(splits, 1), facts)


def reopen_rows(folder: Path) -> shards.ShardFolder:
    """Open what `write_rows` left; `rows_of` reads a split."""
    return shards.open_shards(folder, LAYOUT)


def rows_of(folder: shards.ShardFolder, split: str) -> list[Row]:
    """Return the rows of a split in order."""
    return list(from_judged(row for batch in folder.batches(split) for row in batch.to_pylist()))
