"""Graded pairs: two texts and how alike they are, by people (STS) or by a teacher's cosine.

Which of the two it was is kept beside the pairs, because agreement with a teacher is not semantic
textual similarity and must never be reported as such.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from small_modernbert.data import corpora, parquet
from small_modernbert.data.leaks import LeakFilter, words_of
from small_modernbert.runs import hub, storage
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)


COLUMNS = ("sentence1", "sentence2", "score")


KINDS: dict[str, parquet.Kind] = dict(zip(COLUMNS, ("text", "text", "number"), strict=True))


CURE = "give other --pairs"


SPLITS = ("train", "held_out")


INDEX = "pairs.json"


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


def write_pairs(folder: Path, splits: PairSplits) -> None:
    """Write train.parquet and held_out.parquet, atomically; who graded stands in their schema."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        pairs: GradedPairs = getattr(splits, split)
        columns = (pairs.first, pairs.second, pairs.scores)
        table = pa.table(dict(zip(COLUMNS, columns, strict=True)))
        table = table.replace_schema_metadata({"scored_by": splits.scored_by})
        path = folder / f"{split}.parquet"
        beside = path.with_name(f".{path.name}.partial")
        pq.write_table(table, beside, write_page_checksum=True, compression="zstd")
        storage.fsync_path(beside)
        beside.replace(path)
    counts = {split: len(getattr(splits, split)) for split in SPLITS}
    record = {"scored_by": splits.scored_by, "pairs": counts, "dropped": splits.dropped}
    storage.write_json(folder / INDEX, record)


def reopen(folder: Path) -> PairSplits | None:
    """Read what `write_pairs` left in a folder; None if it did not get to its end."""
    if not (folder / INDEX).exists():
        return None
    splits = read_folder(folder, 0, 0)
    splits.dropped = storage.read_json(folder / INDEX, f"remove {folder}")["dropped"]
    return splits


def read_folder(place: Path, held_out: int, seed: int, max_lost: float = 1.0) -> PairSplits:
    """Read a Parquet file, or a folder of them, with the columns sentence1, sentence2, score.

    In a folder, files named held_out*, validation* or dev* are held out and test* is not touched.
    Otherwise `held_out` seeded pairs are held out (a fifth at most).

    Raises:
        UserError: a file can't be read or lacks a column, or more than a share of `max_lost` of
            all the pairs is no use.
    """
    paths = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    dropped: Counter[str] = Counter()
    graders: set[str] = set()
    found: dict[str, list[GradedPairs]] = {split: [] for split in SPLITS}
    for path in paths:
        if path.stem.startswith("test"):
            logger.info("%s: left alone, a test split is not trained on", path)
            continue
        reserved = path.stem.startswith(("held_out", "validation", "dev"))
        columns = parquet.read_columns(path, KINDS, CURE)
        metadata = parquet.read_schema(path, CURE).metadata or {}
        graders.add("teacher" if metadata.get(b"scored_by") == b"teacher" else "people")
        found["held_out" if reserved else "train"].append(_clean(columns, str(path), dropped))
    train, rest = _join(found["train"]), _join(found["held_out"])
    read = len(train) + len(rest) + sum(dropped.values())
    corpora.check_lost(f"pairs of {place}", read, dropped, max_lost)
    if not found["held_out"]:
        rest, train = split_off(train, held_out, seed)
    scored_by = "teacher" if "teacher" in graders else "people"
    return PairSplits(train, rest, scored_by, dict(dropped))


def read_hub(reference: str) -> PairSplits:
    """Read the splits train and validation of a hub dataset such as sentence-transformers/stsb.

    Args:
        reference: `owner/name`, or `owner/name@revision`.

    Raises:
        UserError: the hub can't be reached, or the dataset has other columns.
    """
    name, revision = hub.split_revision(reference)
    dropped: Counter[str] = Counter()
    splits = []
    for split in ("train", "validation"):
        rows = hub.stream_rows(name, None, split, revision, COLUMNS)
        splits.append(_join([_clean(batch, f"{name}, split {split}", dropped) for batch in rows]))
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
        UserError: nothing is left to train on, or too little to measure on.
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
    for reason, number in sorted(dropped.items()):
        logger.info("%s pairs dropped: %s", f"{number:,}", reason)
    return PairSplits(splits.train.take(rows), splits.held_out, splits.scored_by, dict(dropped))
