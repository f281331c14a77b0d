"""Promises of mining.py: what is near is found, what may be right is left alone, in any chunks."""

from collections.abc import Sequence

import numpy as np
import pytest

from small_modernbert.data.keys import words_key, words_keys
from small_modernbert.evaluation import search
from small_modernbert.labelling import mining
from small_modernbert.labelling.mining import Neighbours, Pool, Vectors
from small_modernbert.models.encoders import Encoder
from small_modernbert.models.prompts import Prompts

WIDTH = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of unit length."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def at_cosine(anchor: np.ndarray, cosines: Sequence[float], seed: int = 0) -> np.ndarray:
    """Return unit vectors that have the given cosines with an anchor."""
    random = np.random.default_rng(seed).normal(size=(len(cosines), len(anchor)))
    across = unit(random - (random @ anchor)[:, None] * anchor)
    wanted = np.asarray(cosines)[:, None]
    return (wanted * anchor + np.sqrt(1 - wanted**2) * across).astype(np.float32)


def make_pool(vectors: np.ndarray, texts: Sequence[str] | None = None) -> Pool:
    """Return a pool of numbered texts."""
    texts = list(texts or (f"pool text {row}" for row in range(len(vectors))))
    return Pool(texts, words_keys(texts), vectors)


def make_anchor() -> np.ndarray:
    """Return one unit vector."""
    return unit(np.random.default_rng(5).normal(size=(1, WIDTH)))[0]


@pytest.mark.parametrize("blocks", [(1, 1), (3, 7), (256, 16_384)])
def test_chunks_give_what_one_product_gives(
    monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int]
) -> None:
    """Whatever the blocks of the product, rows, cosines and ranks are those of the whole matrix."""
    random = np.random.default_rng(1)
    anchors, vectors = (unit(random.normal(size=(rows, WIDTH))) for rows in (23, 90))
    pool = make_pool(vectors)
    known = [{int(pool.keys[row]), int(pool.keys[row + 40])} for row in range(23)]
    positives = random.uniform(0.1, 0.6, size=23).astype(np.float32)
    monkeypatch.setattr(search, "QUERY_BLOCK", blocks[0])
    monkeypatch.setattr(search, "DOCUMENT_BLOCK", blocks[1])
    near = mining.find_neighbours(anchors, known, pool, 12)
    whole = anchors @ vectors.T
    assert near.rows.shape == (23, 14)  # two deeper, for the known answers
    assert (near.rows == np.argsort(-whole, axis=1, kind="stable")[:, :14]).all()
    np.testing.assert_allclose(near.scores, np.sort(whole, axis=1)[:, ::-1][:, :14], atol=1e-6)
    for number in range(23):
        own = [number, number + 40]
        assert near.allowed[number].tolist() == [row not in own for row in near.rows[number]]
        rivals = np.delete(whole[number], own)
        rank = 1 + (rivals > positives[number]).sum()
        if rank <= 12:
            assert mining.ranks(near, positives)[number] == rank
        else:
            assert mining.ranks(near, positives)[number] > 12


def test_known_answers_are_no_rivals() -> None:
    """A pair is not failed because other right answers, or its anchor, are nearer than it is."""
    anchor = make_anchor()
    pool = make_pool(at_cosine(anchor, [0.95, 0.9, 0.85, 0.8, 0.5]))
    for known, rank in (((), 5), ((0, 1, 2), 2), ((0, 1, 2, 3), 1)):
        keys = [{int(pool.keys[row]) for row in known}]
        near = mining.find_neighbours(anchor[None], keys, pool, 2)
        assert mining.ranks(near, np.array([0.6]))[0] == min(rank, 3)  # exact up to the depth


@pytest.mark.parametrize(("margin", "mined"), [(0.0, [1, 2, 3]), (0.05, [2, 3]), (0.3, [3])])
def test_false_negative_above_the_margin_is_not_mined(margin: float, mined: list[int]) -> None:
    """A candidate scores less than (1 - margin) of the positive, or it is left alone."""
    anchor = make_anchor()
    pool = make_pool(at_cosine(anchor, [0.81, 0.78, 0.7, 0.5]))
    near = mining.find_neighbours(anchor[None], [set()], pool, 4)
    assert mining.choose_negatives([near], np.array([0.8]), margin, 9) == [mined]


def test_margin_is_relative_and_never_raises_the_bar() -> None:
    """The margin is a share of the positive's score, also where that is below zero."""
    np.testing.assert_allclose(
        mining.ceilings(np.array([0.8, 0.4, 0.0, -0.2]), 0.1), [0.72, 0.36, 0.0, -0.22]
    )


def test_the_positive_is_never_mined_however_it_is_spelt() -> None:
    """A text of the same normalised words as the positive or the anchor is no negative.

    Its vector says nothing against it: the spelling has moved it below the margin.
    """
    anchor = make_anchor()
    texts = ["The moon's gravity!", "the Moon\u2019s  gravity", "why do tides rise?", "The sun."]
    pool = make_pool(at_cosine(anchor, [0.5, 0.4, 0.3, 0.2]), texts)
    own = [{words_key("The moon's gravity."), words_key("Why do tides rise")}]
    near = mining.find_neighbours(anchor[None], own, pool, 4)
    words = mining.lexical_neighbours(np.array([[1, 0, 2, 3]]), anchor[None], own, pool)
    assert mining.choose_negatives([near, words], np.array([0.9]), 0.05, 9) == [[3]]


def test_searches_take_turns_without_repeating() -> None:
    """The hardest of each search come first, by turns; what one lacks the other gives."""
    rows = np.array([[0, 1, 2, 3], [4, -1, -1, -1]])
    others = np.array([[1, 5, 0, 6], [5, 6, 7, 8]])
    allowed = np.ones((2, 4), dtype=np.bool_)
    first = Neighbours(rows, np.full((2, 4), 0.3, dtype=np.float32), allowed & (rows >= 0))
    second = Neighbours(others, np.full((2, 4), 0.3, dtype=np.float32), allowed)
    scores = np.array([0.5, 0.5])
    assert mining.choose_negatives([first, second], scores, 0.05, 5) == [
        [0, 1, 5, 2, 3],
        [4, 5, 6, 7, 8],
    ]
    assert mining.choose_negatives([first, second], scores, 0.05, 1) == [[0], [4]]
    assert mining.choose_negatives([first, second], np.array([0.3, 0.5]), 0.0, 1) == [[], [4]]


def test_word_matches_are_held_to_the_same_margin() -> None:
    """What BM25 found gets the miner's cosine; an empty place of its ranking is never chosen."""
    anchor = make_anchor()
    pool = make_pool(at_cosine(anchor, [0.9, 0.4, 0.6]))
    found = mining.lexical_neighbours(np.array([[2, 0, -1]]), anchor[None], [set()], pool)
    np.testing.assert_allclose(found.scores, [[0.6, 0.9, -1]], atol=1e-6)
    assert found.allowed.tolist() == [[True, True, False]]
    assert mining.choose_negatives([found], np.array([0.8]), 0.05, 9) == [[2]]


def test_vectors_are_encoded_once() -> None:
    """A pool's texts come from the pool, others are encoded once until they are forgotten."""
    encoded: list[str] = []

    def encode_batch(texts: list[str], prompt: str) -> np.ndarray:
        encoded.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    vectors = Vectors(Encoder("lengths", encode_batch, 100, 0, 0, 0))
    pool = make_pool(unit(np.array([[3.0, 4.0], [4.0, 3.0]])), ["in the pool", "also"])
    vectors.add_pool(pool)
    found = vectors.encode(["new", "also", "new", "in the pool", "newer"])
    np.testing.assert_allclose(found[[1, 3]], pool.vectors[[1, 0]])
    np.testing.assert_allclose(found[[0, 2]], unit(np.array([[3.0, 1.0]] * 2)))
    vectors.encode(["newer", "also"])
    assert sorted(encoded) == ["new", "newer"]
    vectors.forget()
    vectors.encode(["newer", "also"])
    assert sorted(encoded) == ["new", "newer", "newer"]


def test_a_query_is_another_text_than_a_document() -> None:
    """With prompts the same words have two vectors, and a pool's are those of documents."""
    seen: list[str] = []

    def encode_batch(texts: list[str], prompt: str) -> np.ndarray:
        seen.extend(prompt + text for text in texts)
        return np.array([[len(prompt) + len(text), 1.0] for text in texts])

    prompts = Prompts(query="ask: ", document="read it: ")
    vectors = Vectors(Encoder("prompted", encode_batch, 100, 0, 0, 0, prompts=prompts))
    pool = make_pool(unit(np.array([[3.0, 4.0]])), ["in the pool"])
    vectors.add_pool(pool)
    np.testing.assert_allclose(vectors.encode(["in the pool"]), pool.vectors)
    vectors.encode(["in the pool", "new"], "query")
    vectors.encode(["new"])
    assert sorted(seen) == ["ask: in the pool", "ask: new", "read it: new"]
    # In a pool of plain texts the same words are a third text.
    vectors.add_pool(Pool(["new"], words_keys(["new"]), unit(np.array([[1.0, 0.0]])), ["text"]))
    np.testing.assert_allclose(vectors.encode(["new"], "text"), [[1.0, 0.0]])
    assert len(seen) == 3
