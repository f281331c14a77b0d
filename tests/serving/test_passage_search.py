"""Passages found by each way; vectors on disk that grow by what is new."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from small_modernbert.models.encoders import Encoder
from small_modernbert.serving import passage_search
from small_modernbert.serving.passage_search import PassageSearch, encode_growing

TEXTS = ["rain over the hills", "a boat on the river", "wind in the trees", "snow on the roof"]


class Counting:
    """A model of random directions, one a word, that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str], prompt: str) -> np.ndarray:
        """Return the sum of each text's words."""
        del prompt
        self.asked += texts
        return np.stack([sum(map(self.word, text.split()), np.zeros(16)) for text in texts])

    @staticmethod
    def word(word: str) -> np.ndarray:
        """Return a direction that the word alone decides."""
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
        return np.random.default_rng(seed).normal(size=16)


def make(model: Counting, name: str = "toy") -> Encoder:
    """Return an encoder around it."""
    return Encoder(name, model, 1000, 0, 0, 0)


def rows(hits: Sequence[passage_search.Hit]) -> list[int]:
    """Return the rows of hits."""
    return [hit.row for hit in hits]


def test_only_new_passages_are_encoded(tmp_path: Path) -> None:
    """Passages that were there are read; one that goes leaves the others' vectors alone."""
    model = Counting()
    first = encode_growing(tmp_path, make(model), TEXTS[:3])
    assert sorted(model.asked) == sorted(TEXTS[:3])
    model.asked.clear()
    again = encode_growing(tmp_path, make(model), [TEXTS[3], TEXTS[1]])
    assert model.asked == [TEXTS[3]]
    assert np.allclose(again[1], first[1], atol=1e-3)
    assert np.allclose(np.linalg.norm(again, axis=1), 1, atol=1e-6)


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    """Half a file, or one that is none, costs its own passages alone."""
    model = Counting()
    whole = encode_growing(tmp_path, make(model), TEXTS)
    (part,) = tmp_path.glob("*.npz")
    part.write_bytes(part.read_bytes()[:100])
    model.asked.clear()
    assert np.allclose(encode_growing(tmp_path, make(model), TEXTS), whole, atol=1e-3)
    assert sorted(model.asked) == sorted(TEXTS)


def test_a_kill_between_windows_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before a kill is not encoded again."""
    monkeypatch.setattr(passage_search, "WINDOW_TEXTS", 2)

    class Dying(Counting):
        def __call__(self, texts: list[str], prompt: str) -> np.ndarray:
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(texts, prompt)

    with pytest.raises(KeyboardInterrupt):
        encode_growing(tmp_path, make(Dying()), TEXTS)
    model = Counting()
    encode_growing(tmp_path, make(model), TEXTS)
    assert sorted(model.asked) == sorted(TEXTS[2:])


def test_every_way_of_searching_answers(tmp_path: Path) -> None:
    """Two models, words, and each model with the words; the passage itself comes first."""
    models = {"student": make(Counting()), "teacher": make(Counting())}
    folders = {label: tmp_path / label for label in models}
    searcher = PassageSearch(TEXTS, models, folders)
    ways = searcher.find("a boat on the river", 2, 0.5)
    assert set(ways) == {"student", "teacher", "BM25", "student + BM25", "teacher + BM25"}
    assert all(rows(hits)[0] == 1 for hits in ways.values())
    assert ways["student"][0].score == pytest.approx(1, abs=1e-3)
    assert ways["student + BM25"][0].score == pytest.approx(1)
    assert len(ways["student"]) == 2
    assert set(searcher.find("a boat", 2, 0)) == {"student", "teacher"}


def test_words_that_no_passage_has_leave_the_model_alone(tmp_path: Path) -> None:
    """There is no BM25 then, rather than five passages at random."""
    searcher = PassageSearch(TEXTS, {"student": make(Counting())}, {"student": tmp_path})
    ways = searcher.find("xylograph", 3, 0.5)
    assert set(ways) == {"student"}
    assert len(ways["student"]) == 3


def test_words_that_take_no_part_are_not_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever weighs words with 0 does not wait for them."""
    monkeypatch.setattr(passage_search, "WordIndex", None)  # calling it would fail
    models = {"student": make(Counting())}
    searcher = PassageSearch(TEXTS, models, {"student": tmp_path}, by_words=False)
    assert set(searcher.find("a boat on the river", 2, 0)) == {"student"}
    assert searcher.no_words == ""
