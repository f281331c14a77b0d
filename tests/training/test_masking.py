"""Promises of masking.py: 30 % hidden as 80/10/10, by seed, epoch and sample alone."""

from typing import Any

import numpy as np
import pytest

from small_modernbert.training.masking import IGNORED, mask_tokens, uniform

MASK, VOCABULARY = 4, 30_000
SPECIAL = np.arange(5)
ORDINARY = np.arange(5, VOCABULARY)


def make_tokens(samples: int = 2000, length: int = 102) -> tuple[np.ndarray, ...]:
    """Return ids, samples and positions of sequences between [CLS] (2) and [SEP] (3)."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (samples, length))
    ids[:, 0], ids[:, -1] = 2, 3
    places = np.tile(np.arange(length), samples)
    return ids.reshape(-1), np.repeat(np.arange(samples), length), places


def mask(
    ids: np.ndarray,
    samples: np.ndarray,
    positions: np.ndarray,
    **changes: Any,  # noqa: ANN401  arguments of mask_tokens
) -> tuple[np.ndarray, np.ndarray]:
    """Mask with 30 %, seed 42, epoch 0."""
    wanted = {
        "probability": 0.3,
        "mask_id": MASK,
        "special": SPECIAL,
        "ordinary": ORDINARY,
        "seed": 42,
        "epoch": 0,
    }
    return mask_tokens(ids, samples, positions, **{**wanted, **changes})


def test_shares() -> None:
    """30 % of the ordinary tokens are chosen; of those 80 % hidden, 10 % replaced, 10 % kept."""
    ids, samples, positions = make_tokens()
    hidden, labels = mask(ids, samples, positions)
    ordinary, chosen = ~np.isin(ids, SPECIAL), labels != IGNORED
    share = chosen.sum() / ordinary.sum()
    assert share == pytest.approx(0.3, abs=0.005)  # five standard errors of 200,000 tokens
    assert (hidden[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.008)
    kept = (hidden == ids)[chosen].mean()
    assert kept == pytest.approx(0.1, abs=0.007)
    replaced = hidden[chosen & (hidden != MASK) & (hidden != ids)]
    assert len(replaced) / chosen.sum() == pytest.approx(0.1, abs=0.007)
    assert not np.isin(replaced, SPECIAL).any()
    spread = np.histogram(replaced, bins=10, range=(5, VOCABULARY))[0] / len(replaced)
    np.testing.assert_allclose(spread, 0.1, atol=0.02)


def test_no_place_is_favoured() -> None:
    """Every position and every sample is chosen about as often as any other."""
    ids, samples, positions = make_tokens()
    chosen = (mask(ids, samples, positions)[1] != IGNORED).reshape(2000, 102)[:, 1:-1]
    np.testing.assert_allclose(chosen.mean(axis=0), 0.3, atol=0.05)
    np.testing.assert_allclose(chosen.mean(axis=1).mean(), 0.3, atol=0.005)
    # As independent draws spread: sqrt(0.3 * 0.7 / 100).
    assert chosen.mean(axis=1).std() == pytest.approx(0.0458, rel=0.1)
    neighbours = np.corrcoef(chosen[:, :-1].reshape(-1), chosen[:, 1:].reshape(-1))[0, 1]
    assert abs(neighbours) < 0.01


def test_labels_and_special_tokens() -> None:
    """Labels are the true tokens where chosen, -100 elsewhere; only chosen tokens change."""
    ids, samples, positions = make_tokens(50)
    before = ids.copy()
    hidden, labels = mask(ids, samples, positions, probability=0.9)
    chosen = labels != IGNORED
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(hidden[~chosen], ids[~chosen])
    special = np.isin(ids, SPECIAL)
    assert not chosen[special].any()
    assert np.array_equal(hidden[special], ids[special])
    assert np.array_equal(ids, before)


def test_same_masks_in_any_batch() -> None:
    """A sample's masks do not depend on its batch, its place in it, or what else is there."""
    ids, samples, positions = make_tokens(40)
    hidden, labels = mask(ids, samples, positions)
    order = np.random.default_rng(1).permutation(40)
    rows = np.concatenate([np.flatnonzero(samples == one) for one in order[:7]])
    again = mask(ids[rows], samples[rows], positions[rows])
    assert np.array_equal(again[0], hidden[rows])
    assert np.array_equal(again[1], labels[rows])


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 43}, {"epoch": 2**31}])
def test_other_masks_in_another_epoch(change: dict[str, int]) -> None:
    """Another epoch or seed draws masks that are independent of these."""
    ids, samples, positions = make_tokens(500)
    one = mask(ids, samples, positions)[1] != IGNORED
    two = mask(ids, samples, positions, **change)[1] != IGNORED
    ordinary = ~np.isin(ids, SPECIAL)
    assert (one & two)[ordinary].mean() == pytest.approx(0.09, abs=0.01)


def test_equal_texts_have_masks_of_their_own() -> None:
    """Two samples with one text are masked differently."""
    ids, _, positions = make_tokens(1)
    one, two = (mask(ids, np.full(len(ids), sample), positions)[1] for sample in (0, 1))
    assert not np.array_equal(one, two)


def test_numbers_are_uniform_and_distinct() -> None:
    """The draws fill [0, 1) evenly, and streams for one token differ."""
    _, samples, positions = make_tokens(1000)
    draws = [uniform(1, 0, samples, positions, stream) for stream in range(3)]
    for draw in draws:
        assert draw.min() >= 0
        assert draw.max() < 1
        shares = np.histogram(draw, bins=20, range=(0, 1))[0] / len(draw)
        np.testing.assert_allclose(shares, 0.05, atol=0.004)
        assert len(np.unique(draw)) > 0.999 * len(draw)
    assert abs(np.corrcoef(draws)[0, 1]) < 0.01
    # Swapping sample and position is another token.
    assert uniform(1, 0, np.array([3]), np.array([5]), 0) != uniform(
        1, 0, np.array([5]), np.array([3]), 0
    )
