"""Token ids through a memo of words: the tokenizer's own answer, many times cheaper.

Text repeats its words, and a tokenizer that never looks across a word's edge gives the same ids for
the same word each time. So every distinct word is asked for once. Whether a tokenizer is of that
kind is not read off its settings but checked against it: on the first texts, and on one text in
`CHECK_EVERY` for as long as it is used. A text that comes out otherwise takes the next way of
cutting words for good, and after the last the tokenizer itself.
"""

import logging
import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHECK_FIRST, CHECK_EVERY = 500, 64
# Words in the memo, some 100 bytes each; when it is full it starts again. What is longer is a
# sentence of a script without spaces, and does not come again.
LIMIT, LONGEST = 200_000, 32
# WordPiece in BERT's manner: letters and digits, or one mark of ASCII.
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
# Byte-level BPE, and BERT's for other alphabets: nothing reaches back over white space.
_SPACED = re.compile(r"\s*\S+|\s+")

logger = logging.getLogger(__name__)


class WordMemo:
    """A tokenizer without truncation and padding, behind a memo."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        """Take over `tokenizer`, whose truncation and padding are switched off."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        # By whether a text is all ASCII.
        self._ways = {True: [_WORDS, _SPACED], False: [_SPACED]}
        self._memo: dict[str, list[int]] = {}
        self._seen = 0
        plain, whole = (self._ask(["a"], special)[0] for special in (False, True))
        before = len(whole) - len(plain)
        starts = (i for i in range(before + 1) if whole[i : i + len(plain)] == plain)
        place = next(starts, 0)
        self._begin, self._end = whole[:place], whole[place + len(plain) :]

    def ids(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Return each text's token ids, with or without the special ones around it."""
        begin, end = (self._begin, self._end) if special else ([], [])
        return [[*begin, *chain.from_iterable(words), *end] for words in self._words(texts)]

    def counts(self, texts: Sequence[str], special: bool = True) -> list[int]:
        """Return each text's number of tokens."""
        around = len(self._begin) + len(self._end) if special else 0
        return [around + sum(map(len, words)) for words in self._words(texts)]

    def _words(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Return the ids of each text, word by word."""
        while True:
            found = self._look_up(texts)
            if self._check(texts, found):
                self._seen += len(texts)
                return found

    def _look_up(self, texts: Sequence[str]) -> list[list[list[int]]]:
        cut: list[list[str] | None] = []
        for text in texts:
            ways = self._ways[text.isascii()]
            cut.append(ways[0].findall(text) if ways else None)
        if len(self._memo) > LIMIT:
            self._memo = {}
        new = list(set(chain.from_iterable(filter(None, cut))).difference(self._memo))
        self._memo.update(zip(new, self._ask(new), strict=True))
        whole = [text for text, words in zip(texts, cut, strict=True) if words is None]
        asked = iter(self._ask(whole))
        get = self._memo.__getitem__
        found = [[next(asked)] if words is None else list(map(get, words)) for words in cut]
        for word in new:
            if len(word) > LONGEST:
                del self._memo[word]
        return found

    def _check(self, texts: Sequence[str], found: Sequence[Sequence[list[int]]]) -> bool:
        """Compare some texts with the tokenizer; a difference retires the way they were cut."""
        rows = [
            row
            for row, text in enumerate(texts)
            if self._ways[text.isascii()]
            and (self._seen + row < CHECK_FIRST or (self._seen + row) % CHECK_EVERY == 0)
        ]
        for row, right in zip(rows, self._ask([texts[row] for row in rows]), strict=True):
            if list(chain.from_iterable(found[row])) != right:
                ways = self._ways[texts[row].isascii()]
                ways.pop(0)
                logger.info(
                    "this tokenizer looks across words (%r): %s",
                    texts[row][:60],
                    "cutting at white space alone" if ways else "asking it for every text",
                )
                return False
        return True

    def _ask(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encoded]
