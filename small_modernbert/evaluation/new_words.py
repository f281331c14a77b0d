"""Queries with a new word, one that no training text holds: how good a model is on them.

A small model keeps least of its teacher where a name turns up that its training text never showed.
Words are BM25's (`bm25.words_of_texts`): in lower case, as they stand (another ending is another
word, and so is a typing error), without bm25s' 33 English stop words. What is not made of letters
alone, as 1871 or x2, is never new. Where a script has no spaces between words, a "word" is two
neighbouring characters, across the borders of real words: a query of Chinese, Japanese or Thai is
told apart by a pair of characters that no training text holds, which says less of unknown names.
"""

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from small_modernbert.data import corpus, labels, shards
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.evaluation import bm25
from small_modernbert.runs.errors import UserError

BLOCK_TEXTS = 4_096  # whose words are held at once
KINDS = ("new", "known")  # of queries: with a new word, without


# A part of a set's queries: how many they are, and their mean nDCG@10; None where there is none.
Part = TypedDict("Part", {"queries": int, "ndcg@10": float | None})


def open_texts(folder: Path) -> Iterator[str]:
    """Open a corpus or labels, and return what yields the training texts.

    Raises:
        UserError: the folder holds neither, or what it holds is damaged.
    """
    for layout in (labels.LAYOUT, corpus.LAYOUT):
        if (folder / layout.index).is_file():
            return shards.open_shards(folder, layout).column("train", "text")
    raise UserError(
        f"TRAINING_TEXT: {folder} holds neither labels nor a corpus (no {labels.LAYOUT.index}, no "
        f"{corpus.LAYOUT.index}); name the stage that the student learned from: "
        "--training-text create_distil_dataset"
    )


def tell_apart(sets: Sequence[RetrievalSet], texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Say which queries have a new word.

    Memory is that of the queries' words: what the texts hold is struck out of them block by block,
    and nothing is read any more once no word is left.

    Args:
        sets: whose queries are looked at.
        texts: of the training.

    Returns:
        set -> `(queries,)` booleans.
    """
    words = {
        each.name: [_spelt(text) for text in bm25.words_of_texts(each.queries)] for each in sets
    }
    new = set().union(*itertools.chain.from_iterable(words.values()))
    texts = iter(texts)
    while new and (block := list(itertools.islice(texts, BLOCK_TEXTS))):
        new.difference_update(*bm25.words_of_texts(block))
    return {
        name: np.array([not new.isdisjoint(query) for query in queries], dtype=bool)
        for name, queries in words.items()
    }


def split(scores: np.ndarray, has_new: np.ndarray) -> dict[str, Part]:
    """Return the two parts of a set, by KINDS.

    Args:
        scores: `(queries,)` nDCG@10.
        has_new: `(queries,)`, see `tell_apart`.
    """
    return {
        kind: {"queries": len(part), "ndcg@10": float(part.mean()) if len(part) else None}
        for kind, part in zip(KINDS, (scores[has_new], scores[~has_new]), strict=True)
    }


def _spelt(words: Iterable[str]) -> set[str]:
    """Return the words that are letters alone, and the marks that belong to them."""
    return {word for word in words if all(unicodedata.category(sign)[0] in "LM" for sign in word)}
