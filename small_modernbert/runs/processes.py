"""Several processes, one run: `torchrun --nproc-per-node 2 script.py ...`.

Rank 0 leads: it alone has the stage's folder, the optimizer, the checkpoints and the evaluation.
The others follow: they wait until it has prepared its inputs, open the same ones, and from then on
compute the gradients of every world-th batch of a step with the weights that they are sent. A step
is the sum over its batches of (weight / the step's weights) x loss, whoever computes which, so a
run's mathematics does not depend on the number of processes: ACCUMULATE says how many batches a
step has, and should be a multiple of the processes.

A step costs one broadcast of the weights and one reduction of the gradients, as much as an
all-reduce; and since followers keep nothing, whatever the leader restores or rolls back to is what
they work on. An error in one process ends all of them: torchrun sees to it.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from small_modernbert.runs import signals

if TYPE_CHECKING:
    import torch

# The leader may tokenise for hours; a process that died is noticed by torchrun, not by waiting.
PATIENCE = datetime.timedelta(days=7)


class _State:
    released = False  # the followers


class Task(Protocol):
    """What of `loop.Task` a rank needs."""

    model: Any
    epoch: Any
    weight: Any
    loss: Any


def rank() -> int:
    """Return this process's number, 0 for the leader and where there is only one."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def world() -> int:
    """Return how many processes torchrun has started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def start() -> None:
    """Join the others, by what torchrun has put into the environment; nothing where there are none.

    Only processes that have joined notice each other's end.
    """
    if world() == 1:
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)


def release(work: bool) -> None:
    """As the leader, send the waiting followers on: to work, or home; the first call counts."""
    if world() > 1 and not _State.released:
        import torch

        _broadcast(torch.tensor([int(work)]))
        _State.released = True


def wait() -> bool:
    """As a follower, wait for `release`; say whether there is work."""
    import torch

    word = torch.zeros(1, dtype=torch.int64)
    with _led():
        start()
        _broadcast(word)
    return bool(word[0])


def meet() -> None:
    """Wait until all are here: what a step takes must not hold a follower's start."""
    if world() > 1:
        from torch import distributed

        distributed.barrier()


def accumulate(task: Task, epoch: int, position: int, size: int) -> tuple[list[float], int]:
    """As the leader, add up the gradients of a step's batches, with all ranks' help.

    Args:
        task: its model's gradients are empty, and afterwards those of the step.
        epoch: of the batches.
        position: of the first of them.
        size: their number.

    Returns:
        Each batch's share of the step's loss, and the step's tokens.
    """
    if world() == 1:
        return _add_up(task, epoch, position, size)
    import torch

    _broadcast(torch.tensor([epoch, position, size]))
    return _share(task, epoch, position, size)


def dismiss() -> None:
    """As the leader, tell the followers that the last step is done."""
    if world() > 1:
        import torch

        _broadcast(torch.zeros(3, dtype=torch.int64))


def follow(task: Task) -> None:
    """As a follower, work on one step after the other, and end the process after the last.

    What a script does after its training is the leader's: it never returns.
    """
    with _led(), contextlib.suppress(signals.Interrupted), signals.deferred():
        # Signals go to all of us; it is the leader who ends the run, and then sends us home.
        meet()
        _work(task)
    sys.exit(0)


@contextlib.contextmanager
def _led() -> Iterator[None]:
    """End a follower quietly when its leader has ended: that one has said why."""
    try:
        yield
    except RuntimeError as error:
        if "closed" not in str(error):
            raise
        print(f"rank {rank()}: the leading process has ended", file=sys.stderr)
        sys.exit(1)


def _work(task: Task) -> None:
    import torch

    while True:
        order = torch.zeros(3, dtype=torch.int64)
        _broadcast(order)
        epoch, position, size = order.tolist()
        if not size:
            return
        _share(task, epoch, position, size)
        task.model.zero_grad(set_to_none=True)


def _broadcast(values: "torch.Tensor") -> None:
    from torch import distributed

    distributed.broadcast(values, src=0)


def _add_up(task: Task, epoch: int, position: int, size: int) -> tuple[list[float], int]:
    """Add this rank's share of a step's gradients to the model's; see `accumulate`."""
    batches = task.epoch(epoch)[position : position + size]
    weights = [task.weight(batch) for batch in batches]
    losses, tokens = [0.0] * len(batches), 0
    task.model.train()
    for place in range(rank(), len(batches), world()):
        if world() == 1:
            signals.check()  # else a step goes to its end: the others count on this one
        loss, count = task.loss(batches[place])
        loss = loss * (weights[place] / sum(weights))
        loss.backward()
        losses[place] = float(loss.detach())
        tokens += count
    return losses, tokens


def _share(task: Task, epoch: int, position: int, size: int) -> tuple[list[float], int]:
    """Do one rank's part of a step; the leader gets the whole, a follower's return is its own."""
    import torch
    from torch import distributed

    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        _broadcast_all(trained)
    losses, tokens = _add_up(task, epoch, position, size)
    used = [float(parameter.grad is not None) for parameter in trained]
    figures = torch.tensor([*losses, tokens, *used], dtype=torch.float64)
    distributed.reduce(figures, dst=0)
    gradients = torch.cat(
        [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in trained
        ]
    )
    distributed.reduce(gradients, dst=0)
    pieces = gradients.split([parameter.numel() for parameter in trained])
    shares, (tokens, *used) = figures[: len(losses)].tolist(), figures[len(losses) :].tolist()
    for parameter, piece, use in zip(trained, pieces, used, strict=True):
        # As alone: without a gradient from anywhere, an optimizer leaves a parameter as it is.
        parameter.grad = piece.view_as(parameter) if use else None
    return shares, int(tokens)


def _broadcast_all(parameters: "list[torch.nn.Parameter]") -> None:
    import torch

    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    _broadcast(flat)
    if rank():
        pieces = flat.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))
