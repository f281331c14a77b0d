"""Pairs of texts with a score: read, mined from a teacher's labels, and trained on.

A score says how alike two texts are, graded by people (STS) or by a teacher (the cosine of its
vectors). Which of the two it was is kept beside the pairs, because agreement with a teacher is not
semantic textual similarity and must never be reported as such.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from small_modernbert.data.graded_pairs import PairSplits
from small_modernbert.models.packing import pack
from small_modernbert.runs.errors import UserError
from small_modernbert.training import losses
from small_modernbert.training.labelled_task import LabelledTask

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


def scale_scores(splits: PairSplits, objective: str, bounds: Sequence[float]) -> PairSplits:
    """Return pairs whose scores a cosine can reach, where the loss asks for the scores themselves.

    People's scores are scaled from their bounds to 0 to 1; a teacher's are cosines as they are.

    Args:
        splits: the pairs.
        objective: "cosent" takes any scores: their order counts.
        bounds: least and greatest score of the people's scale; empty where it is 0 or -1 to 1.

    Raises:
        UserError: a score is out of the bounds, or these are none.
    """
    if bounds and (len(bounds) != 2 or not bounds[0] < bounds[1]):
        raise UserError(f"SCORE_RANGE: {list(bounds)} is no range; 0 to 5 is: --score-range 0 5")
    if objective != "cosine" or splits.scored_by == "teacher":
        return splits
    low, high = bounds or (-1.0, 1.0)
    given = np.concatenate([splits.train.scores, splits.held_out.scores])
    least, most = float(given.min(initial=high)), float(given.max(initial=low))
    if least < low - 1e-3 or most > high + 1e-3:
        raise UserError(
            f"the pairs' scores run from {least:g} to {most:g}, not from {low:g} to {high:g}; say "
            f"what their scale is (--score-range {min(0, math.floor(least))} {math.ceil(most)}, "
            "say), or take the loss that only ranks: --objective cosent"
        )
    if not bounds:
        return splits
    logger.info("scores from %g to %g are scaled to 0 to 1", low, high)
    parts = (
        replace(part, scores=((part.scores - low) / (high - low)).astype(np.float32))
        for part in (splits.train, splits.held_out)
    )
    return PairSplits(*parts, splits.scored_by, splits.dropped)


class PairTask(LabelledTask):
    """Pairs and their scores: both sides of a batch in one packed pass.

    The texts are `GradedPairs.texts`: pair i is rows 2 i and 2 i + 1. One batch a window: a ranking
    loss learns from pairs of all kinds side by side, and packing leaves grouping by length little
    to save.
    """

    texts_per_row = 2
    window_batches = 1

    def loss(self, batch: np.ndarray) -> tuple[torch.Tensor, int]:
        """Return the objective over the batch's pairs, and the tokens of both sides."""
        rows = np.concatenate([2 * batch, 2 * batch + 1])
        order = np.argsort(self.tokens.lengths[rows], kind="stable")
        packed = pack([self.tokens[row] for row in rows[order]])
        vectors = self.encoder.pooled(packed)
        vectors = vectors[torch.from_numpy(np.argsort(order)).to(vectors.device)]
        cosines = functional.cosine_similarity(vectors[: len(batch)], vectors[len(batch) :])
        scores = torch.from_numpy(self.targets[batch].astype(np.float32)).to(cosines.device)
        return self.objective(cosines, scores), packed.tokens
