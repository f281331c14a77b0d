"""Search by words: BM25, by bm25s, over words of any script."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from small_modernbert.data.keys import MARKS, UNSPACED
from small_modernbert.evaluation.rankings import EMPTY, Hits, documents_of, keys_of, largest
from small_modernbert.runs.errors import UserError

# Documents. bm25s holds the words of all of them in memory at once while it makes an index.
LARGEST_INDEX = 1_000_000
# bm25s' own pattern is \b\w\w+\b, and \w holds no combining mark: it would cut Hindi, Tamil or
# vocalised Arabic at every vowel sign.
_WORD = f"(?u)[\\w{MARKS}]{{2,}}|[{UNSPACED}]"
_UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")


class WordIndex:
    """Documents that can be searched by their words: BM25, by bm25s.

    Lucene's variant with k1 = 1.5 and b = 0.75 (the defaults of bm25s), English stop words, no
    stemming. Words are runs of two letters, digits or marks and more; where a script is written
    without spaces (Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer) they are each two
    characters in a row, as Lucene's CJK analyser takes them.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        """Index documents.

        Raises:
            UserError: there are more than LARGEST_INDEX.
        """
        import bm25s

        if len(documents) > LARGEST_INDEX:
            raise UserError(
                f"BM25 keeps its index in memory, and {len(documents):,} documents are more than "
                f"{LARGEST_INDEX:,}; take a part of them (of relabel_triplets.py: --pool)"
            )
        self.documents = len(documents)
        words = words_of_texts(documents[:])
        self._index = bm25s.BM25() if any(words) else None
        if self._index is not None:
            self._index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], depth: int) -> Hits:
        """Return the best documents of each query; one without a common word is not found.

        The depth is the number of documents where those are fewer. Equal scores rank in the
        documents' order.
        """
        best = [self._scores(words, depth) for words in words_of_texts(queries)]
        rows, scores = (np.stack(part) for part in zip(*best, strict=True))
        return Hits(rows, scores)

    def _scores(self, words: list[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.zeros(self.documents, dtype=np.float32)
        if self._index is not None:
            known = [word for word in words if word in self._index.vocab_dict]
            if known:
                scores = self._index.get_scores(known).astype(np.float32)
        rows = documents_of(largest(keys_of(scores[None], 0), depth))[0]
        best = scores[rows]
        return np.where(best > 0, rows, EMPTY), np.where(best > 0, best, 0)


def words_of_texts(texts: Sequence[str]) -> list[list[str]]:
    """Return the words of each text, in their order, without stop words."""
    import bm25s

    return bm25s.tokenize(
        [_spaced(text) for text in texts],
        token_pattern=_WORD,
        stopwords="en",
        return_ids=False,
        show_progress=False,
    )


def _spaced(text: str) -> str:
    """Write what has no spaces as pairs of neighbouring characters with spaces between."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text)
    return _UNSPACED_RUN.sub(lambda run: f" {' '.join(_bigrams(run.group()))} ", text)


def _bigrams(run: str) -> list[str]:
    return [run[place : place + 2] for place in range(len(run) - 1)] or [run]
