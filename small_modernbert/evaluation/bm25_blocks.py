"""BM25 over more documents than memory takes: they are read twice, a block at a time.

The questions are known, so only their words count: the first reading gives the documents' lengths
and in how many of them each word stands, the second one the scores. Same formula and same words as
`bm25.WordIndex`, so the same ranking but for the last bits of the scores.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

from small_modernbert.evaluation.bm25 import words_of_texts
from small_modernbert.evaluation.rankings import (
    EMPTY,
    Hits,
    documents_of,
    keys_of,
    largest,
    scores_of,
)
from small_modernbert.runs import report

K1, B = 1.5, 0.75  # bm25s' own, see `bm25.WordIndex`
BLOCK = 16_384  # documents
QUERY_BLOCK = 256


def search_in_blocks(documents: Sequence[str], queries: Sequence[str], depth: int) -> Hits:
    """Return the best documents of each query; one without a common word is not found.

    Memory grows by 4 bytes a document; its texts may lie on disk. Equal scores rank in the
    documents' order.

    Args:
        documents: whose slices are lists.
        queries: all that will be asked.
        depth: documents a query; all of them where there are fewer.
    """
    asked = words_of_texts(queries)
    vocabulary = {word: place for place, word in enumerate(sorted(set().union(*asked)))}
    wanted = _count(asked, vocabulary)
    lengths = np.zeros(len(documents), dtype=np.float32)
    containing = np.zeros(len(vocabulary), dtype=np.int64)
    with report.progress(description="BM25", total=2 * len(documents), unit=" documents") as bar:
        for start, words in _blocks(documents):
            lengths[start : start + len(words)] = [len(each) for each in words]
            containing += np.bincount(_count(words, vocabulary).indices, minlength=len(vocabulary))
            bar.update(len(words))
        rarity = np.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        # What a document's length takes from its words.
        drag = K1 * (1 - B + B * lengths / max(float(lengths.mean(dtype=np.float64)), 1e-9))
        starts = range(0, len(queries), QUERY_BLOCK)
        best = [np.empty((min(QUERY_BLOCK, len(queries) - at), 0), np.int64) for at in starts]
        for start, words in _blocks(documents):
            counts = _count(words, vocabulary)
            owners = np.repeat(np.arange(len(words)), np.diff(counts.indptr))
            counts.data *= rarity[counts.indices] / (counts.data + drag[start + owners])
            by_word = counts.T.tocsr()
            for place, at in enumerate(starts):
                scores = (wanted[at : at + QUERY_BLOCK] @ by_word).toarray().astype(np.float32)
                keys = np.hstack([best[place], keys_of(scores, start)])
                best[place] = largest(keys, depth)
            bar.update(len(words))
    keys = np.concatenate(best)
    found = scores_of(keys) > 0
    return Hits(np.where(found, documents_of(keys), EMPTY), np.where(found, scores_of(keys), 0))


def _blocks(documents: Sequence[str]) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield the first row of each block, and the words of its documents."""
    for start in range(0, len(documents), BLOCK):
        yield start, words_of_texts(documents[start : start + BLOCK])


def _count(texts: Sequence[Sequence[str]], vocabulary: Mapping[str, int]) -> csr_array:
    """Return how often each word of a vocabulary stands in each text: `(texts, vocabulary)`."""
    counts = [Counter(vocabulary[word] for word in words if word in vocabulary) for words in texts]
    ends = np.cumsum([0, *map(len, counts)])
    places = np.fromiter((place for each in counts for place in each), np.int64, int(ends[-1]))
    numbers = np.fromiter(
        (number for each in counts for number in each.values()), np.float64, int(ends[-1])
    )
    return csr_array((numbers, places, ends), shape=(len(texts), len(vocabulary)))
