"""What a user's documents become: texts to train on, and retrieval sets of documents kept apart.

The held-out documents are whole ones: no passage of theirs trains. Half of them make the set that
checkpoints are selected on, half the one that is reported. Their queries are the user's own where
there are any, else headings, else first sentences: made, and no judgement of a person.
"""

import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from small_modernbert.data import file_rows, passages
from small_modernbert.data.documents import Document
from small_modernbert.data.keys import words_key
from small_modernbert.data.passages import Passage
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.runs.errors import UserError

REPORTED, VALIDATION = "mine", "mine-validation"
LEAST_DOCUMENTS = 3  # for each part one
ENOUGH_QUERIES = 50  # below, a figure says next to nothing
ENOUGH_DOCUMENTS = 100  # held out: they give about as many queries; a half where there are fewer
NAMED, MADE = "queries of the user", "made queries"


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class UserQuery:
    """A query that a user brought.

    Attributes:
        text: of the query.
        document: the name of the document that answers it; empty where the user does not say.
    """

    text: str
    document: str


@dataclasses.dataclass(frozen=True)
class Parts:
    """The documents by what they serve.

    Attributes:
        training: their names.
        validation: of those that checkpoints are selected on.
        reported: of those that the table is about.
    """

    training: list[str]
    validation: list[str]
    reported: list[str]


def read_queries(path: Path, known: Sequence[str], counts: Counter[str]) -> list[UserQuery]:
    """Read a file of queries: a column `query` or `text`, and `document` where one answers it.

    Args:
        path: of any kind that `file_rows` reads.
        known: names of the documents; a query may name one by its path or by its last part.
        counts: what was left out is added to it, by reason.

    Raises:
        UserError: it has neither column.
    """
    cure = "QUERIES: give it a column `query` or `text`"
    there = file_rows.read_columns(path, cure)
    column = "query" if "query" in there else "text"
    by_part: dict[str, list[str]] = {}
    for name in known:
        for part in {name, name.rpartition("/")[2]}:
            by_part.setdefault(part, []).append(name)
    queries, unknown = [], list[str]()
    for batch in file_rows.read_rows(path, {column: "any"}, cure, optional=("document",)):
        answers = batch.get("document") or [None] * len(batch[column])
        for text, answer in zip(batch[column], answers, strict=True):
            if not isinstance(text, str) or not text.strip():
                counts["blank queries"] += 1
                continue
            named = str(answer) if answer else ""
            names = by_part.get(named) or by_part.get(named.rpartition("/")[2], [])
            if answer and len(names) != 1:
                reason = "no document" if not names else "several documents"
                counts[f"queries whose answer names {reason}"] += 1
                unknown.append(named)
            queries.append(UserQuery(text.strip(), names[0] if len(names) == 1 else ""))
    if not queries:
        raise UserError(f"{path} holds no query; {cure}")
    if unknown:
        logger.warning(
            "%d of %d queries name no document, or several (%s): they train, and measure nothing; "
            "name a file by its path below the folder",
            *(len(unknown), len(queries), ", ".join(map(repr, unknown[:3]))),
        )
    return queries


def by_sections(documents: Sequence[Document]) -> Sequence[Document]:
    """Return the documents, and the sections of each in their place where they are too few.

    A book in one file has chapters that can be kept apart.
    """
    if len(documents) >= LEAST_DOCUMENTS:
        return documents
    return [
        dataclasses.replace(document, name=f"{document.name}#{number}", sections=(section,))
        for document in documents
        for number, section in enumerate(document.sections, 1)
    ]


def divide(
    documents: Sequence[Document],
    queries: Sequence[UserQuery],
    pieces: Mapping[str, int],
    share: float,
    most: int,
    seed: int,
) -> Parts:
    """Keep a share of the documents apart, those first that queries of the user name.

    Of few documents more than the share, up to a half: a figure by a handful of queries is none.
    Two documents with the same words stay together, and so do messages that answer each other: a
    copy of a held-out one never trains, nor do its answers.

    Args:
        documents: all of them.
        queries: of the user.
        pieces: how many passages a document has, by its name.
        share: of the documents.
        most: passages of a part; when it has them, further documents train.
        seed: of the choice.

    Raises:
        UserError: fewer than three distinct documents cannot be divided.
    """
    groups: dict[int | str, list[str]] = {}
    for document in documents:
        words = " ".join(section.text for section in document.sections)
        groups.setdefault(document.thread or words_key(words), []).append(document.name)
    if len(groups) < LEAST_DOCUMENTS:
        raise UserError(
            f"{len(groups)} distinct documents (of mail: threads) cannot be divided into some to "
            "train on and some to measure on; name a folder of three at least (a hundred for a "
            "figure that says something), or put headings into a long file: --documents"
        )
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    named = {query.document for query in queries}
    # A thread that is a tenth of all would be a set by itself: it trains.
    long = max(1, len(documents) // 10)
    order.sort(key=lambda names: (named.isdisjoint(names), len(names) > long))
    least = max(2, min(ENOUGH_DOCUMENTS, len(documents) // 2))
    held_out = max(least, round(share * len(documents)))
    # Where threads or copies make groups of documents few, some must be left to train on.
    groups_at_most = min(max(2 * len(order) // 3, round(share * len(order))), len(order) - 1)
    training: list[str] = []
    parts: tuple[list[str], list[str]] = ([], [])
    sizes, held = [0, 0], 0
    for number, names in enumerate(order):
        side = int(len(parts[1]) < len(parts[0]))  # threads differ in length
        if number >= groups_at_most or held >= held_out or sizes[side] >= most:
            training += names
            continue
        held += len(names)
        parts[side].extend(names)
        sizes[side] += sum(pieces[name] for name in names)
    return Parts(sorted(training), validation=sorted(parts[1]), reported=sorted(parts[0]))


def make_set(
    name: str,
    chosen: Sequence[Passage],
    common: set[str],
    queries: Sequence[UserQuery],
    most: int,
    seed: int,
) -> tuple[RetrievalSet | None, str]:
    """Make a retrieval set of the passages of held-out documents.

    Args:
        name: of the set.
        chosen: the passages, in order.
        common: headings that name no document, see `passages.common_headings`.
        queries: of the user; those that name one of these documents make the set alone.
        most: queries; a seeded choice of them.
        seed: of the choice.

    Returns:
        The set, None where no passage has a query; and which kind of queries it has.
    """
    texts = [passage.text for passage in chosen]
    asked = _by_user(chosen, queries)
    kind = NAMED if asked else MADE
    if not asked:
        asked = _by_headings(chosen, common)
        # A first sentence is taken out of its passage, so it is asked where no heading could be, or
        # where the heading is that of all answers to a message.
        answered = {row for rows in asked.values() for row in rows if not chosen[row].thread}
        for row, passage in enumerate(chosen):
            query, following = passages.first_sentence(passage.text)
            if query and row not in answered and query not in asked:
                asked[query], texts[row] = [row], following
    if not asked:
        return None, kind
    picked = sorted(asked)
    random.Random(seed).shuffle(picked)
    return _to_set(name, {query: asked[query] for query in picked[:most]}, texts), kind


def _to_set(name: str, asked: Mapping[str, Sequence[int]], texts: list[str]) -> RetrievalSet:
    """Return the set of queries with the rows of the texts that answer each."""
    return RetrievalSet(
        name=name,
        query_ids=[f"q{number}" for number in range(len(asked))],
        queries=list(asked),
        document_ids=[f"p{row}" for row in range(len(texts))],
        documents=texts,
        relevant={
            f"q{number}": {f"p{row}": 1.0 for row in rows}
            for number, rows in enumerate(asked.values())
        },
    )


def _by_user(chosen: Sequence[Passage], queries: Sequence[UserQuery]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, passage in enumerate(chosen):
        rows.setdefault(passage.document, []).append(row)
    asked: dict[str, list[int]] = {}
    for query in queries:
        if query.document in rows:
            asked.setdefault(query.text, []).extend(rows[query.document])
    return asked


def _by_headings(chosen: Sequence[Passage], common: set[str]) -> dict[str, list[int]]:
    """Return query -> the rows of all pieces of the sections that have it as heading."""
    asked: dict[str, list[int]] = {}
    query = ""
    for row, passage in enumerate(chosen):
        if passage.first:
            query = passages.heading_query(passage, common)
        if query:
            asked.setdefault(query, []).append(row)
    return asked


def training_texts(
    chosen: Sequence[Passage], queries: Sequence[UserQuery], most: int, seed: int
) -> tuple[list[tuple[str, str, str]], Mapping[str, int]]:
    """Return (text, source, role) of what the student learns from, and how many of each kind.

    Half of them are passages; beyond `most` a seeded choice of each half. Queries of the user go
    first.
    """
    rng = random.Random(seed)
    if len(chosen) > most:  # each makes a query or two: more would be made in vain
        chosen = [chosen[row] for row in sorted(rng.sample(range(len(chosen)), most))]
    texts = [(passage.titled, "passage", "document") for passage in chosen]
    asked = [(query.text, "user's query", "query") for query in queries]
    made = [(query.text, query.kind, "query") for query in passages.make_queries(chosen)]
    rng.shuffle(texts)
    rng.shuffle(made)
    asked += made
    half = most // 2
    # What one half leaves free serves the other.
    documents = texts[: max(half, most - len(asked))]
    rows = documents + asked[: most - len(documents)]
    return rows, Counter(source for _, source, _ in rows)
