"""When two texts are one: normalised words, and 64-bit keys that are equal where texts are.

Two texts among n that differ share a key with a chance of about n² / 2^65: one in 100,000 for 20
million.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

# Letters and digits of any script; the underscore counts as punctuation.
_WORD = re.compile(r"[^\W_]+")
_GOLDEN = 0x9E3779B97F4A7C15


def mix(values: Keys, seed: int | NDArray[np.integer] = 0) -> Keys:
    """Return well-spread 64-bit hashes of 64-bit values (SplitMix64, Steele et al., OOPSLA 2014).

    Args:
        values: of any shape.
        seed: of all of them, or of each; hashes of other seeds have nothing to do with each other.
    """
    if isinstance(seed, np.ndarray):
        step = (seed.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    else:
        step = np.uint64((int(seed) + 1) * _GOLDEN & 0xFFFFFFFFFFFFFFFF)
    mixed = values + step
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def words_of(text: str) -> list[str]:
    """Return the normalised words of a text: compatibility form, case folded, no punctuation."""
    if text.isascii():
        return _WORD.findall(text.lower())
    # Folding the case can undo the normal form, so it is taken twice.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(folded)


def text_key(text: str) -> int:
    """Return 64 bits that are equal for texts that differ in case and white space at most."""
    normal = "".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "little")


def words_key(text: str) -> int:
    """Return 64 bits that are equal for texts of the same normalised words.

    Case, Unicode form, punctuation and white space are folded (`words_of`); a text without a word
    goes by its characters.
    """
    return text_key(" ".join(words_of(text)) or text)


def words_keys(texts: Iterable[str]) -> Keys:
    """Return `words_key` of every text, `(texts,)`."""
    return np.fromiter((words_key(text) for text in texts), dtype=np.uint64)
