"""Texts cut on sentence boundaries to a token limit, and a fast way of counting tokens.

Text repeats its words, and a tokenizer that never looks across a word's edge gives the same ids for
the same word each time. So every distinct word is asked for once. Whether a tokenizer is of that
kind is not read off its settings but checked against it: on the first texts, and on one text in
`CHECK_EVERY` for as long as it is used. A text that comes out otherwise takes the next way of
cutting words for good, and after the last the tokenizer itself.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import regex

from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# English prose has 4 to 5 characters a token: beyond this nobody needs to count to know.
SURELY_LONG_CHARACTERS_PER_TOKEN = 10
MIN_BUDGET = 8  # one character can take several tokens
CHECK_FIRST, CHECK_EVERY = 500, 64
# Words in the memo, some 100 bytes each; when it is full it starts again. What is longer is a
# sentence of a script without spaces, and does not come again.
LIMIT, LONGEST = 200_000, 32
# WordPiece in BERT's manner: letters and digits, or one mark of ASCII.
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
# Byte-level BPE, and BERT's for other alphabets: nothing reaches back over white space.
_SPACED = re.compile(r"\s*\S+|\s+")

# A full stop ends a sentence where white space and a capital follow. The marks of other scripts
# (Han, Devanagari, Ethiopic, Arabic, Urdu, Armenian, Khmer, Burmese, Tibetan) end it wherever they
# stand, with the brackets and quotes that close after them.
_ENDS = "。！？｡।॥።፧፨؟۔։។៕။།"
_CLOSERS = "」』”’）)】》〉\"'"
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\Wa-z_])|\n+"
    rf"|(?<=[{_ENDS}])[{_CLOSERS}]*[^\S\n]*(?![{_ENDS}{_CLOSERS}\s])(?=.)"
)
# An extended grapheme cluster (Unicode, UAX 29), looked for so far around a place.
_CHARACTER = regex.compile(r"\X")
_FLAG_LETTER = re.compile("[\U0001f1e6-\U0001f1ff]")
WINDOW = 64
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|Fig|cf|ca|[A-Za-z]|e\.g|i\.e)\.$"
)

logger = logging.getLogger(__name__)


def unknown_id(tokenizer: "Tokenizer") -> int | None:
    """Return the id that stands for what a tokenizer does not know; None if it knows every byte."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is None and type(tokenizer.model).__name__ == "Unigram":
        return json.loads(tokenizer.to_str())["model"].get("unk_id")
    return None if name is None else tokenizer.token_to_id(name)


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

    def _words(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Return the ids of each text, word by word."""
        while True:
            ids = self._look_up(texts)
            if self._check(texts, ids):
                self._seen += len(texts)
                return ids

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
        ids = [[next(asked)] if words is None else list(map(get, words)) for words in cut]
        for word in new:
            if len(word) > LONGEST:
                del self._memo[word]
        return ids

    def _check(self, texts: Sequence[str], ids: Sequence[Sequence[list[int]]]) -> bool:
        """Compare some texts with the tokenizer; a difference retires the way they were cut."""
        rows = [
            row
            for row, text in enumerate(texts)
            if self._ways[text.isascii()]
            and (self._seen + row < CHECK_FIRST or (self._seen + row) % CHECK_EVERY == 0)
        ]
        for row, right in zip(rows, self._ask([texts[row] for row in rows]), strict=True):
            if list(chain.from_iterable(ids[row])) != right:
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
        if not texts:
            return []  # the tokenizer takes a tenth of a millisecond to say so
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encoded]


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, in order, each with the white space that follows it.

    Joined, they are the text again. Line ends are boundaries; common abbreviations are not.
    """
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        before = text[max(begin, end.start() - 6) : end.start()]
        if "\n" not in end[0] and _ABBREVIATION.search(before):
            continue
        yield text[begin : end.end()]
        begin = end.end()
    if begin < len(text):
        yield text[begin:]


class Chunker:
    """Cuts texts into pieces of at most `max_tokens` tokens, special tokens included."""

    def __init__(self, tokenizer: "Tokenizer", max_tokens: int, memo: bool = True) -> None:
        """Take over `tokenizer`, whose truncation and padding are switched off.

        Args:
            tokenizer: counts.
            max_tokens: of a piece.
            memo: count through a memo of words (`WordMemo`), or every text anew.

        Raises:
            UserError: the limit leaves no room beside the special tokens.
        """
        self.words = WordMemo(tokenizer)
        self._ids = self.words.ids if memo else self._ids_anew
        self.max_tokens = max_tokens
        self.budget = max_tokens - tokenizer.num_special_tokens_to_add(False)
        self.unknown = unknown_id(tokenizer)
        self._surely_long = SURELY_LONG_CHARACTERS_PER_TOKEN * max_tokens
        if self.budget < MIN_BUDGET:
            raise UserError(
                f"MAX_TOKENS {max_tokens} leaves {self.budget} beside the special tokens; "
                f"at least {MIN_BUDGET} are needed: --max-tokens 128, say"
            )

    def chunk(self, texts: list[str]) -> list[list[tuple[str, list[int]]]]:
        """Return the pieces of every text, each with its token ids (special ones included).

        A text that fits is one piece, unchanged. Others are cut between sentences into pieces of
        about equal length; a sentence that is too long by itself, at white space.
        """
        pieces: list[list[tuple[str, list[int]]]] = [[] for _ in texts]
        short = [i for i, text in enumerate(texts) if len(text) <= self._surely_long]
        for i, ids in zip(short, self._ids([texts[i] for i in short]), strict=True):
            if len(ids) <= self.max_tokens:
                pieces[i].append((texts[i], ids))
        for i, text in enumerate(texts):
            if not pieces[i]:
                pieces[i] = list(self._fit(self._pack(text)))
        return pieces

    def knows(self, ids: list[int]) -> bool:
        """Say of a text's ids, special ones included, whether at least half of them are known."""
        special = self.max_tokens - self.budget
        return self.unknown is None or 2 * ids.count(self.unknown) <= len(ids) - special

    def _ids_anew(self, texts: list[str], special: bool = True) -> list[list[int]]:
        tokenizer = self.words.tokenizer
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        return [encoding.ids for encoding in encoded]

    def _pack(self, text: str) -> list[str]:
        """Join sentences to pieces of even length, by the sum of their tokens."""
        sentences = [part for whole in split_sentences(text) for part in self._halve_to(whole)]
        units = list(self._units(sentences))
        left = sum(size for _, size in units)
        packed: list[list[str]] = [[]]
        filled, target = 0, self._share(left)
        for unit, size in units:
            if packed[-1] and (filled + size > self.budget or filled + size / 2 > target):
                packed.append([])
                filled, target = 0, self._share(left)
            packed[-1].append(unit)
            filled += size
            left -= size
        return ["".join(parts) for parts in packed]

    def _share(self, tokens: int) -> float:
        # Even pieces of what is left: a greedy cut would leave a last one of a few words.
        return tokens / max(1, -(-tokens // self.budget))

    def _units(self, texts: list[str]) -> Iterator[tuple[str, int]]:
        for text, ids in zip(texts, self._ids(texts, special=False), strict=True):
            if len(ids) <= self.budget or len(text) < 2:
                yield text, len(ids)
            else:
                yield from self._units(_halves(text))

    def _halve_to(self, text: str) -> Iterator[str]:
        # No text of any length reaches the tokenizer whole.
        if len(text) <= self._surely_long:
            yield text
        else:
            for half in _halves(text):
                yield from self._halve_to(half)

    def _fit(self, packed: list[str]) -> Iterator[tuple[str, list[int]]]:
        # The tokens of a whole can differ by a few from the sum of its parts': count, and halve
        # what is over.
        # The indentation of a piece's first line stays.
        packed = [piece.rstrip().lstrip("\n") for piece in packed if not piece.isspace()]
        for piece, ids in zip(packed, self._ids(packed), strict=True):
            if len(ids) <= self.max_tokens:
                yield piece, ids
            elif len(piece) > 1:
                yield from self._fit(_halves(piece))


def _halves(text: str) -> list[str]:
    """Cut a text in two at the white space nearest to its middle, or in the middle."""
    middle = len(text) // 2
    behind, ahead = text.rfind(" ", 1, middle), text.find(" ", middle, len(text) - 1)
    places = [place + 1 for place in (behind, ahead) if place > 0]
    cut = min(places, key=lambda place: abs(place - middle), default=0)
    cut = cut or _between_characters(text, max(1, middle))
    return [text[:cut], text[cut:]]


def _between_characters(text: str, middle: int) -> int:
    """Return the place nearest to `middle` that is between two characters as a reader sees them.

    A vowel sign stays with its letter, a flag or a family of emoji is one character. One that is
    the whole text is cut in its middle.
    """
    begin = max(0, middle - WINDOW)
    # Flags are pairs of letters: counted from the middle of a row of them, they would be others.
    while begin and _FLAG_LETTER.match(text[begin]):
        begin -= 1
    ends = [begin + match.end() for match in _CHARACTER.finditer(text[begin : middle + WINDOW])]
    # The first may be the rest of one, and the last cut short.
    inside = [end for end in ends[:-1] if 0 < end < len(text)]
    return min(inside, key=lambda place: abs(place - middle), default=middle)
