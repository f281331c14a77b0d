"""Promises of packing.py: every row once, inside the budget, planned again equal."""

import numpy as np
import pytest
import torch

from small_modernbert.models.packing import (
    cls_pool,
    cut_by_tokens,
    fill,
    mean_pool,
    pack,
    pack_into_bins,
    plan_batches,
)

LENGTHS = np.random.default_rng(0).integers(1, 200, 1000)


def realistic_lengths(rows: int, longest: int) -> np.ndarray:
    """Return lengths as texts have them: median about 60, a long tail, cut at `longest`."""
    drawn = np.random.default_rng(1).lognormal(np.log(60), 0.9, rows)
    return np.clip(drawn.astype(np.int64), 3, longest)


def plan(**changes: int) -> list[np.ndarray]:
    """Plan an epoch over LENGTHS."""
    wanted = {
        "tokens_per_batch": 1024,
        "rows_per_batch": 16,
        "window_batches": 8,
        "seed": 7,
        "epoch": 0,
    }
    return plan_batches(LENGTHS, **{**wanted, **changes})


def same(one: list, two: list) -> bool:
    """Say whether two plans hold the same batches in the same order."""
    return len(one) == len(two) and all(map(np.array_equal, one, two))


def test_pack_lays_sequences_end_to_end() -> None:
    """Ids, restarting positions, boundaries and rows describe the sequences in their order."""
    batch = pack([np.array([5, 6, 7]), np.array([8]), np.array([9, 10])], rows=[4, 2, 11])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.lengths == (3, 1, 2)
    assert batch.sequence_of_token.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.boundaries.tolist() == [0, 3, 4, 6]
    assert batch.boundaries.dtype == torch.int32
    assert batch.rows == (4, 2, 11)
    assert batch.tokens == 6
    assert batch.input_ids.dtype == torch.int64


@pytest.mark.parametrize("sequences", [[], [np.array([1]), np.array([], dtype=np.int64)]])
def test_pack_refuses_nothing(sequences: list[np.ndarray]) -> None:
    """No sequence, or an empty one, cannot be pooled and is refused."""
    with pytest.raises(ValueError, match="empty"):
        pack(sequences)


def test_pooling_is_per_sequence() -> None:
    """The mean and the first vector are taken inside each sequence, in fp32."""
    batch = pack([np.arange(1, n + 1) for n in (3, 1, 5)])
    hidden = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    pieces = hidden[0].split([3, 1, 5])
    torch.testing.assert_close(
        mean_pool(hidden, batch), torch.stack([piece.mean(dim=0) for piece in pieces])
    )
    assert torch.equal(cls_pool(hidden, batch), torch.stack([piece[0] for piece in pieces]))
    assert mean_pool(hidden.bfloat16(), batch).dtype == torch.float32


@pytest.mark.parametrize(("tokens", "rows"), [(1024, 16), (200, 1000), (10_000_000, 7), (50, 4)])
def test_batches_cover_every_row_once_inside_the_budget(tokens: int, rows: int) -> None:
    """An epoch holds each row exactly once; only a row longer than the budget exceeds it, alone."""
    batches = plan(tokens_per_batch=tokens, rows_per_batch=rows)
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    for batch in batches:
        assert 1 <= len(batch) <= rows
        assert LENGTHS[batch].sum() <= tokens or len(batch) == 1


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    """Equal arguments plan equal batches; another epoch or seed plans others."""
    assert same(plan(), plan())
    assert not same(plan(), plan(epoch=1))
    assert not same(plan(), plan(seed=8))


def test_batches_are_even_but_shuffled() -> None:
    """Lengths inside a batch lie close together, while short batches do not come first."""
    batches = plan()
    spread = np.mean([np.ptp(LENGTHS[batch]) for batch in batches])
    assert spread < 0.25 * np.ptp(LENGTHS)
    means = [LENGTHS[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_no_rows_no_batches() -> None:
    """Nothing to train on is an empty plan, not an error here."""
    none = np.array([], dtype=np.int64)
    assert plan_batches(none, tokens_per_batch=9, rows_per_batch=9, window_batches=1, seed=0,
                        epoch=0) == []  # fmt: skip
    assert pack_into_bins(none, 9, seed=0, epoch=0) == []


def test_cut_keeps_the_order() -> None:
    """Cutting neither moves nor drops a row."""
    rows = np.array([3, 1, 2, 0])
    pieces = cut_by_tokens(rows, np.array([4, 4, 1, 9]), tokens_per_batch=8, rows_per_batch=3)
    assert [piece.tolist() for piece in pieces] == [[3, 1], [2], [0]]


@pytest.mark.parametrize("capacity", [200, 256, 1024])
def test_bins_hold_every_row_once(capacity: int) -> None:
    """Each row lies in exactly one bin, no bin overflows."""
    bins = pack_into_bins(LENGTHS, capacity, seed=0, epoch=0)
    assert sorted(row for one in bins for row in one) == list(range(len(LENGTHS)))
    assert max(LENGTHS[one].sum() for one in bins) <= capacity


@pytest.mark.parametrize("capacity", [512, 1024])
def test_bins_fill(capacity: int) -> None:
    """A realistic mix of lengths fills more than 98 % of the capacity."""
    lengths = realistic_lengths(5000, capacity)
    bins = pack_into_bins(lengths, capacity, seed=0, epoch=0)
    share = fill(bins, lengths, capacity)
    assert share > 0.98
    assert share == pytest.approx(lengths.sum() / (capacity * len(bins)))


def test_bins_are_a_function_of_seed_and_epoch() -> None:
    """Equal arguments fill equal bins; another epoch or seed puts other rows together."""

    def bins(seed: int, epoch: int) -> list[list[int]]:
        return pack_into_bins(LENGTHS, 512, seed=seed, epoch=epoch)

    assert bins(3, 1) == bins(3, 1)
    for other in (bins(3, 2), bins(4, 1)):
        assert {frozenset(one) for one in other} != {frozenset(one) for one in bins(3, 1)}


def test_too_long_sequence_raises() -> None:
    """A sequence that no bin can hold is refused, never cut in silence."""
    with pytest.raises(ValueError, match="65 tokens exceeds 64"):
        pack_into_bins(np.array([3, 65]), 64, seed=0, epoch=0)
    assert pack_into_bins(np.array([64, 64]), 64, seed=0, epoch=0) in ([[0], [1]], [[1], [0]])
