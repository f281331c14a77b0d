"""Packed batches: many sequences laid end to end as `[1, T]`, with their boundaries and no padding.

Pure functions over lists and tensors. The same format serves MLM, distillation and encoding;
`small_modernbert.models.attention` keeps the sequences of one batch from seeing each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


@dataclass(frozen=True)
class PackedBatch:
    """Sequences laid end to end.

    Attributes:
        input_ids: `(1, T)` int64.
        position_ids: `(1, T)` int64, starting again at 0 with each sequence.
        lengths: tokens of each sequence, in order; they sum to T.
        sequence_of_token: `(T,)` int64, the index of the sequence that a token belongs to.
        rows: caller's ids of the sequences (row numbers of a dataset), in order.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    sequence_of_token: torch.Tensor
    rows: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens T."""
        return self.input_ids.shape[1]

    @property
    def boundaries(self) -> torch.Tensor:
        """Cumulative lengths from 0 to T, `(sequences + 1,)` int32."""
        return torch.tensor((0, *np.cumsum(self.lengths)), dtype=torch.int32)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the batch with its tensors on `device`."""
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.lengths,
            self.sequence_of_token.to(device),
            self.rows,
        )


def pack(sequences: Sequence[np.ndarray], rows: Sequence[int] | None = None) -> PackedBatch:
    """Lay sequences of token ids end to end.

    Equal lengths are best given side by side: attention on the CPU runs once per stretch of them.

    Raises:
        ValueError: there is no sequence, or one is empty.
    """
    lengths = tuple(len(sequence) for sequence in sequences)
    if not lengths or min(lengths) == 0:
        raise ValueError("a packed batch needs at least one sequence, and no empty one")
    repeats = torch.tensor(lengths)
    starts = torch.cumsum(repeats, 0) - repeats
    total = int(repeats.sum())
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate(sequences).astype(np.int64))[None],
        position_ids=(torch.arange(total) - torch.repeat_interleave(starts, repeats))[None],
        lengths=lengths,
        sequence_of_token=torch.repeat_interleave(torch.arange(len(lengths)), repeats),
        rows=tuple(rows) if rows is not None else tuple(range(len(lengths))),
    )


def mean_pool(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Average each sequence's token vectors: `(1, T, hidden_size)` -> `(sequences, hidden_size)`.

    Sums in fp32 whatever the autocast dtype, since a bf16 sum over 1,000 tokens loses digits.
    """
    tokens = hidden[0].float()
    sums = tokens.new_zeros(len(batch.lengths), tokens.shape[1])
    sums = sums.index_add(0, batch.sequence_of_token, tokens)
    counts = torch.tensor(batch.lengths, dtype=sums.dtype, device=sums.device)
    return sums / counts[:, None]


def cls_pool(hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Take each sequence's first vector: `(1, T, hidden_size)` -> `(sequences, hidden_size)`."""
    starts = batch.boundaries[:-1].to(hidden.device).long()
    return hidden[0].index_select(0, starts).float()


def plan_batches(
    lengths: np.ndarray,
    *,
    tokens_per_batch: int,
    rows_per_batch: int,
    window_batches: int,
    seed: int,
    epoch: int,
    window: int = 0,
) -> list[np.ndarray]:
    """Cut one epoch into batches of near-equal cost whose sequences have near-equal lengths.

    Rows are shuffled, then sorted by length inside windows of about `window_batches` batches, cut
    at `tokens_per_batch` tokens or `rows_per_batch` rows, whichever comes first, and the batches
    are shuffled. A pure function of its arguments: an interrupted epoch is planned again, equal.

    Args:
        lengths: `(rows,)` tokens of each row.
        tokens_per_batch: upper bound on the tokens of a batch; a longer single row stands alone.
        rows_per_batch: upper bound on the rows of a batch.
        window_batches: larger windows give more even lengths and less randomness.
        seed: the run's seed.
        epoch: number of the pass over the data, from 0.
        window: number of the part of the pass that these rows are, from 0.

    Returns:
        Arrays of row numbers; together they hold every row exactly once.
    """
    random = np.random.default_rng((seed, epoch, window))  # numpy takes (a, b, 0) as (a, b)
    order = random.permutation(len(lengths))
    mean = float(lengths.mean()) if len(lengths) else 1.0
    window = max(1, int(window_batches * min(rows_per_batch, tokens_per_batch / max(mean, 1.0))))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        piece = order[start : start + window]
        piece = piece[np.argsort(lengths[piece], kind="stable")]
        batches.extend(cut_by_tokens(piece, lengths[piece], tokens_per_batch, rows_per_batch))
    return [batches[i] for i in random.permutation(len(batches))]


def batches_by_epoch(
    lengths: np.ndarray,
    *,
    tokens_per_batch: int,
    rows_per_batch: int,
    window_batches: int,
    seed: int,
) -> Callable[[int], list[np.ndarray]]:
    """Return `plan_batches` as a function of the epoch that remembers its last two answers."""
    rules = {"tokens_per_batch": tokens_per_batch, "rows_per_batch": rows_per_batch}
    rules |= {"window_batches": window_batches, "seed": seed}
    return lru_cache(maxsize=2)(lambda epoch: plan_batches(lengths, **rules, epoch=epoch))


def cut_by_tokens(
    rows: np.ndarray, lengths: np.ndarray, tokens_per_batch: int, rows_per_batch: int
) -> list[np.ndarray]:
    """Cut rows, in their order, wherever the next one would exceed the batch's tokens or rows."""
    batches, begin, used = [], 0, 0
    for end, length in enumerate(lengths):
        if end > begin and (used + length > tokens_per_batch or end - begin >= rows_per_batch):
            batches.append(rows[begin:end])
            begin, used = end, 0
        used += int(length)
    if begin < len(rows):
        batches.append(rows[begin:])
    return batches


def pack_into_bins(
    lengths: np.ndarray, capacity: int, *, seed: int, epoch: int, window: int = 0
) -> list[list[int]]:
    """Fill bins of `capacity` tokens greedily: each sequence goes where it fits most tightly.

    Best-fit decreasing over the shuffled rows, with one bucket of open bins per amount of free
    space, so that the cost grows with rows x log(capacity) and not with rows x bins. Realistic
    length mixes fill above 99 % (ModernBERT, arXiv 2412.13663, section 2.2.3, packs greedily
    for the same reason). The bins come out shuffled.

    Args:
        lengths: `(rows,)` tokens of each row, each at most `capacity`.
        capacity: tokens of a bin.
        seed: the run's seed.
        epoch: number of the pass over the data, from 0.
        window: number of the part of the pass that these rows are, from 0.

    Returns:
        Lists of row numbers, each summing to at most `capacity` tokens.

    Raises:
        ValueError: a row is longer than a bin.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"a sequence of {int(lengths.max())} tokens exceeds {capacity}")
    random = np.random.default_rng((seed, epoch, window))
    order = random.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    bins: list[list[int]] = []
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = _Spaces(capacity)
    for row in order:
        length = int(lengths[row])
        space = spaces.smallest_at_least(length)
        if space is None:
            bins.append([])
            index, space = len(bins) - 1, capacity
        else:
            index = open_bins[space].pop()
            if not open_bins[space]:
                spaces.remove(space)
        bins[index].append(int(row))
        left = space - length
        if left:
            if not open_bins[left]:
                spaces.add(left)
            open_bins[left].append(index)
    return [bins[i] for i in random.permutation(len(bins))]


class _Spaces:
    """The set of free-space sizes that some open bin has, as the bits of one integer."""

    def __init__(self, capacity: int) -> None:
        self._bits = 0
        self._capacity = capacity

    def add(self, space: int) -> None:
        self._bits |= 1 << space

    def remove(self, space: int) -> None:
        self._bits &= ~(1 << space)

    def smallest_at_least(self, length: int) -> int | None:
        rest = self._bits >> length
        return length + (rest & -rest).bit_length() - 1 if rest else None


def fill(bins: Sequence[Sequence[int]], lengths: np.ndarray, capacity: int) -> float:
    """Return the share of the bins' capacity that holds tokens."""
    used = sum(int(lengths[list(rows)].sum()) for rows in bins)
    return used / (capacity * len(bins)) if bins else 1.0
