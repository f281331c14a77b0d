"""Lexical search, by bm25s: BM25 over the words of the documents, as a yardstick and to mine."""

from collections.abc import Sequence

import numpy as np

from small_modernbert.data.evaluation_sets import RetrievalSet
from small_modernbert.evaluation.metrics import DEPTH, best_scores


class Index:
    """Documents that can be searched by their words.

    Lucene's variant with k1 = 1.5 and b = 0.75 (the defaults of bm25s), English stop words, no
    stemming.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        import bm25s

        self.documents = len(documents)
        self._index = bm25s.BM25()
        self._index.index(_words(list(documents)), show_progress=False)

    def search(self, queries: list[str], depth: int = DEPTH) -> np.ndarray:
        """Return row numbers of the best documents per query, `(queries, depth)`, -1 where none.

        The depth is the number of documents where those are fewer. Equal scores rank in the
        documents' order.
        """
        empty = np.zeros(self.documents, dtype=np.float32)
        found = []
        for query in _words(queries):
            known = [word for word in query if word in self._index.vocab_dict]
            found.append(best_scores(self._index.get_scores(known) if known else empty, depth))
        return np.stack(found)


def rank(questions: RetrievalSet, depth: int = DEPTH) -> np.ndarray:
    """Return row numbers of the best documents per query of a set; see `Index.search`."""
    return Index(questions.documents).search(questions.queries, depth)


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s

    return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
