"""Where evaluation sets come from: folders, files, the hub; retrieval sets and sentence pairs.

A retrieval set is read from a folder in one of two layouts, whose files may be of any kind that
`file_rows` reads, or from the hub. Imports nothing heavy; `datasets` is imported only for the hub.

    <folder>/corpus/<set>.parquet    _id, text, title (may be missing)      NanoBEIR's layout
    <folder>/queries/<set>.parquet   _id, text
    <folder>/qrels/<set>.parquet     query-id, corpus-id, score (1 where it is missing)

    <folder>/<set>/corpus.jsonl      the same columns                       BEIR's layout
    <folder>/<set>/queries.jsonl
    <folder>/<set>/qrels/test.tsv    or TREC's, see `retrieval_tables`
"""

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_modernbert.data import retrieval_tables
from small_modernbert.data.cleaning import is_blank
from small_modernbert.data.file_rows import PAIR_NAMES
from small_modernbert.data.retrieval_sets import RetrievalSet, assemble, check_numbers, check_texts
from small_modernbert.data.retrieval_tables import COLUMNS
from small_modernbert.runs import hub
from small_modernbert.runs.errors import UserError

ASSETS = "python get_offline_assets.py"
NANOBEIR = "sentence-transformers/NanoBEIR-en"
NANOBEIR_REVISION = "beb106fbcfaa599c508c667041bf8c85fd78736b"
STS_DEV = "sts-dev"  # what a hub dataset's validation split is called in figures
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences with a graded score, or with a yes-or-no label.

    Attributes:
        name: as the tables show it.
        first: one sentence of each pair.
        second: the other one.
        gold: human scores (any scale) or labels (0 and 1).
        graded: scores, to be ranked (Spearman); else labels, to be retrieved (average precision).
    """

    name: str
    first: list[str]
    second: list[str]
    gold: list[float]
    graded: bool


def load_retrieval_set(folder: Path, name: str) -> RetrievalSet:
    """Read one set of a folder, in either layout (see the module's docstring).

    Raises:
        UserError: a file or column is missing, or `assemble` refuses the set.
    """
    files = {part: retrieval_tables.find_tables(folder, part, name) for part in COLUMNS}
    if not files["queries"]:
        known = ", ".join(list_retrieval_sets(folder)) or "none"
        raise UserError(
            f"{folder} holds no set {name!r}, neither queries/{name}.parquet nor "
            f"{name}/queries.jsonl (sets in this folder: {known}); name one of them, or for the "
            f"offline sets run: {ASSETS}"
        )
    for part, paths in files.items():
        if not paths:
            raise UserError(
                f"{folder}: the set {name!r} has queries ({files['queries'][0].name}), and no "
                f"{part}; put it beside them, or for the offline sets run: {ASSETS}"
            )
    tables = [retrieval_tables.read_part(paths, part) for part, paths in files.items()]
    return assemble(name, *tables, where=str(folder))


def list_retrieval_sets(folder: Path) -> list[str]:
    """Return the names of the sets in a folder, sorted; a folder that is a BEIR set holds one."""
    return retrieval_tables.list_sets(folder)


def has_retrieval_set(folder: Path, name: str) -> bool:
    """Say whether a folder holds a set, in either layout."""
    return bool(retrieval_tables.find_tables(folder, "queries", name))


def load_nanobeir(name: str, revision: str | None = NANOBEIR_REVISION) -> RetrievalSet:
    """Read one set of NanoBEIR (`NanoMSMARCO`, `NanoHotpotQA`, ...) from the hub.

    Raises:
        UserError: the hub can't be reached, or has no such set.
    """
    tables = [
        load_hub_split(NANOBEIR, config, name, revision)[:]
        for config in ("queries", "corpus", "qrels")
    ]
    return assemble(name, *tables, where=NANOBEIR)


def load_named(names: Sequence[str], folder: Path | None) -> list[RetrievalSet]:
    """Read sets by name: from a folder in the NanoBEIR layout, or NanoBEIR's from the hub."""
    return [load_retrieval_set(folder, name) if folder else load_nanobeir(name) for name in names]


def load_watched(
    names: Sequence[str], sentence_pairs: str, inputs: Mapping[str, Path | str]
) -> tuple[list[RetrievalSet], SentencePairs | None]:
    """Read what a stage is watched by: retrieval sets, and pairs of sentences if any are named.

    Args:
        names: of the retrieval sets.
        sentence_pairs: hub id, of which the validation split is read, or a file; "" for none.
        inputs: of the stage, from `references.need_evaluation`.
    """
    place = inputs.get("sentence pairs")
    path = place if isinstance(place, Path) else None
    pairs = load_sentence_pairs(sentence_pairs, path, "validation") if sentence_pairs else None
    return load_named(names, inputs.get("retrieval")), pairs


def load_hotpotqa(
    corpus: str, qrels: str, distractors: int, seed: int
) -> tuple[RetrievalSet, list[str]]:
    """Read BEIR HotpotQA's test queries over all its documents, or over a seeded sample.

    Args:
        corpus: hub id (or folder) with the configs `queries` and `corpus`, `id@revision` if pinned.
        qrels: hub id (or folder) with the split `test`.
        distractors: how many documents stand beside all the relevant ones; 0 means the full
            corpus of 5.2M, whose texts are then read lazily.
        seed: draws the distractors.

    Returns:
        The set, and the ids of the distractors (empty for the full corpus).

    Raises:
        UserError: the hub can't be reached, or a judgement points nowhere.
    """
    corpus_id, corpus_revision = hub.split_revision(corpus)
    qrels_id, qrels_revision = hub.split_revision(qrels)
    judgements = load_hub_split(qrels_id, None, "test", qrels_revision)[:]
    wanted = {str(query) for query in judgements["query-id"]}
    all_queries = load_hub_split(corpus_id, "queries", "queries", corpus_revision)[:]
    kept = [i for i, query in enumerate(all_queries["_id"]) if str(query) in wanted]
    queries = {name: [all_queries[name][i] for i in kept] for name in ("_id", "text")}
    table = load_hub_split(corpus_id, "corpus", "corpus", corpus_revision)
    if distractors == 0:
        lazy = {name: table[name] for name in ("_id", "title", "text")}
        return assemble("hotpotqa", queries, lazy, judgements, where=corpus), []
    gold = {str(document) for document in judgements["corpus-id"]}
    rows, chosen = choose_documents(map(str, table["_id"]), gold, distractors, seed)
    sample = table.select(rows)[:]
    return assemble("hotpotqa", queries, sample, judgements, where=corpus), chosen


def choose_documents(
    ids: Iterable[str], gold: set[str], distractors: int, seed: int
) -> tuple[list[int], list[str]]:
    """Choose every gold document and a seeded sample of the others.

    Returns:
        Row numbers to keep, ascending, and the ids of the sampled distractors in corpus order.
    """
    gold_rows, others, names = [], [], []
    for row, name in enumerate(ids):
        if name in gold:
            gold_rows.append(row)
        else:
            others.append(row)
            names.append(name)
    sample = random.Random(seed).sample(range(len(others)), min(distractors, len(others)))
    sample.sort()
    return sorted(gold_rows + [others[i] for i in sample]), [names[i] for i in sample]


def load_sentence_pairs(reference: str, path: Path | None, split: str = "test") -> SentencePairs:
    """Read `sentence1, sentence2, score` (graded) or `sentence1, sentence2, label` (0 or 1).

    Args:
        reference: hub id (`id@revision` if pinned), or what the pairs are called when there is a
            file.
        path: a Parquet file with those columns, or None for the hub.
        split: of a hub dataset.

    Raises:
        UserError: the file or the hub's answer has other columns, or can't be had.
    """
    wanted, optional = ("sentence1", "sentence2"), ("score", "label")
    if path is not None:
        name = path.stem
        columns = retrieval_tables.read_table([path], wanted, optional, PAIR_NAMES)
    else:
        repository, revision = hub.split_revision(reference)
        name = STS_DEV if split == "validation" else repository.rpartition("/")[2]
        columns = load_hub_split(repository, None, split, revision)[:]
    gold = "score" if "score" in columns else "label"
    if missing := [column for column in (*wanted, gold) if column not in columns]:
        raise UserError(
            f"{reference} has no column {missing[0]!r}; it has {', '.join(columns)}; rename one of "
            "them: sentence1, sentence2 and score (or label, of 0 and 1) are read"
        )
    where = f"{path or reference}, column"
    first, second = (check_texts(columns[side], f"{where} {side}") for side in wanted)
    numbers = check_numbers(columns[gold], f"{where} {gold}")
    if gold == "label" and not set(numbers) <= {0, 1}:
        shown = sorted(set(columns[gold]))[:5]
        raise UserError(
            f"{where} label: 0 and 1 are wanted, not {shown}; name a column of grades score"
        )
    return SentencePairs(name, first, second, numbers, graded=gold == "score")


def read_texts(paths: list[Path]) -> list[str]:
    """Return the distinct texts of files with a `text` column, in their order.

    Raises:
        UserError: a file can't be read or has no such column, or nothing is left.
    """
    texts = retrieval_tables.read_table(paths, ("text",), ())["text"]
    good = [text for text in texts if isinstance(text, str) and not is_blank(text)]
    if not good:
        raise UserError(f"{paths[0]} and its like hold no text; fill their column `text`")
    if len(good) < len(texts):
        logger.info(
            "%s: %s rows left out: blank or not text", paths[0], f"{len(texts) - len(good):,}"
        )
    return list(dict.fromkeys(good))


def load_hub_split(repository: str, config: str | None, split: str, revision: str | None) -> Any:  # noqa: ANN401  a datasets.Dataset; naming it would import it
    """Load one split of a hub dataset (or of a folder in its layout), memory-mapped.

    Raises:
        UserError: it can't be had; the message names `make run`.
    """
    import datasets

    try:
        with hub.cached_if_unreachable(repository, revision):
            table = datasets.load_dataset(repository, config, split=split, revision=revision)
            if not Path(repository).is_dir():  # of a folder there is no commit
                hub.note_commit(repository, revision, table.cache_files)
            return table
    except Exception as error:  # whatever the hub's many libraries raise, with the cure
        raise hub.explain(error, f"dataset {repository}", split) from error
