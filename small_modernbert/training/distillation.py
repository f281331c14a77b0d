"""Distillation into a student from stored vectors: batches, losses, held-out measures."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import nn

from small_modernbert.data.token_store import TokenStore
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.packing import pack
from small_modernbert.models.packing import plan_batches as plan
from small_modernbert.training import losses

logger = logging.getLogger(__name__)


def loss_function(
    objective: Literal["mse", "cosine", "kl"], temperature: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of an objective as a function of (student, teacher) vectors."""
    if objective == "kl":

        def ranking(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            # A window's last batch can hold one or two texts: there is nothing to rank in it.
            if len(student) < losses.FEWEST_ROWS:
                return 0.0 * student.sum()
            return losses.kl(student, teacher, temperature)

        return ranking
    if objective == "mse":
        # Student and reduced teacher are saved with a Normalize module: what they give is compared.
        # Without it a fresh student spends its steps on coming down from a length of 16 to 1.
        return lambda student, teacher: losses.mse(nn.functional.normalize(student), teacher)
    return losses.cosine


class DistillationTask:
    """Stored teacher vectors and tokenised texts, as `loop.train` wants a task."""

    def __init__(
        self,
        encoder: PackedEncoder,
        tokens: TokenStore,
        vectors: np.ndarray,
        objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        evaluate: Callable[[], dict[str, float]],
        *,
        tokens_per_batch: int,
        rows_per_batch: int,
        seed: int,
    ) -> None:
        """Join tokens and vectors row by row.

        Args:
            encoder: the student.
            tokens: tokens of each text.
            vectors: `(texts, hidden_size)` float16, the teacher's, memory-mapped.
            objective: from `loss_function`.
            evaluate: held-out figures.
            tokens_per_batch: bound on a batch's tokens.
            rows_per_batch: bound on a batch's texts.
            seed: of the batches' order.

        Raises:
            ValueError: the numbers of texts and vectors differ.
        """
        if len(tokens) != len(vectors):
            raise ValueError(f"{len(tokens)} texts for {len(vectors)} vectors")
        self.model = encoder.model
        self.encoder, self.tokens, self.vectors = encoder, tokens, vectors
        self.objective, self.evaluate = objective, evaluate
        lengths = tokens.lengths

        @lru_cache(maxsize=2)
        def epoch_batches(epoch: int) -> list[np.ndarray]:
            return plan(
                lengths,
                tokens_per_batch=tokens_per_batch,
                rows_per_batch=rows_per_batch,
                window_batches=64,
                seed=seed,
                epoch=epoch,
            )

        self.epoch = epoch_batches

    def weight(self, batch: np.ndarray) -> float:
        """Return the number of texts."""
        return float(len(batch))

    def loss(self, batch: np.ndarray) -> tuple[torch.Tensor, int]:
        """Return the objective over the batch's texts, and its tokens."""
        packed = pack([self.tokens[row] for row in batch])
        student = self.encoder.pooled(packed)
        teacher = torch.from_numpy(self.vectors[batch].astype(np.float32)).to(student.device)
        return self.objective(student, teacher), packed.tokens
