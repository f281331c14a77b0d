"""duplicates.py: fingerprints against the Jaccard indices that they stand for."""

import random

import numpy as np
import pytest

from small_modernbert.data.duplicates import (
    SHINGLE_TOKENS,
    MinHash,
    exact_duplicates,
    near_duplicates,
    word_ids,
)
from small_modernbert.data.keys import text_key

TOKENS = 60


def shingles(ids: list[int]) -> set[tuple[int, ...]]:
    """Return the set that a signature stands for."""
    return {tuple(ids[i : i + SHINGLE_TOKENS]) for i in range(len(ids) - SHINGLE_TOKENS + 1)}


def jaccard(left: list[int], right: list[int]) -> float:
    """Return the Jaccard index of two texts' shingles."""
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def make_texts(bases: int, seed: int = 0) -> list[list[int]]:
    """Return random texts, each followed by versions with 1, 2, 4 and 12 tokens changed."""
    chooser = random.Random(seed)
    texts = []
    for _ in range(bases):
        base = [chooser.randrange(50_000) for _ in range(TOKENS)]
        texts.append(base)
        for changes in (1, 2, 4, 12):
            version = list(base)
            for place in chooser.sample(range(TOKENS), changes):
                version[place] = chooser.randrange(50_000)
            texts.append(version)
    return texts


def find_near(minhash: MinHash, texts: list[list[int]]) -> np.ndarray:
    """Run the search over signatures held in memory."""
    signatures = minhash.signatures(texts)
    bands = minhash.band_hashes(signatures)
    alive = np.ones(len(texts), dtype=bool)
    return near_duplicates(minhash, alive, lambda band: bands[:, band], signatures.__getitem__)


def test_keys_ignore_case_and_space_only() -> None:
    """Case and white space make no difference, a letter does."""
    assert text_key("The  River\nof stone") == text_key("the river of STONE")
    assert text_key("the river of stone") != text_key("the river of stones")


def test_first_of_equal_keys_stays() -> None:
    """Every later row with a key that was seen is an exact duplicate."""
    keys = np.array([5, 3, 5, 9, 3, 5], dtype=np.uint64)
    assert exact_duplicates(keys).tolist() == [False, False, True, False, True, True]


def test_signatures_estimate_the_jaccard_index() -> None:
    """The share of equal values is the Jaccard index, within its error, for ragged texts too."""
    minhash = MinHash(permutations=256, threshold=0.8, seed=1)
    texts = [[7], [7, 8], *make_texts(20)]
    signatures = minhash.signatures(texts)
    assert signatures.shape == (len(texts), 256)
    for left in range(2, len(texts) - 1):
        estimate = (signatures[left] == signatures[left + 1]).mean()
        assert estimate == pytest.approx(jaccard(texts[left], texts[left + 1]), abs=0.13)
    # A text's signature does not depend on its neighbours.
    assert (minhash.signatures(texts[5:6])[0] == signatures[5]).all()
    assert minhash.signatures([]).shape == (0, 256)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    """The shape of the bands finds 99 of 100 pairs at the threshold."""
    minhash = MinHash(permutations=64, threshold=threshold, seed=1)
    assert minhash.bands * minhash.band_rows <= 64
    assert 1 - (1 - threshold**minhash.band_rows) ** minhash.bands >= 0.99


def test_near_duplicates_are_found_and_others_are_not() -> None:
    """Against brute force: what is clearly above the threshold goes, what is below stays."""
    minhash = MinHash(permutations=128, threshold=0.7, seed=3)
    texts = make_texts(60)
    dropped = find_near(minhash, texts)
    for row in range(len(texts)):
        group = row - row % 5
        best = max((jaccard(texts[row], texts[i]) for i in range(group, row)), default=0.0)
        kept = [jaccard(texts[row], texts[i]) for i in range(group, row) if not dropped[i]]
        if max(kept, default=0.0) > 0.85:
            assert dropped[row]
        if best < 0.55:
            assert not dropped[row]
    assert not dropped[::5].any()


def test_a_large_bucket_of_copies_leaves_one() -> None:
    """A hundred copies, beyond the window that is compared pair by pair, leave the first."""
    copies = [make_texts(1)[0]] * 100
    dropped = find_near(MinHash(64, 0.8, 1), copies)
    assert not dropped[0]
    assert dropped[1:].all()


def test_chinese_texts_are_compared_by_their_letters() -> None:
    """Without spaces and without a vocabulary: copies are found, other texts are not."""
    chooser = random.Random(0)
    texts = [
        "".join(chooser.choices("河流在石头之间静静地走过绿色的窗户", k=80)) for _ in range(40)
    ]
    texts += [f"{text}。" for text in texts[:10]]
    minhash = MinHash(64, 0.8, 1)
    duplicate = find_near(minhash, [word_ids(text) for text in texts])
    assert duplicate.tolist() == [False] * 40 + [True] * 10
    signs = [
        "I love this phone 😀",
        "I love this phone 😡",
        "Is it C++ or not?",
        "Is it C# or not?",
    ]
    assert not find_near(minhash, [word_ids(text) for text in signs]).any()
