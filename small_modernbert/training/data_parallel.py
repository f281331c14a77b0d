"""The gradients of a step, by one process or by several that share its batches.

A step is the sum over its batches of (weight / the step's weights) x loss, whichever rank computes
which, so a run's mathematics does not depend on the number of ranks: ACCUMULATE says how many
batches a step has, and should be a multiple of the ranks. What a loss compares (negatives, ranks)
stands in one batch, so nothing but gradients and figures travels.

Several ranks are torch's DistributedDataParallel (Li et al., arXiv 2006.15704): each has the model
and the optimizer's state, and gradients are all-reduced in buckets while the backward pass of a
rank's last batch still runs.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from small_modernbert.runs import processes, signals


class Objective(Protocol):
    """A model and what is asked of it.

    One that encodes a batch in passes (its `cached_tokens` is not 0) goes through its parameters
    more than once in a backward pass.
    """

    model: nn.Module

    def weight(self, batch: Any) -> float:  # noqa: ANN401  the task's own batch
        """Return the batch's share in an accumulated step: its rows, or its tokens."""

    def loss(self, batch: Any) -> tuple[torch.Tensor, int]:  # noqa: ANN401  the task's own batch
        """Return the mean loss of a batch, and its number of tokens."""


class _Loss(nn.Module):
    """A task's loss as the forward pass of a module, which is what torch can watch."""

    def __init__(self, task: Objective) -> None:
        super().__init__()
        self.model, self.task = task.model, task
        device = next(task.model.parameters()).device
        self.nothing = nn.Parameter(torch.zeros((), device=device))

    def forward(self, batch: Any) -> tuple[torch.Tensor, int]:  # noqa: ANN401  the task's own batch
        """Return the loss of a batch; of None, one that none of the model's parameters is in."""
        return (self.nothing * 0, 0) if batch is None else self.task.loss(batch)


class Gradients:
    """Adds up the gradients of a step's batches, on all ranks to the same.

    Making one is a meeting of the ranks: all take over the leader's weights.
    """

    def __init__(self, task: Objective) -> None:
        self.task = task
        self.forward = _Loss(task)
        if processes.world() > 1:
            with processes.noticing():
                # Not all students use all of their parameters (a BERT has a pooler), and a rank may
                # have none of a step's batches.
                self.forward = DistributedDataParallel(
                    self.forward, forward_sync_buffers=False, find_unused_parameters=True
                )

    def add_up(self, batches: Sequence[Any]) -> tuple[list[float], int]:
        """Give the model, whose gradients are empty, those of a step.

        A parameter that no rank's batch used has none, as in one process: an optimizer must leave
        it as it is.

        Returns:
            Each batch's share of the step's loss, and the step's tokens.

        Raises:
            Interrupted: a signal came; the gradients are of no use.
            Lost: another process has ended; likewise.
        """
        if processes.world() == 1:
            return self._of_mine(batches, None)
        in_passes = getattr(self.task, "cached_tokens", 0)
        mine = range(len(batches))[processes.rank() :: processes.world()]
        last = None if in_passes or not mine else mine[-1]
        with processes.noticing():
            losses, tokens = self._of_mine(batches, last)
            if last is None:
                self.forward(None)[0].backward()  # reduces what has been added up
        figures = torch.tensor([*losses, tokens], dtype=torch.float64)
        *losses, tokens = processes.add_up(figures).tolist()
        return losses, int(tokens)

    def close(self) -> None:
        """Let go of torch's reducer while the group of the ranks still stands.

        The last to hold the group ends it, and waits for gloo's thread; a reducer would wait with
        Python's lock in hand, which that thread may want (torch 2.13: a rank that never ended).
        """
        if isinstance(self.forward, DistributedDataParallel):
            self.forward.logger = None
            del self.forward.reducer

    def _of_mine(self, batches: Sequence[Any], last: int | None) -> tuple[list[float], int]:
        """Add up this rank's part; the batch at `last` is the one during which ranks exchange."""
        task, rank, world = self.task, processes.rank(), processes.world()
        weights = [task.weight(batch) for batch in batches]
        losses, tokens = [0.0] * len(batches), 0
        task.model.train()
        for place in range(rank, len(batches), world):
            if world == 1:
                signals.check()  # else a step goes to its end: the others count on this one
            alone = world > 1 and place != last
            with self.forward.no_sync() if alone else contextlib.nullcontext():
                loss, count = self.forward(batches[place])
                loss = loss * (weights[place] / sum(weights))
                # Torch takes the mean over ranks, and a step is a sum.
                loss.backward(torch.full_like(loss, world))
            losses[place] = float(loss.detach())
            tokens += count
        return losses, tokens
