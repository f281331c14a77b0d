"""Batches in which no text stands twice, planned for a whole epoch, from one or more sources.

Where the other rows' texts of a batch are a row's negatives, a text that stands in it twice is
asked to be far from itself. Pure functions: equal arguments, equal batches.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Mix = Literal["mixed", "proportional", "round_robin"]
FEWEST_ROWS = 2  # of a batch: a row alone has nothing to be told from


@dataclass(frozen=True)
class Epoch:
    """The batches of one pass over the data.

    Attributes:
        batches: arrays of row numbers, no row twice.
        unplaced: rows that no batch of two rows could take (what is left shares a text, or is
            longer than a batch's tokens).
        left_out: rows of the larger sources after the smallest one ran out; round_robin only.
    """

    batches: list[np.ndarray]
    unplaced: np.ndarray
    left_out: np.ndarray


def plan_epoch(
    keys: Sequence[Sequence[int]],
    lengths: np.ndarray,
    sources: np.ndarray,
    *,
    mix: Mix,
    distinct: bool,
    tokens_per_batch: int,
    rows_per_batch: int,
    window_batches: int,
    seed: int,
    epoch: int,
) -> Epoch:
    """Plan one epoch.

    Args:
        keys: of each row, the numbers of its texts; equal texts have equal numbers.
        lengths: `(rows,)` tokens of each row, all its texts together.
        sources: `(rows,)` number of each row's source.
        mix: "mixed": a batch takes rows of all sources. "proportional": of one source only, and
            each source has as many batches as it fills. "round_robin": of one source only, in turn,
            until the smallest source has no more (as sentence-transformers' samplers of these
            names do).
        distinct: whether no text may stand twice in a batch.
        tokens_per_batch: upper bound on the tokens of a batch; a longer single row stands alone.
        rows_per_batch: upper bound on the rows of a batch.
        window_batches: rows are sorted by length inside windows of as many batches; 1 leaves the
            lengths mixed.
        seed: the run's seed.
        epoch: number of the pass over the data, from 0.
    """
    names = np.unique(sources)
    groups = [np.arange(len(lengths))]
    if mix != "mixed":
        groups = [np.flatnonzero(sources == name) for name in names]
    batches: list[list[np.ndarray]] = []
    unplaced: list[np.ndarray] = []
    for number, rows in enumerate(groups):
        random = np.random.default_rng((seed, epoch, number))
        mean = float(lengths[rows].mean()) if len(rows) else 1.0
        per_batch = min(rows_per_batch, tokens_per_batch / max(mean, 1.0))
        order = by_length(random.permutation(rows), lengths, int(window_batches * per_batch))
        filled = list(
            fill(order, keys if distinct else None, lengths, tokens_per_batch, rows_per_batch)
        )
        if distinct:
            unplaced += [batch for batch in filled if len(batch) < FEWEST_ROWS]
            filled = [batch for batch in filled if len(batch) >= FEWEST_ROWS]
        batches.append([filled[i] for i in random.permutation(len(filled))])
    if mix == "round_robin":
        planned, left_out = _by_turns(batches)
    else:
        planned, left_out = [batch for of_source in batches for batch in of_source], []
        random = np.random.default_rng((seed, epoch))
        planned = [planned[i] for i in random.permutation(len(planned))]
    none = np.zeros(0, dtype=np.int64)
    return Epoch(planned, np.concatenate([none, *unplaced]), np.concatenate([none, *left_out]))


def _by_turns(
    batches: Sequence[Sequence[np.ndarray]],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return a batch of each source in turn until a source has no more; and what is left."""
    batches = [of_source for of_source in batches if of_source]
    rounds = min(map(len, batches), default=0)
    planned = [of_source[turn] for turn in range(rounds) for of_source in batches]
    return planned, [batch for of_source in batches for batch in of_source[rounds:]]


def by_length(order: np.ndarray, lengths: np.ndarray, window: int) -> np.ndarray:
    """Sort rows by length inside windows, upwards and downwards by turns.

    By turns, since batches are cut from the whole: one that spans two windows then has rows of near
    length from both.
    """
    pieces = []
    for turn, start in enumerate(range(0, len(order), max(window, 1))):
        piece = order[start : start + max(window, 1)]
        piece = piece[np.argsort(lengths[piece], kind="stable")]
        pieces.append(piece[::-1] if turn % 2 else piece)
    return np.concatenate(pieces) if pieces else order


def fill(
    order: np.ndarray,
    keys: Sequence[Sequence[int]] | None,
    lengths: np.ndarray,
    tokens_per_batch: int,
    rows_per_batch: int,
) -> Iterator[np.ndarray]:
    """Fill batches with rows in their order; a row that clashes waits for the next batch.

    A waiting row is kept under the text that stood in its way: of all that wait for one text, a
    batch can take one at most, so the others need not be looked at. The cost stays near linear
    even where thousands of rows share an answer.

    Args:
        order: row numbers.
        keys: of each row of the data, the numbers of its texts; None if texts may stand twice.
        lengths: tokens of each row of the data.
        tokens_per_batch: see `plan_epoch`.
        rows_per_batch: see `plan_epoch`.
    """
    fresh = deque(order.tolist())
    waiting: dict[int, deque[int]] = {}

    def queues() -> Iterator[tuple[deque[int], int | None]]:
        for key in list(waiting):
            yield waiting[key], key
        while fresh:
            yield fresh, None

    while fresh or waiting:
        batch: list[int] = []
        seen: set[int] = set()
        used = 0
        for queue, key in queues():
            row = queue[0]
            if len(batch) == rows_per_batch:
                break
            clash = next((key for key in keys[row] if key in seen), None) if keys else None
            if clash is None and batch and used + lengths[row] > tokens_per_batch:
                break
            queue.popleft()
            if key is not None and not queue:
                del waiting[key]
            if clash is not None:
                waiting.setdefault(clash, deque()).append(row)
                continue
            batch.append(row)
            used += int(lengths[row])
            if keys:
                seen.update(keys[row])
        yield np.asarray(batch, dtype=np.int64)
