"""Graded pairs mined from a teacher's labels: a pair's score is the cosine of its two labels."""

import logging

import numpy as np

from small_modernbert.data.graded_pairs import FEWEST_HELD_OUT, SPLITS, GradedPairs, PairSplits
from small_modernbert.data.labels import Labels
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
ANCHOR_BLOCK = 256  # anchors whose cosines with all texts are in memory at once
DRAWS = 8  # partners per anchor, one from each of as many ranges of ranks
CANDIDATES_PER_PAIR = 4  # drawn for each pair wanted, so that the spread has something to choose
BINS = 10  # ranges of the cosine that are filled evenly


def mine_splits(
    labels: Labels, *, pairs: int, held_out: int, texts: int, max_words: int, seed: int
) -> PairSplits:
    """Mine graded pairs from a teacher's labels: a pair's score is the cosine of its two labels.

    Training pairs come from the labels' training rows; held-out pairs from their held-out rows,
    which neither distillation nor this stage trains on.

    Args:
        labels: the labels; their vectors are the (reduced) teacher's.
        pairs: training pairs wanted.
        held_out: held-out pairs wanted.
        texts: sample of each split's texts at most; memory does not grow beyond it.
        max_words: longer texts are left out; 0 = none is.
        seed: of the sample and the draws.

    Raises:
        UserError: the labels hold too few texts.
    """
    mined = []
    for number, (split, wanted) in enumerate(zip(SPLITS, (pairs, held_out), strict=True)):
        kept, vectors = sample_labels(labels, split, texts, max_words, (seed, number))
        if len(kept) < FEWEST_HELD_OUT:
            raise UserError(
                f"{labels.folder}: {len(kept):,} {split} texts are too few to mine pairs from; "
                "label more: python mlm/create_dataset.py, then python create_distil_dataset.py"
            )
        first, second, scores = mine(vectors, wanted, (seed, number))
        mined.append(GradedPairs([kept[i] for i in first], [kept[i] for i in second], scores))
        logger.info(
            "%s: %s pairs mined from %s texts, teacher's cosine %.2f to %.2f, median %.2f",
            split,
            f"{len(scores):,}",
            f"{len(kept):,}",
            *np.quantile(scores, [0, 1, 0.5]),
        )
    return PairSplits(*mined, "teacher")


def sample_labels(
    labels: Labels, split: str, number: int, max_words: int, seed: tuple[int, ...]
) -> tuple[list[str], np.ndarray]:
    """Return a seeded sample of a split in its order: texts, and unit vectors `(texts, width)`."""
    total = labels.counts[split]
    chosen = np.zeros(total, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(total)[:number]] = True
    texts: list[str] = []
    parts = [np.zeros((0, labels.dimension), dtype=np.float32)]
    row = 0
    for batch in labels.batches(split, ["text", "label"]):
        candidates = np.flatnonzero(chosen[row : row + len(batch)])
        row += len(batch)
        values = batch.column(0).to_pylist()
        rows = [i for i in candidates if not max_words or len(values[i].split()) <= max_words]
        numbers = batch.column(1).flatten().to_numpy(zero_copy_only=False)
        parts.append(numbers.reshape(len(batch), -1)[rows].astype(np.float32))
        texts.extend(values[i] for i in rows)
    vectors = np.concatenate(parts)
    return texts, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def mine(
    vectors: np.ndarray, pairs: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw pairs whose cosines spread over the whole range.

    Random pairs are nearly all unrelated. So each anchor gets partners at ranks drawn evenly on a
    logarithmic scale, from its nearest neighbour to its farthest, and of these candidates as many
    are taken from each of ten equal ranges of the cosine as there are.

    Args:
        vectors: `(texts, width)` unit vectors.
        pairs: pairs wanted; fewer come where there are not as many.
        seed: of the draws.

    Returns:
        First rows, second rows, cosines: three arrays of equal length, shuffled; no pair twice.
    """
    random = np.random.default_rng(seed)
    texts = len(vectors)
    anchors = random.permutation(texts)[: -(-pairs * CANDIDATES_PER_PAIR // DRAWS)]
    edges = np.log(np.geomspace(1, texts, DRAWS + 1))
    parts = []
    for start in range(0, len(anchors), ANCHOR_BLOCK):
        block = anchors[start : start + ANCHOR_BLOCK]
        scores = vectors[block] @ vectors.T
        scores[np.arange(len(block)), block] = np.inf  # rank 0 is the anchor itself
        order = np.argsort(-scores, axis=1)
        drawn = np.exp(random.uniform(edges[:-1], edges[1:], (len(block), DRAWS)))
        ranks = np.clip(drawn.astype(np.int64), 1, texts - 1)
        partners = np.take_along_axis(order, ranks, axis=1)
        cosines = np.take_along_axis(scores, partners, axis=1)
        parts.append((np.repeat(block, DRAWS), partners.ravel(), cosines.ravel()))
    first, second, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    # A pair can be drawn from either of its texts.
    keys = np.minimum(first, second) * texts + np.maximum(first, second)
    rows = np.unique(keys, return_index=True)[1]
    rows = rows[spread(scores[rows], pairs, random)]
    return first[rows], second[rows], scores[rows]


def spread(scores: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    """Choose up to `number` rows, as many from each of ten equal ranges of the scores as there are.

    What a sparse range cannot give is shared by the fuller ones.
    """
    edges = np.linspace(scores.min(), scores.max(), BINS + 1)
    bin_of = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, BINS - 1)
    shuffled = random.permutation(len(scores))
    groups = [shuffled[bin_of[shuffled] == number] for number in range(BINS)]
    chosen: list[np.ndarray] = []
    left = number
    for place, group in enumerate(sorted(groups, key=len)):
        chosen.append(group[: left // (BINS - place)])
        left -= len(chosen[-1])
    return random.permutation(np.concatenate(chosen))
