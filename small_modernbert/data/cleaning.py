"""Texts made fit for a tokenizer: sanitised, and cut on sentence boundaries to a token limit."""

import re
import unicodedata
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from small_modernbert.data.word_memo import WordMemo
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A row longer than this is a dump, not a document; it also bounds the memory one row can take.
MAX_ROW_CHARACTERS = 5_000_000
# No word of any language; base64, minified code and the like stall a tokenizer (10 MB: minutes).
MAX_WORD_CHARACTERS = 1_000
# English prose has 4 to 5 characters a token: beyond this nobody needs to count to know.
SURELY_LONG_CHARACTERS_PER_TOKEN = 10
LETTER_SHARE = 0.5
MIN_BUDGET = 8  # one character can take several tokens

_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufff9-\uffff\ud800-\udfff]+"
)
_LINE_BREAKS = re.compile("\r\n?|[\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\s*\n\s*\n\s*|[^\S\n]*\n[^\S\n]*")
# wikiHow's structure, as HellaSwag spells it; a title is a sentence of its own.
_MARKERS = re.compile(r"([.!?:,;]?)\s*\[(?:header|title|steps?|sub-?steps?)\]\s*", re.IGNORECASE)
_CITATIONS = re.compile(r"\[(?:\d{1,3}|citation needed)\]")
# What Wikipedia's text leaves of an audio link, and a bracket left with nothing in it.
_HOLLOW = re.compile(r"\(\s*(?:listen)?\s*\)")
# Tokenised text, put back as it was written: "( a )", " ,", http: //
_SPACE_BEFORE_MARK = re.compile(r" ([,;:!?)\]]|\.(?![.\w]))(?=[\s,.;:]|$)")
_SPACE_AFTER_BRACKET = re.compile(r"([(\[]) (?=\w)")
_SPACED_QUOTES = re.compile(r'" ([^"\n]+) "(?=[\s,.;:!?)]|$)')
_SPACED_ADDRESS = re.compile(r"\b(https?:) ?// ?")
_DOUBLED_MARK = re.compile(r"([:,;]) ?[.,](?=\s|$)|(?<!\.)(\.)\.(?!\.)")
_LEADING_MARKS = re.compile(r"^(?:[\s,;:!?)\]}]|\.(?!\w))+")
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\Wa-z_])|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|Fig|cf|ca|[A-Za-z]|e\.g|i\.e)\.$"
)


class Reason(StrEnum):
    """Why a text is not in the corpus."""

    NOT_TEXT = "not text"
    BLANK = "blank"
    TOO_SHORT = "too short"
    NO_WORDS = "no words"
    OVER_LONG = "over-long"
    EXACT = "exact duplicate"
    NEAR = "near duplicate"
    CAP = "over the cap"


# A text dropped for one of these was no use in itself; the others repeat one, or came too late.
USELESS = (Reason.NOT_TEXT, Reason.BLANK, Reason.TOO_SHORT, Reason.NO_WORDS, Reason.OVER_LONG)


def clean(value: object, min_characters: int) -> str | Reason:
    """Return the text of one cell without what breaks or misleads a model, or why it is dropped.

    Control characters, NUL and lone surrogates become spaces; words of more than
    `MAX_WORD_CHARACTERS` are taken out; markup left by the usual sources is removed; white space
    is collapsed, paragraphs stay. What remains may be too short to teach anything.
    """
    if not isinstance(value, str):
        return Reason.NOT_TEXT
    if not value or value.isspace():
        return Reason.BLANK
    if len(value) > MAX_ROW_CHARACTERS:
        return Reason.OVER_LONG
    text = value if value.isprintable() else _CONTROLS.sub(" ", value)
    if len(text) > MAX_WORD_CHARACTERS:
        dumps = {word for word in text.split() if _is_dump(word)}
        # The longest first: a part taken out of another would leave the rest of that one.
        for dump in sorted(dumps, key=len, reverse=True):
            text = text.replace(dump, " ")
        if dumps and text.isspace():
            return Reason.OVER_LONG
    text = _tidy(text)
    if not text:
        return Reason.BLANK
    if len(text) < min_characters:
        return Reason.TOO_SHORT
    # In bytes, for speed; those of other scripts count as letters.
    encoded = text.encode()
    if len(encoded.translate(None, _NO_LETTERS)) < LETTER_SHARE * len(encoded):
        return Reason.NO_WORDS
    return text


def _is_dump(word: str) -> bool:
    """Say whether this is base64 or the like: too long for a word, in letters that have spaces."""
    # From Thai on, and above all in Chinese and Japanese, whole paragraphs are without a space.
    return len(word) > MAX_WORD_CHARACTERS and 2 * sum(map("\u0e00".__le__, word)) < len(word)


def _tidy(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("\u00ad", "")
    if not text.isprintable():
        text = _LINE_BREAKS.sub("\n", text)
        text = _SPACES.sub(" ", text)
    elif "  " in text:
        text = _SPACES.sub(" ", text)
    if "[" in text:
        text = _MARKERS.sub(lambda found: f"{found[1] or '.'} ", text)
        text = _CITATIONS.sub("", text)
    if "(" in text:
        text = _SPACE_AFTER_BRACKET.sub(r"\1", _HOLLOW.sub("", text))
    if '" ' in text:
        text = _SPACED_QUOTES.sub(r'"\1"', text)
    if "//" in text:
        text = _SPACED_ADDRESS.sub(r"\1//", text)
    text = _SPACE_BEFORE_MARK.sub(r"\1", text)
    if ".." in text or ": ." in text or ":." in text or ",." in text:
        text = _DOUBLED_MARK.sub(lambda found: found[1] or found[2], text)
    if "\n" in text:
        text = _BLANK_LINES.sub(lambda run: "\n\n" if run[0].count("\n") > 1 else "\n", text)
    # What was taken out may have left two spaces.
    if "  " in text:
        text = _SPACES.sub(" ", text)
    return _LEADING_MARKS.sub("", text).strip()


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, in order, each with the white space that follows it.

    Joined, they are the text again. Line ends are boundaries; common abbreviations are not.
    """
    begin = 0
    for found in _SENTENCE_END.finditer(text):
        before = text[max(begin, found.start() - 6) : found.start()]
        if "\n" not in found[0] and _ABBREVIATION.search(before):
            continue
        yield text[begin : found.end()]
        begin = found.end()
    if begin < len(text):
        yield text[begin:]


class Chunker:
    """Cuts texts into pieces of at most `max_tokens` tokens, special tokens included."""

    def __init__(self, tokenizer: "Tokenizer", max_tokens: int, memo: bool = True) -> None:
        """Take over `tokenizer`, whose truncation and padding are switched off.

        Args:
            tokenizer: counts.
            max_tokens: of a piece.
            memo: count through a memo of words (word_memo.py), or every text anew.

        Raises:
            UserError: the limit leaves no room beside the special tokens.
        """
        self.words = WordMemo(tokenizer)
        self._count = self.words.counts if memo else self._count_anew
        self.max_tokens = max_tokens
        self.budget = max_tokens - tokenizer.num_special_tokens_to_add(False)
        self._surely_long = SURELY_LONG_CHARACTERS_PER_TOKEN * max_tokens
        if self.budget < MIN_BUDGET:
            raise UserError(
                f"MAX_TOKENS {max_tokens} leaves {self.budget} beside the special tokens; "
                f"at least {MIN_BUDGET} are needed: --max-tokens 128, say"
            )

    def chunk(self, texts: list[str]) -> list[list[tuple[str, int]]]:
        """Return the pieces of every text, each with its number of tokens (special ones included).

        A text that fits is one piece, unchanged. Others are cut between sentences into pieces of
        about equal length; a sentence that is too long by itself, at white space.
        """
        pieces: list[list[tuple[str, int]]] = [[] for _ in texts]
        short = [i for i, text in enumerate(texts) if len(text) <= self._surely_long]
        for i, tokens in zip(short, self._count([texts[i] for i in short]), strict=True):
            if tokens <= self.max_tokens:
                pieces[i].append((texts[i], tokens))
        for i, text in enumerate(texts):
            if not pieces[i]:
                pieces[i] = list(self._fit(self._pack(text)))
        return pieces

    def _count_anew(self, texts: list[str], special: bool = True) -> list[int]:
        tokenizer = self.words.tokenizer
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        return [len(encoding.ids) for encoding in encoded]

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
        for text, tokens in zip(texts, self._count(texts, special=False), strict=True):
            if tokens <= self.budget or len(text) < 2:
                yield text, tokens
            else:
                yield from self._units(_halves(text))

    def _halve_to(self, text: str) -> Iterator[str]:
        # No text of any length reaches the tokenizer whole.
        if len(text) <= self._surely_long:
            yield text
        else:
            for half in _halves(text):
                yield from self._halve_to(half)

    def _fit(self, packed: list[str]) -> Iterator[tuple[str, int]]:
        # The tokens of a whole can differ by a few from the sum of its parts': count, and halve
        # what is over.
        packed = [piece.strip() for piece in packed if not piece.isspace()]
        for piece, tokens in zip(packed, self._count(packed), strict=True):
            if tokens <= self.max_tokens:
                yield piece, tokens
            elif len(piece) > 1:
                yield from self._fit(_halves(piece))


def _halves(text: str) -> list[str]:
    """Cut a text in two at the white space nearest to its middle, or in the middle."""
    middle = len(text) // 2
    behind, ahead = text.rfind(" ", 1, middle), text.find(" ", middle, len(text) - 1)
    places = [place + 1 for place in (behind, ahead) if place > 0]
    cut = min(places, key=lambda place: abs(place - middle), default=max(1, middle))
    return [text[:cut], text[cut:]]
