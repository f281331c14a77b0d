"""Several processes, one run: `torchrun --nproc-per-node 2 script.py ...`, a process a GPU.

Rank 0 leads: it prepares a stage's inputs while the others wait, and it alone writes, says what
happens, and ends the script. In between all train alike (`training.data_parallel`), each with the
optimizer and all of its state, and so decide alike. What a rank alone knows, a signal or its share
of a sum, becomes known to all in `add_up`; what only the leader knows, in `from_leader`.

A rank that ends takes the others with it: their next exchange fails, and says so.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

from small_modernbert.runs import signals
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
# The leader may tokenise for hours; a process that died is noticed by torchrun, not by waiting.
PATIENCE = datetime.timedelta(days=7)
# Of an exchange with a process that has ended, in gloo's words; NCCL's errors have their own type.
ENDED = ("closed", "reset by peer", "broken pipe", "connection refused")


class _State:
    released = False  # the others
    sharing = False  # what `share` deals out


class Lost(UserError):
    """Another process of this run has ended."""


def rank() -> int:
    """Return this process's number, 0 for the leader and where there is only one."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def world() -> int:
    """Return how many processes torchrun has started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def restarted() -> bool:
    """Say whether torchrun has started this run again after a process of it had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


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
    backend = "gloo"
    if torch.cuda.is_available():
        place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place >= there:
            raise UserError(
                f"{place + 1} processes or more on a machine with GPUs for {there}: a process has "
                f"one of its own; torchrun --nproc-per-node {there}"
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    with noticing():
        store, number, count = next(distributed.rendezvous("env://", timeout=PATIENCE))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun 2.13 keeps one store for all attempts of a run, with the addresses of those
            # who have ended. On several machines its attempts have no common number: README.md.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = distributed.PrefixStore(f"attempt-{attempt}", store)
        distributed.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=PATIENCE
        )


def release(work: bool) -> None:
    """As the leader, send the waiting processes on: to work, or home; the first call counts."""
    if world() > 1 and not rank() and not _State.released:
        _State.released = True
        from_leader(work)


def wait() -> bool:
    """As a process that does not lead, wait for `release`; say whether there is work."""
    try:
        with noticing():
            start()
            return from_leader(False)
    except Lost as error:
        _end(error)


def from_leader(value: Item) -> Item:
    """Return what the leader has given, on every rank.

    Raises:
        Lost: another process has ended.
    """
    if world() == 1:
        return value
    from torch import distributed

    values = [value]
    with noticing():
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def add_up(values: "torch.Tensor") -> "torch.Tensor":
    """Return the sum of all ranks' values: the same bits on every one, so that all decide alike.

    Raises:
        Interrupted: a signal has asked one of them to end; it is raised on every one.
        Lost: another process has ended.
    """
    if world() == 1:
        return values
    import torch
    from torch import distributed

    # A CPU tensor: gloo carries it, whatever the model is on.
    sums = torch.cat([values.flatten(), values.new_tensor([float(signals.pending())])])
    with noticing():
        distributed.all_reduce(sums)
    if sums[-1]:
        raise signals.interruption()
    return sums[:-1].view_as(values)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Let `share` deal out and `gather` collect: all ranks are in the same function."""
    _State.sharing = world() > 1
    try:
        yield
    finally:
        _State.sharing = False


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this rank's items, every world-th, inside `sharing()`; else all of them."""
    return items[rank() :: world()] if _State.sharing else items


def gather(values: "torch.Tensor") -> "torch.Tensor":
    """Return all ranks' values inside `sharing()`, each from its rank and zero on the others.

    Raises:
        Interrupted, Lost: see `add_up`.
    """
    return add_up(values) if _State.sharing else values


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """Do what all ranks do alike: hold signals until all know of them, and end together.

    What ends all of them is said by the leader, which comes to the same; the others end in silence,
    but at the loss of a process, which may have been the leader.
    """
    if world() == 1:
        yield
        return
    from torch import distributed

    try:
        with signals.deferred():
            yield
    except (signals.Interrupted, UserError) as error:
        if not rank():
            raise
        _end(error)
    distributed.destroy_process_group()


@contextlib.contextmanager
def noticing() -> Iterator[None]:
    """Tell the end of another process from any other error.

    Raises:
        Lost: it is that.
    """
    try:
        yield
    except RuntimeError as error:
        from torch import distributed

        kinds = (distributed.DistBackendError, distributed.DistNetworkError)
        if isinstance(error, kinds) or any(word in str(error).lower() for word in ENDED):
            raise Lost("another process of this run has ended") from error
        raise


def _end(error: BaseException) -> NoReturn:
    """End a process that does not lead."""
    if isinstance(error, Lost):
        print(f"rank {rank()}: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
