"""What a benchmark shows: the table, every metric on every set, the JSON, the plot."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_modernbert.data.retrieval_sets import REMARKS, RetrievalSet
from small_modernbert.evaluation import charts, metrics, new_words, speed
from small_modernbert.evaluation.benchmark import TEACHER, Benchmark, Row
from small_modernbert.runs import report, storage

AGREEMENT = (
    '"Teacher\'s first ten", below, is agreement: how many of the ten documents that the teacher '
    "ranks first are among a row's own first ten, right or wrong, in the mean over the queries. It "
    "shows how much of the teacher's ranking was copied; nDCG shows how good a ranking is."
)


def write(folder: Path, made: Benchmark, remarks: Sequence[str] = ()) -> None:
    """Write results.json, results.md and results.png.

    Args:
        folder: where to.
        made: the benchmark, its rows made.
        remarks: what a reader must know of rows that are not there.
    """
    where, rows = speed.machine(), list(made.rows.values())
    results: dict[str, Any] = {
        "quality": "nDCG@10 averaged over these sets",
        "averaged": metrics.independent_sets(each.name for each in made.sets),
        "machine": where,
        "sets": {each.name: each.counts for each in made.sets},
        "pairs": {each.name: len(each.gold) for each in made.pairs},
        "rows": [record(row, made.rows.get(TEACHER)) for row in rows],
        "remarks": list(remarks),
    }
    for path in sorted(folder.glob("*_distractors.json")):
        number = len(storage.read_json(path, "redo it"))
        results[path.stem] = {"number": number, "sha256": storage.sha256_file(path)}
    storage.write_json(folder / "results.json", results)
    storage.write_text(folder / "results.md", markdown(made, where, remarks))
    plot(rows, folder / "results.png", where)


def summary_table(made: Benchmark) -> str:
    """Return the table of one line a model: quality, its share of the teacher's, size, speed."""
    rows, teacher = list(made.rows.values()), made.rows.get(TEACHER)
    set_names = list(rows[0].retrieval)
    pair_names = list(dict.fromkeys(name for row in rows for name in row.pairs))
    headers = ["model", "quality", "of teacher", *set_names, *pair_names]
    headers += ["parameters", "not embeddings", "MB", "documents/s", "queries/s"]
    lines = []
    for row in rows:
        lines.append(
            [
                row.label,
                row.quality,
                _percent(share_of(row, teacher)),
                *(row.retrieval[name]["ndcg@10"] for name in set_names),
                *(row.pairs.get(name) for name in pair_names),
                row.parameters,
                row.parameters_without_embeddings,
                None if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}",
                None if row.documents_per_second is None else round(row.documents_per_second),
                None if row.queries_per_second is None else round(row.queries_per_second),
            ]
        )
    return report.table(headers, lines)


def markdown(made: Benchmark, where: dict[str, Any], remarks: Sequence[str] = ()) -> str:
    """Return the whole report: the summary, then every metric on every set."""
    rows, teacher = list(made.rows.values()), made.rows.get(TEACHER)
    sizes = "; ".join(
        f"{each.name}: {len(each.queries):,} queries, {len(each.documents):,}" for each in made.sets
    )
    averaged = ", ".join(metrics.independent_sets(each.name for each in made.sets))
    parts = [
        "# Benchmark",
        f"Quality is nDCG@10, the mean over {averaged}. Sets: {sizes} documents.",
        summary_table(made),
        f"Speed on {where['device']}, {where['processor']}, {where['threads']} threads: a fixed "
        f"sample, tokenising included, median of {speed.REPEATS}.",
    ]
    if made.pairs:
        kinds = (
            f"{each.name}: {'Spearman' if each.graded else 'average precision'}"
            for each in made.pairs
        )
        parts.append(f"Sentence pairs: {'; '.join(kinds)}.")
    notes = [f"- {remark}" for remark in remarks]
    notes += [f"- {row.label}: {row.note}" for row in rows if row.note]
    for row in rows:
        for role, prompt in row.prompts.items():
            notes.append(f"- {row.label}: the prompt of a {role} is {prompt!r}")
    if notes:
        parts.append("\n".join(notes))
    parts += _new_words_section(rows, teacher)
    if teacher is not None:
        parts.append(AGREEMENT)
    for each in made.sets:
        parts += _set_section(each, rows, teacher)
    return "\n\n".join(parts) + "\n"


def _new_words_section(rows: Sequence[Row], teacher: Row | None) -> list[str]:
    sets = rows[0].by_words
    if not sets:
        return []
    counts = (
        f"{name}: {parts['new']['queries']:,} of "
        f"{sum(part['queries'] for part in parts.values()):,}"
        for name, parts in sets.items()
    )
    remark = (
        "Queries with a new word, one that no training text holds, beside the others "
        f"({'; '.join(counts)}): shares of the teacher's nDCG@10 on the same queries, the first "
        "two over all sets."
    )
    chosen = [list(sets), *([name] for name in sets)]
    prefixes = ["", *(f"{name}: " for name in sets)]
    headers = [f"{prefix}{kind}" for prefix in prefixes for kind in new_words.KINDS]
    lines = [
        [
            row.label,
            *(
                _percent(share)
                for names in chosen
                for share in share_by_words(row, teacher, names).values()
            ),
        ]
        for row in rows
    ]
    return ["## New words", remark, report.table(["model", *headers], lines)]


def _set_section(each: RetrievalSet, rows: Sequence[Row], teacher: Row | None) -> list[str]:
    graded = (
        "nDCG's gains are the judged grades, linear as trec_eval's; MAP, recall and MRR take "
        "them as yes or no."
    )
    remarks = [graded if each.graded else "Relevance is yes or no."]
    for name, meaning in REMARKS.items():
        if number := each.counts.get(name, 0):
            remarks.append(f"{number:,} {meaning}.")
    headers = ["model", *metrics.METRICS, "of teacher", "teacher's first ten"]
    lines = [
        [
            row.label,
            *(row.retrieval[each.name][metric] for metric in metrics.METRICS),
            _percent(share_of(row, teacher, each.name)),
            _percent(row.agreement.get(each.name)),
        ]
        for row in rows
    ]
    return [f"## {each.name}", " ".join(remarks), report.table(headers, lines)]


def read(folder: Path) -> Any:  # noqa: ANN401  JSON
    """Read a benchmark's results back.

    Raises:
        UserError: they are not there, or broken.
    """
    return storage.read_json(folder / "results.json", "run: python benchmark_hotpotqa.py")


def record(row: Row, teacher: Row | None) -> dict[str, Any]:
    """Return a row as results.json holds it."""
    return vars(row) | {
        "quality": row.quality,
        "share_of_teacher": share_of(row, teacher),
        "shares_of_teacher": {name: share_of(row, teacher, name) for name in row.retrieval},
        "share_by_words": share_by_words(row, teacher, list(row.by_words)),
        "shares_by_words": {name: share_by_words(row, teacher, [name]) for name in row.by_words},
    }


def share_of(row: Row, teacher: Row | None, set_name: str | None = None) -> float | None:
    """Return a row's nDCG@10 as a share of the teacher's: of one set, or of the quality."""
    if teacher is None:
        return None
    ours, theirs = (
        each.quality if set_name is None else each.retrieval[set_name]["ndcg@10"]
        for each in (row, teacher)
    )
    return ours / theirs if theirs and ours is not None else None


def share_by_words(
    row: Row, teacher: Row | None, set_names: Sequence[str]
) -> dict[str, float | None]:
    """Return what a row keeps of the teacher's nDCG@10 by `new_words.KINDS` of queries.

    Over several sets it is the share of the two means, as of the quality; a set without a query of
    that kind counts for neither. None where there is no such query at all, or no teacher.
    """
    shares: dict[str, float | None] = {}
    for kind in new_words.KINDS if set_names else ():
        ours, theirs = (
            [
                figure
                for name in metrics.independent_sets(set_names)
                if (figure := each.by_words[name][kind]["ndcg@10"]) is not None
            ]
            for each in (row, teacher or row)
        )
        known = teacher is not None and any(theirs)
        shares[kind] = statistics.mean(ours) / statistics.mean(theirs) if known else None
    return shares


def plot(rows: Sequence[Row], path: Path, where: dict[str, Any]) -> None:
    """Draw quality against documents per second; rows without a speed become level lines."""
    charts.save_points(
        path,
        [(r.label, r.documents_per_second, r.quality) for r in rows if r.documents_per_second],
        f"documents per second ({where['device']}, {where['threads']} threads)",
        "mean nDCG@10",
        [(row.label, row.quality) for row in rows if not row.documents_per_second],
    )


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"
