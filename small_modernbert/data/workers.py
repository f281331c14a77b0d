"""Batches worked on by several processes, results in order: for what Python does row by row."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from small_modernbert.runs.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def pool(processes: int) -> Iterator[Executor | None]:
    """Hold so many processes ready; None, which stands for this one, where one is enough."""
    if processes < 2:
        yield None
        return
    # Started afresh, not forked: pyarrow and tokenizers have threads, which a fork would break.
    executor = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in
    )
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _settle_in() -> None:
    # The parent decides what Ctrl-C means, and its end, even a violent one, is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def ordered_map(
    executor: Executor | None,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int = 4,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order.

    Args:
        executor: from `pool`; None works here and now.
        function: can be pickled, like the items and the results.
        items: drawn no more than `ahead` + 1 before their results are yielded.
        ahead: items under way beside the one that is waited for.

    Raises:
        UserError: a process died.
    """
    if executor is None:
        yield from map(function, items)
        return
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, for want of memory perhaps; run the same command again, "
            "with --workers 1"
        ) from None
