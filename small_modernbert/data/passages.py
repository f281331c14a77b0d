"""Passages out of documents, and queries that their words make: no language model is asked.

A passage is what a search returns: a section, or a piece of one that is too long. Its queries are
what somebody who looks for it might type: its heading, its first sentence, the questions that stand
in it, and the phrases that set it apart from the others (tf-idf).
"""

import dataclasses
import heapq
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from small_modernbert.data.chunking import Chunker, split_sentences
from small_modernbert.data.documents import FENCE, Document, plain_text
from small_modernbert.data.keys import words_of

Kind = Literal["heading", "first sentence", "question", "phrase"]
KINDS: tuple[Kind, ...] = ("heading", "first sentence", "question", "phrase")
SHORT_CHARACTERS = 80  # a section below is joined to the next one
WRAPPED_CHARACTERS = 45  # of a line that may have been cut at a width
SENTENCE_CHARACTERS = (20, 250)  # of a sentence that can stand as a query
LETTERS = 0.75  # of a sentence's characters, spaces among them
COMMON_HEADING = 3  # documents; a heading that more of them have says nothing without its title
PHRASES, PHRASE_WORDS = 3, 3  # of a passage, and the most words of one
PHRASE_BLOCK = 4_000  # passages that are held against each other; bounds memory
_QUESTION_MARK = re.compile(r"[?？؟]\s*[\"'”’)]?\s*$")
_PROSE = re.compile(r"(?![-*+#>|]|\d+[.)]|\.\. )\S.*[^|\s]$|(?=[^\W\d_])\S+$")
# Of a section: "5.24. ", "A.1 ", "III. "; a year or a number of things is part of the heading.
_NUMBERING = re.compile(r"^(?:\d+(?:\.\d+)+\.?|\d+\.|[A-Z]\.\d+(?:\.\d+)*\.?|[IVX]+\.)\s+(?=\S)")
_NO_SENTENCE = re.compile(r"\||[;{}=,]\s*$|^\s*(?:@@|diff )")  # a table's row, a line of code
_LINE_MARKUP = re.compile(r"^[\s>*#+\-|.:=`~_\d)]+")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A piece of a document.

    Attributes:
        document: the document's name.
        title: the document's.
        heading: of its section; empty where there is none.
        text: without its heading.
        first: whether it begins its section.
        thread: the document's.
    """

    document: str
    title: str
    heading: str
    text: str
    first: bool
    thread: str = ""

    @property
    def titled(self) -> str:
        """The passage as an index holds it: title and heading above the text."""
        above = " › ".join(dict.fromkeys(filter(None, (self.title, self.heading))))
        return f"{above}\n{self.text}" if above else self.text


@dataclasses.dataclass(frozen=True)
class Query:
    """What somebody might type to find a passage.

    Attributes:
        text: of the query.
        kind: how it was made.
        passage: the row of the passage that it was made of.
    """

    text: str
    kind: Kind
    passage: int


def cut_document(document: Document, chunker: Chunker) -> list[Passage]:
    """Return the passages of a document, in order.

    Sections of a few words are joined to the next, under their headings; nothing is left out.
    """
    passages: list[Passage] = []
    waiting = ""
    last = len(document.sections) - 1
    for number, section in enumerate(document.sections):
        text = f"{waiting}{unwrap(section.text)}"
        if len(section.text) < SHORT_CHARACTERS and number < last:
            waiting = f"{waiting}{section.heading}\n{section.text}\n".lstrip("\n")
            continue
        waiting = ""
        pieces = [piece for piece, _ in chunker.chunk([text])[0]]
        passages += [
            Passage(
                document.name, document.title, section.heading, piece, place == 0, document.thread
            )
            for place, piece in enumerate(pieces)
        ]
    return passages


def unwrap(text: str) -> str:
    """Return a text whose paragraphs stand on one line each: a line's end is no sentence's.

    Only lines of prose that were cut at some width are joined; lists, tables, verse, code between
    fences and what is indented stay as they are.
    """
    lines: list[str] = []
    fenced, before = False, ""
    for line in text.split("\n"):
        fence = bool(FENCE.match(line))
        fenced ^= fence
        joins = (
            not (fenced or fence)
            and len(before) >= WRAPPED_CHARACTERS
            and _PROSE.match(before)
            and _PROSE.match(line)
        )
        if joins:
            lines[-1] = f"{lines[-1]} {line}"
        else:
            lines.append(line)
        before = line
    return "\n".join(lines)


def common_headings(passages: Iterable[Passage]) -> set[str]:
    """Return the headings that stand in so many documents that they name none.

    Messages that answer each other count as one: they are about the same.
    """
    pairs = {(each.heading.casefold(), each.thread or each.document) for each in passages}
    counts = Counter(heading for heading, _ in pairs)
    return {heading for heading, number in counts.items() if number > COMMON_HEADING}


def heading_query(passage: Passage, common: set[str]) -> str:
    """Return a passage's heading as a query, below its title where it says little without.

    That is a heading of one word, or one that many documents have. Empty where the passage does not
    begin its section, or the heading has no word.
    """
    heading = _NUMBERING.sub("", passage.heading)
    words = words_of(heading)
    if not passage.first or not words:
        return ""
    if len(words) < 2 or heading.casefold() in common:
        return "" if passage.title in ("", heading) else f"{passage.title} {heading}"
    return heading


def first_sentence(text: str) -> tuple[str, str]:
    """Return the first sentence of a passage that can stand as a query, and what follows it.

    Both are empty where there is none, or too little follows.
    """
    sentence, *rest = split_sentences(text)
    query = _bare(sentence)
    following = "".join(rest).strip()
    least, most = SENTENCE_CHARACTERS
    if not least <= len(query) <= most or len(following) < SHORT_CHARACTERS:
        return "", ""
    if _NO_SENTENCE.search(sentence) or _letters(query) < LETTERS:
        return "", ""
    return query, following


def questions_in(text: str) -> Iterator[str]:
    """Yield the sentences of a text that ask something."""
    for sentence in split_sentences(text):
        query = _bare(sentence)
        if _QUESTION_MARK.search(query) and 8 <= len(query) <= SENTENCE_CHARACTERS[1]:
            yield query


def _letters(text: str) -> float:
    """Return which share of a text's characters are letters, their marks, or spaces."""
    return sum(unicodedata.category(sign)[0] in "LMZ" for sign in text) / len(text)


def _bare(sentence: str) -> str:
    return plain_text(_LINE_MARKUP.sub("", sentence))


def phrases_of(texts: Sequence[str]) -> list[str]:
    """Return for each text the few phrases that set it apart from the others, as one query.

    By tf-idf over words and runs of two and three words; a phrase that holds another one stands for
    both. Empty for a text of a script without spaces, whose words nobody can tell.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) < 2:
        return [""] * len(texts)
    vectorizer = TfidfVectorizer(analyzer=_terms, max_df=0.2 if len(texts) > 20 else 0.5)
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no term is left
        return [""] * len(texts)
    names = vectorizer.get_feature_names_out()
    queries = []
    for row in range(weights.shape[0]):
        cells = weights.getrow(row)
        # Among equals single words first, long ones before short ones: those say most.
        ranked = (
            (-round(weight, 6), term.count(" "), -len(term), term)
            for weight, term in zip(cells.data, names[cells.indices], strict=True)
        )
        best = heapq.nsmallest(8 * PHRASES, ranked)
        chosen: list[str] = []
        for *_, term in best:
            if any(term in other or other in term for other in chosen):
                continue
            chosen.append(term)
            if len(chosen) == PHRASES:
                break
        queries.append(" ".join(chosen))
    return queries


def make_queries(passages: Sequence[Passage]) -> list[Query]:
    """Return the queries that passages make, each text once for a passage."""
    common = common_headings(passages)
    phrases: list[str] = []
    for block in blocks_of(passages, PHRASE_BLOCK):
        phrases += phrases_of([plain_text(passage.text) for passage in block])
    queries = []
    for row, passage in enumerate(passages):
        made: list[tuple[Kind, str]] = [("heading", heading_query(passage, common))]
        made.append(("first sentence", first_sentence(passage.text)[0]))
        made += [("question", text) for text in questions_in(passage.text)]
        made.append(("phrase", phrases[row]))
        seen = set[str]()
        for kind, text in made:
            if text and text not in seen:
                seen.add(text)
                queries.append(Query(text, kind, row))
    return queries


def blocks_of(passages: Sequence[Passage], size: int) -> Iterator[Sequence[Passage]]:
    """Yield passages in blocks of `size`; the last may have fewer."""
    for start in range(0, len(passages), size):
        yield passages[start : start + size]


def _terms(text: str) -> Iterator[str]:
    words = [word for word in words_of(text) if 2 < len(word) <= 30 and not word.isdigit()]
    for length in range(1, PHRASE_WORDS + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])
