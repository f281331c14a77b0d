"""Pairs of texts with a score: read, mined from a teacher's labels, and trained on.

A score says how alike two texts are, graded by people (STS) or by a teacher (the cosine of its
vectors). Which of the two it was is kept beside the pairs, because agreement with a teacher is not
semantic textual similarity and must never be reported as such.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from small_modernbert.data import corpora, parquet
from small_modernbert.data.evaluation_sets import RetrievalSet, SentencePairs, split_revision
from small_modernbert.data.labels import Labels
from small_modernbert.data.leaks import LeakFilter, words_of
from small_modernbert.data.token_store import TokenStore
from small_modernbert.evaluation import metrics
from small_modernbert.models.packing import pack, plan_batches
from small_modernbert.runs import hub, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.training import losses
from small_modernbert.training.distillation import PackedEncoder, retrieval_figures

logger = logging.getLogger(__name__)
COLUMNS = ("sentence1", "sentence2", "score")
KINDS: dict[str, parquet.Kind] = dict(zip(COLUMNS, ("text", "text", "number"), strict=True))
CURE = "give other --pairs"
SPLITS = ("train", "held_out")
INDEX = "pairs.json"
# What the figure is called says who graded the pairs.
FIGURES = {"people": "sts_spearman", "teacher": "teacher_agreement_spearman"}
ANCHOR_BLOCK = 256
DRAWS = 8  # partners per anchor, one from each of as many ranges of ranks
CANDIDATES_PER_PAIR = 4
BINS = 10
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
    name, revision = split_revision(reference)
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


def mine_splits(
    found: Labels, *, pairs: int, held_out: int, texts: int, max_words: int, seed: int
) -> PairSplits:
    """Mine graded pairs from a teacher's labels: a pair's score is the cosine of its two labels.

    Training pairs come from the labels' training rows; held-out pairs from their held-out rows,
    which neither distillation nor this stage trains on.

    Args:
        found: the labels; their vectors are the (reduced) teacher's.
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
        kept, vectors = sample_labels(found, split, texts, max_words, (seed, number))
        if len(kept) < FEWEST_HELD_OUT:
            raise UserError(
                f"{found.folder}: {len(kept):,} {split} texts are too few to mine pairs from; "
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
    found: Labels, split: str, number: int, max_words: int, seed: tuple[int, ...]
) -> tuple[list[str], np.ndarray]:
    """Return a seeded sample of a split in its order: texts, and unit vectors `(texts, width)`."""
    total = found.rows[split]
    chosen = np.zeros(total, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(total)[:number]] = True
    texts: list[str] = []
    parts = [np.zeros((0, found.dimension), dtype=np.float32)]
    row = 0
    for batch in found.batches(split, ["text", "label"]):
        candidates = np.flatnonzero(chosen[row : row + len(batch)])
        row += len(batch)
        values = batch.column(0).to_pylist()
        rows = [i for i in candidates if not max_words or len(values[i].split()) <= max_words]
        labels = batch.column(1).flatten().to_numpy(zero_copy_only=False)
        parts.append(labels.reshape(len(batch), -1)[rows].astype(np.float32))
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
    groups = [shuffled[bin_of[shuffled] == one] for one in range(BINS)]
    chosen: list[np.ndarray] = []
    left = number
    for place, group in enumerate(sorted(groups, key=len)):
        chosen.append(group[: left // (BINS - place)])
        left -= len(chosen[-1])
    return random.permutation(np.concatenate(chosen))


def loss_function(
    objective: Literal["cosent", "cosine"], scale: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss as a function of (cosines, scores), `(pairs,)` each.

    "cosent" asks for the scores' order, "cosine" for the scores themselves (squared error).
    """
    if objective == "cosent":
        return lambda cosines, scores: losses.cosent(cosines, scores, scale)
    return functional.mse_loss


def check_range(splits: PairSplits, objective: str) -> None:
    """Refuse scores that no cosine can reach, where the loss asks for the scores themselves."""
    scores = splits.train.scores
    if objective == "cosine" and (scores.min() < -1.001 or scores.max() > 1.001):
        raise UserError(
            f"the pairs' scores run from {scores.min():g} to {scores.max():g}, a cosine from -1 to "
            "1; scale them to 0 to 1, or take the loss that only ranks: --objective cosent"
        )


class PairTask:
    """Graded pairs as `loop.train` wants a task: both sides of a batch in one packed pass."""

    def __init__(
        self,
        encoder: PackedEncoder,
        tokens: TokenStore,
        scores: np.ndarray,
        objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        evaluate: Callable[[], dict[str, float]],
        *,
        tokens_per_batch: int,
        rows_per_batch: int,
        seed: int,
    ) -> None:
        """Join tokens and scores.

        Args:
            encoder: the student.
            tokens: of `GradedPairs.texts`: pair i is rows 2 i and 2 i + 1.
            scores: `(pairs,)`.
            objective: from `loss_function`.
            evaluate: held-out figures.
            tokens_per_batch: bound on a batch's tokens.
            rows_per_batch: bound on a batch's pairs.
            seed: of the batches' order.

        Raises:
            ValueError: there are not two texts a score.
        """
        if len(tokens) != 2 * len(scores):
            raise ValueError(f"{len(tokens)} texts for {len(scores)} pairs")
        self.model = encoder.model
        self.encoder, self.tokens, self.scores = encoder, tokens, scores
        self.objective, self.evaluate = objective, evaluate
        lengths = tokens.lengths.reshape(-1, 2).sum(axis=1)

        @lru_cache(maxsize=2)
        def epoch_batches(epoch: int) -> list[np.ndarray]:
            # One batch a window: a ranking loss learns from pairs of all kinds side by side, and
            # packing leaves grouping by length little to save.
            return plan_batches(
                lengths,
                tokens_per_batch=tokens_per_batch,
                rows_per_batch=rows_per_batch,
                window_batches=1,
                seed=seed,
                epoch=epoch,
            )

        self.epoch = epoch_batches

    def weight(self, batch: np.ndarray) -> float:
        """Return the number of pairs."""
        return float(len(batch))

    def loss(self, batch: np.ndarray) -> tuple[torch.Tensor, int]:
        """Return the objective over the batch's pairs, and the tokens of both sides."""
        rows = np.concatenate([2 * batch, 2 * batch + 1])
        order = np.argsort(self.tokens.lengths[rows], kind="stable")
        packed = pack([self.tokens[row] for row in rows[order]])
        vectors = self.encoder.pooled(packed)
        vectors = vectors[torch.from_numpy(np.argsort(order)).to(vectors.device)]
        cosines = functional.cosine_similarity(vectors[: len(batch)], vectors[len(batch) :])
        scores = torch.from_numpy(self.scores[batch].astype(np.float32)).to(cosines.device)
        return self.objective(cosines, scores), packed.tokens


def figures(
    encoder: PackedEncoder,
    tokens: TokenStore,
    splits: PairSplits,
    sentence_pairs: SentencePairs | None,
    retrieval: Sequence[RetrievalSet],
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Measure a student.

    Args:
        encoder: the student.
        tokens: of the held-out pairs' texts.
        splits: the pairs.
        sentence_pairs: pairs labelled 0 or 1, or scored by people; reported only.
        retrieval: validation sets.
        tokenizer: of the student.

    Returns:
        sts_spearman or teacher_agreement_spearman, by who graded the held-out pairs;
        mean_cosine and effective_rank of their texts, see `metrics.collapse`;
        <pairs>_average_precision (or _spearman); <set>_ndcg@10 and retrieval_ndcg@10, their mean.
    """
    own = encoder.encode([tokens[row] for row in range(len(tokens))])
    cosines = metrics.pair_scores(own[0::2], own[1::2])
    found = {splits.figure: metrics.spearman(cosines, splits.held_out.scores)}
    found |= metrics.collapse(own)
    if sentence_pairs is not None:
        sides = [
            encoder.encode_texts(side, tokenizer)
            for side in (sentence_pairs.first, sentence_pairs.second)
        ]
        cosines = metrics.pair_scores(*sides)
        if sentence_pairs.graded:
            name, measure = "spearman", metrics.spearman
        else:
            name, measure = "average_precision", metrics.average_precision
        found[f"{sentence_pairs.name}_{name}"] = measure(cosines, sentence_pairs.gold)
    return found | retrieval_figures(encoder, retrieval, tokenizer)
