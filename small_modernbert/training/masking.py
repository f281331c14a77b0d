"""Masking for language modelling, as a pure function of (seed, epoch, sample, position).

Nothing is drawn from a generator's state, so an interrupted run masks the same tokens when it goes
on, whatever order, batch or process a sample turns up in.
"""

import numpy as np

from small_modernbert.data.keys import mix

IGNORED = -100
KEPT, RANDOM = 0.1, 0.1  # of the chosen tokens; the rest become [MASK] (BERT, arXiv 1810.04805)


def uniform(
    seed: int, epoch: int, samples: np.ndarray, positions: np.ndarray, stream: int
) -> np.ndarray:
    """Return a number in [0, 1) for each (sample, position), float64.

    Args:
        seed: the run's seed.
        epoch: number of the pass.
        samples: `(T,)` id of the sample that a token belongs to.
        positions: `(T,)` place of the token in its sample.
        stream: tells several draws for one token apart.
    """
    state = np.full(len(samples), np.uint64(seed), dtype=np.uint64)
    for words in (epoch, stream, samples, positions):
        state = mix(state, words)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mask_tokens(
    ids: np.ndarray,
    samples: np.ndarray,
    positions: np.ndarray,
    *,
    probability: float,
    mask_id: int,
    special: np.ndarray,
    ordinary: np.ndarray,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens to predict and hide them: 80 % [MASK], 10 % a random token, 10 % unchanged.

    Args:
        ids: `(T,)` token ids.
        samples: `(T,)` id of each token's sample.
        positions: `(T,)` place of each token in its sample.
        probability: share of the ordinary tokens to choose; ModernBERT takes 0.3.
        mask_id: id of [MASK].
        special: ids that are never chosen.
        ordinary: ids that random replacements are drawn from.
        seed: the run's seed.
        epoch: number of the pass.

    Returns:
        The input `(T,)` with tokens hidden, and the labels `(T,)`: the token where one is to be
        predicted, -100 elsewhere.
    """
    chosen = uniform(seed, epoch, samples, positions, 0) < probability
    chosen &= ~np.isin(ids, special)
    labels = np.where(chosen, ids, IGNORED)
    fate = uniform(seed, epoch, samples, positions, 1)
    hidden = np.where(chosen & (fate >= KEPT + RANDOM), mask_id, ids)
    draw = uniform(seed, epoch, samples, positions, 2)
    replacement = ordinary[(draw * len(ordinary)).astype(np.int64)]
    return np.where(chosen & (fate < RANDOM), replacement, hidden), labels
