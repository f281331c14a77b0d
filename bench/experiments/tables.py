"""docs/EXPERIMENTS.md and its plot, out of the record of finished rows."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rows import DEPTH, PEERS, SEEDS, Row

from small_modernbert.runs import report, storage

SELECTION, REPORTED = ("squad", "wiki-descriptions"), ("sciq", "boolq")
LOWEST = 75  # per cent that the plot shows
TEACHER, STUDENT = "teacher", "our student after make run"
# Rows of the record that rows.py has no more.
PAST = """A Dense layer on top, fitted to 4,000 labels by ridge regression before the first step, in
place of the teacher's PCA layer. It was the default until 2026-11-26, and its code is gone."""
NO_ROWS = """MarginMSE on a judge's logits against their sigmoid: no neural cross-encoder can be had
without a hub, and a bi-encoder judge gives cosines, of which there is no logit."""
PLOT = f"""![Quality on the selection sets and speed: ours, peers, layers, units](experiments.png)

Rows below {LOWEST} % are in the tables alone.
"""
HEADERS = (
    "row", "SQuAD", "descriptions", "of the teacher's", "SciQ", "BoolQ", "of the teacher's ",
    "MRPC", "documents/s", "without embeddings", "start, s", "training, s", "steps",
)  # fmt: skip
INTRODUCTION = """# Experiments

Written by `python bench/experiments/run.py` out of docs/experiments.jsonl; `--tables-only` writes
it anew without running a row.

A row is one set of flags to the ordinary scripts (bench/experiments/rows.py), or a peer as its own
documentation writes it (bench/experiments/peers.py). All of them have the labels of a `make run`
(27,000 texts, all-MiniLM-L6-v2 after its PCA layer, 256 wide) and {budget:.0f} processor seconds of
training on one thread, a seventh of what `make run` gives its best student: what a row shows is how
fast a recipe learns, not where it ends. What a start takes (the fit of a table) stands beside them.
Our texts are tokenised before, the peers' in their steps: three or four seconds for what a row
sees. How many steps the budget buys is told by the row before of the same shape, so the column of
seconds says what a row really took. Differences below the seeds' spread are none. A *long decay*
(over 95 % of the steps) and a *frozen table* are what the recipes have had since 2026-11-26; other
rows of ours decay over half of the steps and train the table, and compare with one another. A
student after a whole run has that run's own labels: the same teacher's, of more texts.

**Defaults are chosen on the first two sets alone**; SciQ and BoolQ are reported. All four are drawn
documents with the queries that they answer (400 documents of SQuAD and of Wikipedia's descriptions,
250 of SciQ and BoolQ, drawn once), so figures are higher than those of whole sets in README.md.
nDCG@10; shares are of the mean over two sets. *documents/s* is in times of the teacher's, by the
processor's seconds, in fp32 with padding: by turns with the teacher on the same documents, and in
rows of 2026-11-25 (whose record has no `code`, the commit that made a row) over 1,300 documents,
each model in a run of its own. Trained in bf16.

The layer reduction keeps layers 0, 2 and 4 of the teacher with the PCA layer that made the labels,
as its example does (every second layer, MSELoss, batches of 64 at 1e-4, bf16, no sorting by
length). tokenlearn's training is model2vec's StaticModelForSimilarity now. awembed 0.1.1 trains on
margins of questions against directories, and takes no vectors as labels: it has no row.
"""


def write(folder: Path, record: Sequence[dict[str, Any]], rows: Sequence[Row]) -> None:
    """Write EXPERIMENTS.md, and experiments.png once there is a teacher to compare with."""
    lines = {line["name"]: line for line in record}
    known = [row for row in rows if row.name in lines]
    if TEACHER not in lines:
        return
    teacher = lines[TEACHER]
    budget = teacher["flags"]["seconds"]
    parts = [INTRODUCTION.format(budget=budget), PLOT]
    past = [line for name, line in lines.items() if name not in {row.name for row in rows}]
    for question in dict.fromkeys(row.question for row in known):
        here = [row for row in known if row.question == question]
        cells = [_cells(lines[row.name], teacher) for row in here]
        parts.append(f"## {question}\n\n{report.table(HEADERS, cells)}\n")
        notes = [f"- *{row.name}*: {row.note}." for row in here if row.note]
        parts += ["\n".join(notes) + "\n"] if notes else []
        if question == SEEDS:
            parts.append(_spread([lines[row.name] for row in known] + past, teacher))
    if past:
        cells = [_cells(line, teacher) for line in past]
        parts.append(f"## Earlier rows\n\n{PAST}\n\n{report.table(HEADERS, cells)}\n")
    parts.append(_new_words([lines[row.name] for row in known], teacher))
    if STUDENT in lines:
        parts.append(_with_words(lines[STUDENT], teacher))
    missing = "".join(f"{row.name}.\n\n" for row in rows if row.name not in lines)
    parts.append(f"## Not run\n\n{missing}{NO_ROWS}\n")
    storage.write_text(folder / "EXPERIMENTS.md", "\n".join(parts))
    # Rows that differ in little would be written over one another.
    drawn = [lines[row.name] for row in known if row.question in (PEERS, DEPTH)]
    _plot(drawn, teacher, folder / "experiments.png")


def share(line: dict[str, Any], teacher: dict[str, Any], sets: Sequence[str]) -> float:
    """Return a row's mean nDCG@10 over some sets, as a share of the teacher's."""
    means = [mean(each["retrieval"][name] for name in sets) for each in (line, teacher)]
    return means[0] / means[1]


def _cells(line: dict[str, Any], teacher: dict[str, Any]) -> list[Any]:
    figures = line["retrieval"]
    return [
        line["name"],
        *(f"{figures[name]:.4f}" for name in SELECTION),
        f"**{100 * share(line, teacher, SELECTION):.1f} %**",
        *(f"{figures[name]:.4f}" for name in REPORTED),
        f"{100 * share(line, teacher, REPORTED):.1f} %",
        f"{line['mrpc']:.4f}",
        f"{line['pace']:.2f}",
        f"{line['parameters_without_embeddings'] / 1e6:.1f} M",
        f"{line['start_seconds']:.0f}" if line.get("start_seconds") else "–",
        f"{_training(line):.0f}" if _training(line) else "–",
        f"{line['steps']:,}" if line.get("steps") else "–",
    ]


def _training(line: dict[str, Any]) -> float:
    return line.get("seconds", 0.0) + line.get("language_seconds", 0.0)


def _spread(lines: Sequence[dict[str, Any]], teacher: dict[str, Any]) -> str:
    """Say what seeds do to rows that have the same flags but for them."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        flags = {name: value for name, value in line["flags"].items() if name != "seed"}
        alike.setdefault(storage.digest_json(flags), []).append(line)
    cells = []
    for group in alike.values():
        if len({line["seed"] for line in group}) > 1:
            for title, sets in (("selection", SELECTION), ("reported", REPORTED)):
                shares = [100 * share(line, teacher, sets) for line in group]
                span = f"{min(shares):.1f} to {max(shares):.1f} %"
                cells.append([group[0]["name"], title, len(group), f"{mean(shares):.1f} %", span])
    return report.table(("row", "sets", "seeds", "mean", "from, to"), cells) + "\n"


def _new_words(lines: Sequence[dict[str, Any]], teacher: dict[str, Any]) -> str:
    """Say how much is kept where a query has a word that no training text holds."""
    if "new_words" not in teacher:
        return ""
    cells, numbers = [], {}
    for line in lines:
        if "new_words" not in line:
            continue
        cells.append([line["name"]])
        for sets in (SELECTION, REPORTED):
            for kind in ("new_words", "known_words"):
                ours, theirs = (_over_queries(each[kind], sets) for each in (line, teacher))
                numbers[kind, sets] = sum(int(teacher[kind][name][1]) for name in sets)
                cells[-1].append(f"{100 * ours / theirs:.1f} %")
    headers = ["row"]
    for sets, title in ((SELECTION, "selection"), (REPORTED, "reported")):
        for kind, words in (("new_words", "a new word"), ("known_words", "none")):
            headers.append(f"{title}, {words} ({numbers[kind, sets]} queries)")
    return (
        "## Words that no training text holds\n\nShares of the teacher's nDCG@10, over the queries "
        "that have a word of letters that no labelled text holds, and over the others. Rows before "
        "this was measured are not here.\n\n" + report.table(headers, cells) + "\n"
    )


def _over_queries(figures: dict[str, list[float]], sets: Sequence[str]) -> float:
    """Return the mean over the queries of some sets, out of each set's mean and number."""
    total = sum(figures[name][1] for name in sets)
    return sum(figures[name][0] * figures[name][1] for name in sets) / total if total else 0.0


def _with_words(student: dict[str, Any], teacher: dict[str, Any]) -> str:
    """Say how much BM25 should weigh beside the student of `make run`, and beside the teacher."""
    cells = []
    for weight, figures in student["with_bm25"].items():
        mixed = [{"retrieval": line["with_bm25"][weight]} for line in (student, teacher)]
        shares = [
            f"{100 * share(line, teacher, sets):.1f} %"
            for line in mixed
            for sets in (SELECTION, REPORTED)
        ]
        cells.append([weight, *(f"{figures[name]:.4f}" for name in SELECTION), *shares])
    headers = (
        "weight of BM25", "SQuAD", "descriptions", "student, selection", "student, reported",
        "teacher, selection", "teacher, reported",
    )  # fmt: skip
    return (
        "## BM25 beside a model\n\nThe student of `make run`; scores of each side scaled to 0 to 1 "
        "over its best hundred, shares of the teacher alone. 0 is the model, 1 is BM25.\n\n"
        + report.table(headers, cells)
        + "\n"
    )


def _plot(lines: Sequence[dict[str, Any]], teacher: dict[str, Any], path: Path) -> None:
    """Draw the shares on the selection sets against speed, labelled at the points."""
    from small_modernbert.evaluation import charts

    shares = [(line, 100 * share(line, teacher, SELECTION)) for line in lines]
    points = [(line["name"], line["pace"], kept) for line, kept in shares if kept >= LOWEST]
    across, up = "documents per second, times the teacher's", "nDCG@10, % of the teacher's"
    charts.save_points(path, points, across, up, size=(9, 0.2 * len(points) + 0.8))
