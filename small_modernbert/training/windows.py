"""Passes over streamed rows: planned, and their rows fetched, a window of shards at a time.

Which shards a window has, their order, and the batches in a window follow from the seed and the
number of the pass alone: neither ranks nor a kill change them, and the batches of two windows at
most are in memory. Where all rows fit into one window nothing is streamed.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np

from small_modernbert.data.streamed_rows import Shards, StreamedRows

# Rows of a window, number of the pass, number of the window in it -> its batches.
PlanWindow = Callable[[np.ndarray, int, int], list[Any]]


def cut_windows(sizes: Sequence[int], bound: int, seed: int, epoch: int) -> list[Shards]:
    """Return the shards of each window of a pass, all of them once, in an order of the pass's own.

    Args:
        sizes: rows of each shard.
        bound: rows of a window, at most; a larger shard is a window of its own.
        seed: the run's seed.
        epoch: number of the pass over the data, from 0.
    """
    windows: list[Shards] = []
    taken: list[int] = []
    rows = 0
    for number in np.random.default_rng((seed, epoch)).permutation(len(sizes)).tolist():
        if taken and rows + sizes[number] > bound:
            windows.append(tuple(taken))
            taken, rows = [], 0
        taken.append(number)
        rows += sizes[number]
    return [*windows, tuple(taken)] if taken else windows


class Windows:
    """The passes over streamed rows; `epoch` is what `loop.Task` asks for."""

    def __init__(self, rows: StreamedRows, seed: int, plan: PlanWindow) -> None:
        """Stream rows.

        Args:
            rows: of all windows.
            seed: the run's seed.
            plan: gives the batches of a window, whatever they are; its rows are in order of
                shards, and it must be a pure function.
        """
        self.rows, self.seed, self.plan = rows, seed, plan
        self.passes = 0  # that were asked for: a run asks for all of its before the first step
        self.epoch = lru_cache(maxsize=2)(self._pass)
        self.cut = lru_cache(maxsize=2)(
            lambda epoch: cut_windows(rows.sizes, rows.window_rows, seed, epoch)
        )

    def _pass(self, epoch: int) -> "Pass":
        self.passes = max(self.passes, epoch + 1)
        return Pass(self, epoch)


class Pass(Sequence[Any]):
    """The batches of one pass. To take some has their windows fetched, and the next begun."""

    def __init__(self, windows: Windows, epoch: int) -> None:
        """Plan every window once, to know how many batches there are."""
        self._rows = rows = windows.rows
        self._all, self._epoch, self._windows = windows, epoch, windows.cut(epoch)
        self._plan = lru_cache(maxsize=2)(
            lambda number: windows.plan(rows.rows_of(self._windows[number]), epoch, number)
        )
        # The first window last, since that is the one that the plan then still remembers.
        counts = [len(self._plan(number)) for number in reversed(range(len(self._windows)))]
        self._ends = np.cumsum(counts[::-1]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Any: ...  # noqa: ANN401  the task's own batch
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        """Return a batch, or those of a step; their rows are then at hand, and no others."""
        if isinstance(place, int):
            place = range(len(self))[place]
            return self._take(place, place + 1)[0]
        begin, end, _ = place.indices(len(self))
        return self._take(begin, end)

    def _take(self, begin: int, end: int) -> list[Any]:
        numbers, taken = [], []
        while begin < end:
            number = bisect_right(self._ends, begin)
            batches = self._plan(number)
            first = begin - (self._ends[number] - len(batches))
            part = batches[first : first + end - begin]
            numbers.append(number)
            taken += part
            begin += len(part)
        if numbers:
            held = [self._windows[number] for number in numbers]
            self._rows.hold(held, self._following(numbers[-1]))
        return taken

    def _following(self, number: int) -> Shards | None:
        """Return the window after one of this pass; None after the last of the last pass."""
        if number + 1 < len(self._windows):
            return self._windows[number + 1]
        more = self._epoch + 1 < self._all.passes
        return self._all.cut(self._epoch + 1)[0] if more else None
