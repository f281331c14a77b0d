"""What distillation and graded pairs share as tasks: tokenised texts, and a target a row."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch

from small_modernbert.data.streamed_rows import StreamedRows
from small_modernbert.data.token_store import TokenStore
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.packing import batches_by_epoch, plan_batches
from small_modernbert.training.windows import Windows


class LabelledTask:
    """Rows of one text or more and a target each, as `loop.train` wants a task but for the loss."""

    texts_per_row: ClassVar[int] = 1
    window_batches: ClassVar[int] = 64  # rows are sorted by length inside so many batches

    def __init__(
        self,
        encoder: PackedEncoder,
        tokens: TokenStore | StreamedRows,
        targets: np.ndarray,
        objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        evaluate: Callable[[], dict[str, float]],
        *,
        tokens_per_batch: int,
        rows_per_batch: int,
        seed: int,
    ) -> None:
        """Join tokens and targets row by row.

        Args:
            encoder: the student.
            tokens: of the texts, those of the first row first.
            targets: `(rows, ...)`, may be memory-mapped, or streamed as the tokens are.
            objective: of what the student gives and the targets.
            evaluate: held-out figures.
            tokens_per_batch: bound on a batch's tokens.
            rows_per_batch: bound on a batch's rows.
            seed: of the batches' order.

        Raises:
            ValueError: the numbers of texts and targets do not fit.
        """
        if len(tokens) != self.texts_per_row * len(targets):
            raise ValueError(f"{len(tokens)} texts for {len(targets)} labels")
        self.model = encoder.model
        self.encoder, self.tokens, self.targets = encoder, tokens, targets
        self.objective, self.evaluate = objective, evaluate
        rules = {"tokens_per_batch": tokens_per_batch, "rows_per_batch": rows_per_batch}
        rules |= {"window_batches": self.window_batches, "seed": seed}
        if isinstance(tokens, StreamedRows):

            def plan(rows: np.ndarray, epoch: int, window: int) -> list[np.ndarray]:
                batches = plan_batches(tokens.lengths[rows], **rules, epoch=epoch, window=window)
                return [rows[batch] for batch in batches]

            self.epoch, self.close = Windows(tokens, seed, plan).epoch, tokens.close
        else:
            lengths = tokens.lengths.reshape(-1, self.texts_per_row).sum(axis=1)
            self.epoch = batches_by_epoch(lengths, **rules)

    def weight(self, batch: np.ndarray) -> float:
        """Return the number of rows."""
        return float(len(batch))
