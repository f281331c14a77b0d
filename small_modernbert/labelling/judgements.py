"""What a judge made of pairs: added up over shards, tabled, and told by examples."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from small_modernbert.data import offline_assets, triplets
from small_modernbert.labelling.judges import Judge
from small_modernbert.runs import report, storage

logger = logging.getLogger(__name__)
# What becomes of a row: it has one of these outcomes, and the first two are written.
OUTCOMES = ("kept", "swapped", "dropped", "inconsistent", "no negative left")
WRITTEN = OUTCOMES[:2]
# What became of single negatives, and how often the judge agreed with the label as it came.
DETAILS = ("given wrong", "mined", "mined wrong", "with negatives", "judge agreed")
# What the refused text of an example is.
REFUSED = {
    "kept": "refused as a negative",
    "swapped": "the positive, as it came",
    "dropped": "the negative that won",
    "inconsistent": "the nearest text of the pool, by the miner",
    "no negative left": "refused as a negative",
}
# A judge that puts so few labels in their order, of so many rows, is no better than a coin there.
DOUBTFUL_AGREEMENT, DOUBTFUL_ROWS = 0.6, 20

Counts = dict[str, dict[str, int]]


def merge(facts: Iterable[dict[str, Any]], examples: int) -> dict[str, Any]:
    """Add up the facts of shards: counts by source, and the first examples of every kind."""
    counts: dict[str, Counter[str]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for shard in facts:
        for source, counter in shard["counts"].items():
            counts.setdefault(source, Counter()).update(counter)
        for example in shard["examples"]:
            kind = (example["outcome"], example["source"])
            seen[kind] += 1
            if seen[kind] <= examples:
                kept.append(example)
    return {
        "counts": {source: dict(counter) for source, counter in counts.items()},
        "examples": kept,
    }


def agreement(counts: dict[str, dict[str, int]]) -> float | None:
    """Return the share of rows with own negatives that the judge had in the labels' order."""
    rows = sum(row.get("with negatives", 0) for row in counts.values())
    agreed = sum(row.get("judge agreed", 0) for row in counts.values())
    return agreed / rows if rows else None


def doubts(counts: Counts) -> list[str]:
    """Name the sources whose labels the judge hardly agrees with, one line each."""
    return [
        f"{source}: the judge agrees with {agreement({source: row}):.0%} of {asked:,} labels, "
        "little more than a coin would; what it swapped and dropped there is noise: leave the "
        "source out (--sources), or take another judge"
        for source, row in counts.items()
        if (asked := row.get("with negatives", 0)) >= DOUBTFUL_ROWS
        and agreement({source: row}) < DOUBTFUL_AGREEMENT
    ]


def table(counts: Counts) -> str:
    """Return what became of rows and negatives, by source, and the judge's agreement."""
    names = [*OUTCOMES, *DETAILS]
    lines = [
        [source, *(row.get(name, 0) for name in names), agreement({source: row})]
        for source, row in counts.items()
    ]
    total = [sum(row.get(name, 0) for row in counts.values()) for name in names]
    return report.table(
        ["source", *names, "agreement"], [*lines, ["all", *total, agreement(counts)]]
    )


def conclude(
    folder: Path,
    shards: Mapping[str, int],
    judge: Judge,
    miner: str,
    read: Mapping[str, Any],
    examples: int,
) -> dict[str, Any]:
    """Write triplets.json and examples.md beside the shards, and say what came out.

    Args:
        folder: with all the shards.
        shards: split -> number of them.
        judge: who scored.
        miner: who mined.
        read: source -> rows read and cleaned away.
        examples: of every outcome and source, at most.

    Returns:
        The counts by source.
    """
    paths = (
        triplets.shard_path(folder, split, index)
        for split, number in shards.items()
        for index in range(number)
    )
    merged = merge(map(triplets.read_facts, paths), examples)
    counts = merged["counts"]
    cleaned = offline_assets.counts_table(read)
    heading = f"Judge {judge.name}, scores: {judge.scale}; miner {miner}."
    storage.write_text(folder / "examples.md", markdown(heading, cleaned, merged))
    facts = {"judge": judge.name, "scale": judge.scale, "read": read, "judged": counts}
    triplets.write_index(folder, shards, facts)
    for line in (*cleaned.splitlines(), *table(counts).splitlines()):
        logger.info("%s", line)
    for doubt in doubts(counts):
        logger.warning("%s", doubt)
    return counts


def markdown(heading: str, read: str, merged: dict[str, Any]) -> str:
    """Return the report: tables and, by outcome, examples.

    Args:
        heading: who judged.
        read: the table of rows read and cleaned away.
        merged: from `merge`.
    """
    parts = [
        f"# Relabelled triplets\n\n{heading}",
        f"Rows read and cleaned:\n\n{read}",
        "Rows judged (kept to no negative left), their negatives (given wrong to mined wrong), "
        f"and how far the judge agreed with the labels as they came:\n\n{table(merged['counts'])}",
        *doubts(merged["counts"]),
    ]
    for outcome in OUTCOMES:
        examples = [each for each in merged["examples"] if each["outcome"] == outcome]
        if examples:
            parts.append(f"## {outcome.capitalize()}")
            parts += [describe(example) for example in examples]
    return "\n\n".join(parts) + "\n"


def describe(example: dict[str, Any]) -> str:
    """Return an example as a Markdown list."""

    def scored(text: str, score: float | None) -> str:
        return text if score is None else f"{score:.3f} {text}"

    lines = [f"- {example['source']}: {example['anchor']}"]
    lines.append(f"  - positive: {scored(example['positive'], example['score'])}")
    lines += [f"  - negative: {scored(text, score)}" for text, score in example["negatives"]]
    if example["refused"]:
        lines.append(f"  - {REFUSED[example['outcome']]}: {scored(*example['refused'])}")
    return "\n".join(lines)
