"""Pairs of texts with a score: read, mined from a teacher's labels, and trained on.

A score says how alike two texts are, graded by people (STS) or by a teacher (the cosine of its
vectors). Which of the two it was is kept beside the pairs, because agreement with a teacher is not
semantic textual similarity and must never be reported as such.
"""

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from small_modernbert.data.graded_pairs import PairSplits
from small_modernbert.data.token_store import TokenStore
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.packing import batches_by_epoch, pack
from small_modernbert.runs.errors import UserError
from small_modernbert.training import losses

logger = logging.getLogger(__name__)


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
        # One batch a window: a ranking loss learns from pairs of all kinds side by side, and
        # packing leaves grouping by length little to save.
        self.epoch = batches_by_epoch(
            tokens.lengths.reshape(-1, 2).sum(axis=1),
            tokens_per_batch=tokens_per_batch,
            rows_per_batch=rows_per_batch,
            window_batches=1,
            seed=seed,
        )

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
