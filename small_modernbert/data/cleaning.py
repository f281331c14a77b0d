"""Texts made fit for a tokenizer: what would break it is taken out, the rest is left as it is.

Beyond that, "web" cleans what is scraped or tokenised: markup, spaces before marks, doubled marks,
white space. Code, tables and poems would lose by it, so nobody gets it who has not asked.
"""

import re
import unicodedata
from enum import StrEnum
from typing import Literal

# A row longer than this is a dump, not a document; it also bounds the memory one row can take.
MAX_ROW_CHARACTERS = 5_000_000
# No word of any language; base64, minified code and the like stall a tokenizer (10 MB: minutes).
MAX_WORD_CHARACTERS = 1_000
LETTER_SHARE = 0.5
Cleaning = Literal["none", "web"]

_INVISIBLE = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufff9-\uffff\ud800-\udfff"
_CONTROLS = re.compile(f"[{_INVISIBLE}]+")
_VISIBLE = re.compile(f"[^\\s{_INVISIBLE}]")
_LINE_BREAKS = re.compile("\r\n?|[\u2028\u2029]")
_LEADING_LINES = re.compile(r"^(?:[^\S\n]*\n)+")
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


class Reason(StrEnum):
    """Why a text is not in the corpus."""

    NOT_TEXT = "not text"
    BLANK = "blank"
    TOO_SHORT = "too short"
    NO_WORDS = "no words"
    OVER_LONG = "over-long"
    EXACT = "exact duplicate"
    UNKNOWN = "script unknown to the tokenizer"
    LEAK = "stands in an evaluation set"
    NEAR = "near duplicate"
    CAP = "over the cap"


# A text dropped for one of these was no use in itself; the others repeat one, or came too late.
USELESS = (
    Reason.NOT_TEXT,
    Reason.BLANK,
    Reason.TOO_SHORT,
    Reason.NO_WORDS,
    Reason.OVER_LONG,
    Reason.UNKNOWN,
)


def clean(value: object, min_characters: int, cleaning: Cleaning = "none") -> str | Reason:
    """Return the text of one cell, or why it is dropped.

    Control characters, NUL and lone surrogates become spaces, words of more than
    `MAX_WORD_CHARACTERS` are taken out, line ends are the same everywhere, and white space at the
    end and blank lines at the beginning go. What remains may be too short to teach anything.

    Args:
        value: of the cell.
        min_characters: of a text.
        cleaning: "web" also removes markup left by the usual sources, puts tokenised text back as
            it was written, collapses white space within paragraphs, and drops texts that are half
            digits and marks.
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
    text = _tidy(text) if cleaning == "web" else _trim(text)
    if not text:
        return Reason.BLANK
    if len(text) < min_characters:
        return Reason.TOO_SHORT
    return text if _has_words(text, cleaning) else Reason.NO_WORDS


def is_blank(text: str) -> bool:
    """Say whether nothing of a text can be seen: every model gives it some vector all the same."""
    return _VISIBLE.search(text) is None


def show(text: str) -> str:
    """Return a text for a terminal: on a line, without what would steer it."""
    return " ".join(_CONTROLS.sub(" ", text).split())


def _has_words(text: str, cleaning: Cleaning) -> bool:
    if cleaning == "none":
        return any(map(str.isalpha, text))
    # In bytes, for speed; those of other scripts count as letters.
    encoded = text.encode()
    return len(encoded.translate(None, _NO_LETTERS)) >= LETTER_SHARE * len(encoded)


def _trim(text: str) -> str:
    """Return a text with all its inner white space, and the indentation of its first line."""
    return _LEADING_LINES.sub("", _LINE_BREAKS.sub("\n", text)).rstrip()


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
        text = _MARKERS.sub(lambda marker: f"{marker[1] or '.'} ", text)
        text = _CITATIONS.sub("", text)
    if "(" in text:
        text = _SPACE_AFTER_BRACKET.sub(r"\1", _HOLLOW.sub("", text))
    if '" ' in text:
        text = _SPACED_QUOTES.sub(r'"\1"', text)
    if "//" in text:
        text = _SPACED_ADDRESS.sub(r"\1//", text)
    text = _SPACE_BEFORE_MARK.sub(r"\1", text)
    if ".." in text or ": ." in text or ":." in text or ",." in text:
        text = _DOUBLED_MARK.sub(lambda marks: marks[1] or marks[2], text)
    if "\n" in text:
        text = _BLANK_LINES.sub(lambda run: "\n\n" if run[0].count("\n") > 1 else "\n", text)
    # What was taken out may have left two spaces.
    if "  " in text:
        text = _SPACES.sub(" ", text)
    return _LEADING_MARKS.sub("", text).strip()
