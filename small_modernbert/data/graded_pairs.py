"""Graded pairs: two texts and how alike they are, by people (STS) or by a teacher's cosine.

Which of the two it was is kept beside the pairs, because agreement with a teacher is not semantic
textual similarity and must never be reported as such.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from small_modernbert.data import file_rows, parquet, shards, sources
from small_modernbert.data.keys import words_of
from small_modernbert.data.leaks import LeakFilter
from small_modernbert.runs import hub
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
COLUMNS = ("sentence1", "sentence2", "score")
KINDS: dict[str, parquet.Kind] = dict(zip(COLUMNS, ("text", "text", "number"), strict=True))
SCHEMA = pa.schema(zip(COLUMNS, (pa.string(), pa.string(), pa.float32()), strict=True))
CURE = "give other --pairs"
NAMES = {**file_rows.PAIR_NAMES, "score": {*file_rows.PAIR_NAMES["score"], "label"}}
SPLITS = ("train", "held_out")
LAYOUT = shards.Layout(
    index="pairs.json",
    columns=KINDS,
    splits=SPLITS,
    cure="remove {folder} and run the same command again",
    facts={"scored_by": str, "dropped": dict},
)
# What the figure is called says who graded the pairs.
FIGURES = {"people": "sts_spearman", "teacher": "teacher_agreement_spearman"}
FEWEST_HELD_OUT = 10  # a rank correlation over fewer says nothing


@dataclass(frozen=True)
class GradedPairs:
    """Pairs of texts and how alike they are.

    Attributes:
        first: one text of each pair.
        second: the other one.
        scores: `(pairs,)` float32.
    """

    first: list[str]
    second: list[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Iterable[int]) -> "GradedPairs":
        """Return the pairs of some rows."""
        rows = list(rows)
        first, second = [self.first[row] for row in rows], [self.second[row] for row in rows]
        return GradedPairs(first, second, self.scores[rows])

    def texts(self) -> list[str]:
        """Return all the texts, the two sides of a pair next to each other."""
        return [text for pair in zip(self.first, self.second, strict=True) for text in pair]


@dataclass
class PairSplits:
    """What a stage trains on and what it is measured on.

    Attributes:
        train: pairs to train on.
        held_out: pairs of other texts.
        scored_by: who graded them.
        dropped: reason -> pairs that were read and not kept.
    """

    train: GradedPairs
    held_out: GradedPairs
    scored_by: Literal["people", "teacher"]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def figure(self) -> str:
        """What the rank correlation on the held-out pairs is called."""
        return FIGURES[self.scored_by]

    def counts(self) -> dict[str, Any]:
        """Return what a run's record says of the pairs."""
        numbers = {"train": len(self.train), "held_out": len(self.held_out)}
        return {**numbers, "scored_by": self.scored_by, "dropped": self.dropped}


def write_pairs(folder: Path, splits: PairSplits) -> None:
    """Write the pairs as shards; who graded them stands in the index, and in every file."""
    for split in SPLITS:
        pairs: GradedPairs = getattr(splits, split)
        schema = SCHEMA.with_metadata({"scored_by": splits.scored_by})
        table = pa.table([pairs.first, pairs.second, pairs.scores], schema=schema)
        shards.write_shard(shards.shard_path(folder, split, 0), table, schema)
    facts = {"scored_by": splits.scored_by, "dropped": splits.dropped}
    shards.write_index(folder, LAYOUT, dict.fromkeys(SPLITS, 1), facts)


def reopen(folder: Path) -> PairSplits | None:
    """Read what `write_pairs` left in a folder; None if it did not get to its end."""
    if not (folder / LAYOUT.index).exists():
        return None
    stored = shards.open_shards(folder, LAYOUT)
    parts = []
    for split in SPLITS:
        table = pa.Table.from_batches(stored.batches(split), SCHEMA)
        first, second, scores = (table[name] for name in COLUMNS)
        parts.append(GradedPairs(first.to_pylist(), second.to_pylist(), scores.to_numpy()))
    scored_by = "teacher" if stored.index["scored_by"] == "teacher" else "people"
    return PairSplits(*parts, scored_by, dict(stored.index["dropped"]))


def read_files(place: Path, held_out: int, seed: int, max_lost: float = 1.0) -> PairSplits:
    """Read a file, or a folder of them, with the columns sentence1, sentence2, score (or NAMES).

    Of a folder that has splits, held_out, validation or dev files are held out and test files are
    not touched. Otherwise `held_out` seeded pairs are held out (a fifth at most). A folder that
    `write_pairs` has filled comes back as it is.

    Raises:
        UserError: a file can't be read or lacks a column, or more than a share of `max_lost` of
            all the pairs is no use.
    """
    if place.is_dir() and (stored := reopen(place)) is not None:
        return stored
    files = file_rows.find_files(place, cure=CURE)
    dropped: Counter[str] = Counter()
    parts: dict[str, list[GradedPairs]] = {split: [] for split in SPLITS}
    for file in files:
        if file.split == "test":
            logger.info("%s: left alone, a test split is not trained on", file.path)
            continue
        split = "held_out" if file.split == "held_out" else "train"
        there = file_rows.read_columns(file.path, CURE)
        called = file_rows.name_columns(file.path, COLUMNS, there, NAMES)
        kinds = {called[name]: kind for name, kind in KINDS.items()}
        for batch in file_rows.read_rows(file.path, kinds, CURE):
            cells = {name: batch[called[name]] for name in COLUMNS}
            parts[split].append(_clean(cells, str(file.path), dropped))
    train, rest = _join(parts["train"]), _join(parts["held_out"])
    _check_lost(str(place), (train, rest), dropped, max_lost)
    if not parts["held_out"]:
        rest, train = split_off(train, held_out, seed)
    return PairSplits(train, rest, _grader(files), dict(dropped))


def _grader(files: Sequence[file_rows.DataFile]) -> Literal["people", "teacher"]:
    """Return who graded the pairs; a file of `write_pairs` remembers a teacher."""
    for file in files:
        if file.path.suffix.lower() in (".parquet", ".pq"):
            metadata = parquet.read_schema(file.path, CURE).metadata or {}
            if metadata.get(b"scored_by") == b"teacher":
                return "teacher"
    return "people"


def _check_lost(
    place: str, parts: Sequence[GradedPairs], dropped: Counter[str], max_lost: float
) -> None:
    read = sum(map(len, parts)) + sum(dropped.values())
    sources.check_lost(f"pairs of {place}", read, dropped, max_lost)


def read_hub(reference: str, max_lost: float = 1.0) -> PairSplits:
    """Read the splits train and validation of a hub dataset such as sentence-transformers/stsb.

    Args:
        reference: `owner/name`, or `owner/name@revision`.
        max_lost: share of the pairs that may be no use.

    Raises:
        UserError: the hub can't be reached, or the dataset has other columns, or too many pairs
            that are no use.
    """
    name, revision = hub.split_revision(reference)
    dropped: Counter[str] = Counter()
    splits = []
    for split in ("train", "validation"):
        rows = hub.stream_rows(name, None, split, revision, COLUMNS)
        splits.append(_join([_clean(batch, f"{name}, split {split}", dropped) for batch in rows]))
    _check_lost(name, splits, dropped, max_lost)
    return PairSplits(*splits, "people", dict(dropped))


def _clean(columns: dict[str, list], where: str, dropped: Counter[str]) -> GradedPairs:
    """Keep the pairs that can be used; count the others, and name the first of each kind."""
    kept: tuple[list[str], list[str], list[float]] = ([], [], [])
    for row, (first, second, score) in enumerate(zip(*map(columns.get, COLUMNS), strict=True)):
        if not all(isinstance(text, str) and words_of(text) for text in (first, second)):
            reason = "a text is missing or has no words"
        elif not isinstance(score, int | float) or not np.isfinite(score):
            reason = "the score is missing or not finite"
        else:
            for column, value in zip(kept, (first, second, score), strict=True):
                column.append(value)
            continue
        if not dropped[reason]:
            logger.warning("%s, row %s: %s; dropped, like its kind", where, f"{row + 1:,}", reason)
        dropped[reason] += 1
    return GradedPairs(kept[0], kept[1], np.asarray(kept[2], dtype=np.float32))


def _join(parts: Sequence[GradedPairs]) -> GradedPairs:
    first = [text for part in parts for text in part.first]
    second = [text for part in parts for text in part.second]
    scores = [np.zeros(0, dtype=np.float32), *(part.scores for part in parts)]
    return GradedPairs(first, second, np.concatenate(scores))


def split_off(pairs: GradedPairs, number: int, seed: int) -> tuple[GradedPairs, GradedPairs]:
    """Draw up to `number` pairs, a fifth at most; return them, and the others in their order."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    number = min(number, len(pairs) // 5)
    return pairs.take(sorted(order[:number])), pairs.take(sorted(order[number:]))


def keep_apart(splits: PairSplits, evaluation_texts: dict[str, list[str]]) -> PairSplits:
    """Take every training pair out that has a text of a held-out pair or of an evaluation set.

    A text is one of those when its normalised words are the same, or when 13 words in a row are:
    STS-B, for one, holds sentences of MRPC.

    Raises:
        UserError: nothing is left to train on, or too little to measure on; or the scores are
            all equal.
    """
    leaks = LeakFilter()
    leaks.add("the held-out pairs", splits.held_out.texts())
    for name, texts in evaluation_texts.items():
        leaks.add(name, texts)
    dropped, rows = Counter(splits.dropped), []
    for row in range(len(splits.train)):
        leak = leaks.find(splits.train.first[row]) or leaks.find(splits.train.second[row])
        if leak is None:
            rows.append(row)
        else:
            dropped[str(leak)] += 1
    if not rows or len(splits.held_out) < FEWEST_HELD_OUT:
        raise UserError(
            f"the pairs leave {len(rows):,} to train on and {len(splits.held_out):,} held out, of "
            f"{FEWEST_HELD_OUT} at least (dropped: {dict(dropped) or 'none'}); give more --pairs, "
            "or labels of more texts"
        )
    for what, scores in (
        ("train", splits.train.scores[rows]),
        ("held-out", splits.held_out.scores),
    ):
        if len(scores) > 1 and (scores == scores[0]).all():
            raise UserError(
                f"all {len(scores):,} {what} pairs have the score {scores[0]:g}: there is no order "
                "among them to learn or to measure; give other --pairs"
            )
    for reason, number in sorted(dropped.items()):
        logger.info("%s pairs dropped: %s", f"{number:,}", reason)
    return PairSplits(splits.train.take(rows), splits.held_out, splits.scored_by, dict(dropped))
