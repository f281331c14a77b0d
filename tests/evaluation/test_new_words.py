"""Promises of new_words.py: which queries have a word that no training text holds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from miniature import make_corpus

from small_modernbert.data import labels, shards
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.evaluation import new_words
from small_modernbert.runs.errors import UserError


def ask(*queries: str) -> RetrievalSet:
    """Return a set of these queries, each answered by a document of its own."""
    names = [str(number) for number in range(len(queries))]
    relevant = {name: {name: 1.0} for name in names}
    return RetrievalSet("made", names, list(queries), names, names, relevant)


@pytest.mark.parametrize(
    ("query", "is_new"),
    [
        ("Who painted Wardenclyffe?", True),
        ("PAINTED dogs", False),  # case says nothing
        ("who painted it in 1871", False),  # a number is no word
        ("was the x2 a tower", False),  # neither is a name with a digit
        ("and of the", False),  # stop words alone
        ("cafe\u0301 tower", False),  # composed in the text, decomposed here
        ("नदी", False),  # Hindi: a vowel sign belongs to its word
        ("नदियाँ", True),
        ("東京", False),  # without spaces: pairs of neighbours, wherever they stand
        ("京東", True),
    ],
)
def test_a_word_of_letters_that_no_text_holds_is_new(query: str, is_new: bool) -> None:
    """In any case and any script; numbers and stop words never are."""
    texts = ["Who painted a tower?", "dogs and dogs at the café", "गंगा नदी", "私は東京に住む"]
    assert new_words.tell_apart([ask(query)], texts)["made"].tolist() == [is_new]


def test_reading_ends_when_no_word_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are read a block at a time, and no further than the queries' words need."""
    monkeypatch.setattr(new_words, "BLOCK_TEXTS", 2)
    read = []

    def texts() -> Iterator[str]:
        for text in ("a tower", "a dog", "a painted boat", "rain", "snow", "sun"):
            read.append(text)
            yield text

    told = new_words.tell_apart([ask("painted tower"), ask("the boat")], texts())
    assert len(read) == 4 and not told["made"].any()


def test_the_parts_are_means_of_their_queries() -> None:
    """A part without a query has no figure, and is not taken for a bad one."""
    scores = np.array([1.0, 0.5, 0.0])
    parts = new_words.split(scores, np.array([True, False, False]))
    assert parts == {
        "new": {"queries": 1, "ndcg@10": 1.0},
        "known": {"queries": 2, "ndcg@10": 0.25},
    }
    assert new_words.split(scores, np.zeros(3, dtype=bool))["new"]["ndcg@10"] is None


def test_labels_and_a_corpus_are_training_texts(tmp_path: Path) -> None:
    """Only their training split is read; a folder of another kind is refused with the flag."""
    splits = {"train": ["a tower"], "held_out": ["a boat"]}
    folder = make_corpus(tmp_path / "corpus", splits)
    assert list(new_words.open_texts(folder)) == ["a tower"]
    labelled = tmp_path / "labels"
    for split, texts in splits.items():
        path = shards.shard_path(labelled, split, 0)
        labels.write_shard(path, texts, np.ones((1, 4), dtype=np.float32))
    labels.write_index(labelled, 4, dict.fromkeys(splits, 1))
    assert list(new_words.open_texts(labelled)) == ["a tower"]
    with pytest.raises(UserError, match="--training-text create_distil_dataset"):
        new_words.open_texts(tmp_path)
