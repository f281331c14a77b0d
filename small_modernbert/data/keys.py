"""When two texts are one: normalised words, and 64-bit keys that are equal where texts are.

Two texts among n that differ share a key with a chance of about n² / 2^65: one in 100,000 for 20
million.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def _classes() -> tuple[str, str]:
    """Return the characters that are marks, and those that are symbols, as a pattern's classes.

    Marks are part of their word: vowel signs of Devanagari, Thai or Hebrew. How an emoji is drawn
    (the variation selectors) is none. Symbols are of mathematics, money, and pictures; no quotes
    and no trade marks.
    """
    marks, symbols = [], []
    for code in range(0x80, 0x20000):
        kind = unicodedata.category(chr(code))[0]
        if kind == "M" and not 0xFE00 <= code <= 0xFE0F:
            marks.append(code)
        elif kind == "S" and code not in (0xA8, 0xA9, 0xAE, 0xAF, 0xB4, 0xB8):
            symbols.append(code)
    return _join(marks), _join(symbols)


def _join(codes: list[int]) -> str:
    parts = []
    for _, run in groupby(enumerate(codes), key=lambda item: item[1] - item[0]):
        numbers = [code for _, code in run]
        parts.append(f"\\U{numbers[0]:08x}-\\U{numbers[-1]:08x}")
    return "".join(parts)


MARKS, _SYMBOLS = _classes()
# Scripts that are written without spaces: Thai to Tibetan, Burmese, Khmer, kana and Han.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Letters and digits of any script with their marks; the underscore counts as punctuation. In a
# script without spaces each letter is a word.
_ANY_WORD = (
    rf"(?:[{UNSPACED}](?<=[^\W_])|(?![{UNSPACED}])[^\W_](?:(?![{UNSPACED}])[^\W_]|[{MARKS}])*)"
    rf"[{MARKS}]*"
)
_ASCII_WORD = "[a-z0-9]+"
# Signs without which a text would say something else: C++, C#, -5, 50 %, a[0], f(), .., !=, 3/4.
# Quotes, commas, full stops, dashes and brackets around words are punctuation.
_SIGNS = (
    r"[$+<=>^|~%&@\\]",
    r"(?<![^\s(\[{])-(?=\.?\d)",
    r"(?<=[^\W_])\#|\#(?=[^\W_])",
    r"(?<=[^\W_)\]])[(\[]",
    r"(?<=[^\W_)\]])\*(?=[^\W_(])|(?<=\d)/(?=\d)",
    r"!(?==)|(?<!\S)!(?=[^\W_])",
    r"(?<![^\s/])\.\.(?![^\s/])|(?<=\w)\.\.(?=\w)",
)
# All-ASCII text, most of what there is, has patterns of its own: they are ten times faster.
_WORDS = {True: re.compile(_ASCII_WORD), False: re.compile(_ANY_WORD)}
_TOKENS = {
    True: re.compile("|".join((_ASCII_WORD, *_SIGNS)), re.ASCII),
    False: re.compile("|".join((_ANY_WORD, *_SIGNS, f"[{_SYMBOLS}]"))),
}
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
    """Return the normalised words of a text: compatibility form, case folded, no punctuation.

    In a script without spaces each letter is a word.
    """
    return _WORDS[text.isascii()].findall(_fold(text))


def tokens_of(text: str) -> list[str]:
    """Return the normalised words of a text, and the signs that make it another text."""
    return _TOKENS[text.isascii()].findall(_fold(text))


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    text = text.replace("\u2212", "-")  # a minus, however it is typed
    # Folding the case can undo the normal form, so it is taken twice.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def text_key(text: str) -> int:
    """Return 64 bits that are equal for texts that differ in case and white space at most."""
    normal = "".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "little")


def words_key(text: str) -> int:
    """Return 64 bits that are equal for texts of the same normalised words and signs.

    Case, Unicode form, punctuation and white space are folded (`tokens_of`); a text without a word
    goes by its characters. Case is folded because a text and its copy in other case must never
    stand against each other as positive and negative; that costs some pairs like US and us.
    """
    return text_key(" ".join(tokens_of(text)) or text)


def words_keys(texts: Iterable[str]) -> Keys:
    """Return `words_key` of every text, `(texts,)`."""
    return np.fromiter((words_key(text) for text in texts), dtype=np.uint64)
