"""The page of a run: one HTML file without a network, out of what the stages left on disk."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_modernbert.evaluation import charts
from small_modernbert.reporting.run_folder import StageRun
from small_modernbert.runs import report

if TYPE_CHECKING:
    import jinja2

TEMPLATE = Path(__file__).with_name("page.html.j2")
EXAMPLES, SHOWN_CHARACTERS = 2, 220  # of a source, and of a text
NEAR_CHARACTERS = 140  # of a text among neighbours
HIDDEN = ("output_files", "format")  # of a record: long, and of no use to a reader
Part = dict[str, Any]


def render(
    recipe: str, stages: Sequence[StageRun], neighbours: Part | None, maps: Sequence[Part]
) -> str:
    """Return the page as HTML.

    Args:
        recipe: its name.
        stages: see `read_stages`.
        neighbours: see `describe_neighbours`; None where there are none.
        maps: charts of the space, each with `svg` and `caption`.
    """
    results = read_results(stages)
    sections = [
        _quality(results),
        _curves(stages),
        _dimensions(stages),
        _data(stages),
        {"title": "The space", "text": "", "charts": list(maps), "tables": [], "examples": []},
    ]
    seconds = sum(stage.record.get("seconds") or 0 for stage in stages)
    unfinished = [stage.name for stage in stages if not stage.finished]
    summary = f"{len(stages)} stages, {report.minutes(seconds)} of work."
    if unfinished:
        summary += f" Not finished: {', '.join(unfinished)}."
    return _template().render(
        recipe=recipe,
        summary=summary,
        remarks=results.get("remarks", []),
        headline=_headline(results),
        levels=_levels(stages),
        sections=[each for each in sections if each and (each["charts"] or each["tables"])],
        neighbours=neighbours,
        folded=[_folded(stage) for stage in stages],
    )


def _template() -> "jinja2.Template":
    import jinja2
    import markupsafe

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    # A long name breaks behind an underscore rather than anywhere.
    environment.filters["breakable"] = lambda text: markupsafe.Markup("_<wbr>").join(
        markupsafe.escape(part) for part in str(text).split("_")
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def read_results(stages: Sequence[StageRun]) -> Part:
    """Return the results of the recipe's benchmark; empty where none has finished."""
    for stage in stages:
        path = stage.final / "results.json"
        if stage.name == "benchmark_hotpotqa" and stage.finished and path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def describe_neighbours(
    agreement: float, agree: Sequence[Any], differ: Sequence[Any], own: int = 0
) -> Part:
    """Return what the page shows of `neighbours.compare`.

    Args:
        agreement: share of the teacher's nearest that the student has, too.
        agree: texts of which that is most.
        differ: of which it is least.
        own: how many texts of the user were asked for; 0 where they are held-out ones.
    """
    asked = (
        f"Your texts ({own:,}), among held-out ones of the run."
        if own
        else "Held-out texts, which nobody trained on."
    )

    def shown(each: Any) -> Part:  # noqa: ANN401  Neighbours, whose module loads torch
        sides = {
            side: [
                (report.shorten(text, NEAR_CHARACTERS), cosine)
                for text, cosine in getattr(each, side)
            ]
            for side in ("teacher", "student")
        }
        return {
            "text": report.shorten(each.text, NEAR_CHARACTERS),
            "agreement": each.agreement,
            **sides,
        }

    return {
        "text": (
            f"{asked} Of the ten texts that the teacher finds nearest, the student finds "
            f"{100 * agreement:.0f} % among its ten."
        ),
        "groups": [
            {"title": title, "members": [shown(each) for each in members]}
            for title, members in (
                ("Where they agree most", agree),
                ("Where they differ most", differ),
            )
            if members
        ],
    }


def _headline(results: Part) -> list[Part]:
    rows = {row["label"]: row for row in results.get("rows", [])}
    teacher = rows.get("teacher")
    models = [row for row in rows.values() if row["parameters"] and "teacher" not in row["label"]]
    if not models or not teacher:
        return []
    student = models[0]
    figures = [("of the teacher's quality", _share(student))]
    if student["documents_per_second"] and teacher["documents_per_second"]:
        ratio = student["documents_per_second"] / teacher["documents_per_second"]
        figures.append(("× the teacher's documents a second", f"{ratio:.1f}"))
    if student["size_bytes"]:
        figures.append(("megabytes", f"{student['size_bytes'] / 1e6:.0f}"))
    if both := rows.get(f"{student['label']} + BM25"):
        figures.append(("of the teacher's, together with BM25", _share(both)))
    return [{"name": f"{student['label']}: {name}", "value": value} for name, value in figures]


def _share(row: Part) -> str:
    return f"{100 * (row['share_of_teacher'] or 0):.1f} %"


def _levels(stages: Sequence[StageRun]) -> list[list[Part]]:
    levels: dict[int, list[Part]] = collections.defaultdict(list)
    for stage in stages:
        levels[stage.depth].append(
            {
                "name": stage.name,
                "finished": stage.finished,
                "time": report.minutes(stage.record.get("seconds") or 0),
                "counts": _counts(stage),
                "lines": _changes(stage),
                "sources": stage.sources,
            }
        )
    return [levels[depth] for depth in sorted(levels)]


def _counts(stage: StageRun) -> str:
    rows, steps = stage.record.get("rows") or {}, stage.record.get("steps")
    parts = []
    if all(isinstance(value, dict) for value in rows.values()) and rows:
        kept = sum(value.get("kept", 0) for value in rows.values())
        parts.append(f"{kept:,} texts kept")
    elif isinstance(rows.get("train"), int):
        parts.append(f"{rows['train']:,} rows")
    if steps:
        parts.append(f"{steps:,} steps")
    if rate := stage.record.get("tokens_per_second"):
        parts.append(f"{rate:,.0f} tokens/s")
    return ", ".join(parts)


def _changes(stage: StageRun) -> list[str]:
    metrics = stage.record.get("metrics") or {}
    before, after = metrics.get("before"), metrics.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    quiet = ("mean_cosine", "effective_rank")
    names = [name for name in after if name in before and "/" not in name and name not in quiet]
    return [f"{name} {before[name]:.4f} → {after[name]:.4f}" for name in names[:3]]


def _quality(results: Part) -> Part | None:
    rows = results.get("rows") or []
    if not rows:
        return None
    where = results.get("machine", {})
    up = f"nDCG@10, mean of {', '.join(results['averaged'])}"
    return {
        "title": "Quality, speed, size",
        "text": f"Measured on {where.get('processor')}, {where.get('threads')} threads. "
        "Dotted lines are what has no speed of its own.",
        "charts": _quality_charts(rows, up),
        "tables": [_all_rows(rows), *_new_words(rows)],
        "examples": [],
    }


def _quality_charts(rows: Sequence[Part], up: str) -> list[Part]:
    """Return quality, whose axis is called `up`, against speed and against size."""
    timed = [row for row in rows if row["documents_per_second"]]
    levels = [(row["label"], row["quality"]) for row in rows if not row["documents_per_second"]]
    speed = charts.points(
        [(row["label"], row["documents_per_second"], row["quality"]) for row in timed],
        "documents a second",
        up,
        levels,
    )
    sized = [row for row in timed if row["size_bytes"]]
    size = charts.points(
        [(row["label"], row["size_bytes"] / 1e6, row["quality"]) for row in sized],
        "megabytes",
        up,
        levels,
        logarithmic=False,
    )
    return [
        {"svg": speed, "caption": "quality against speed"},
        {"svg": size, "caption": "quality against size on disk"},
    ]


def _all_rows(rows: Sequence[Part]) -> Part:
    sets = list(rows[0]["retrieval"])
    lines = [
        [
            row["label"],
            report.cell(row["quality"]),
            _share(row) if row["share_of_teacher"] else "–",
            *(report.cell(row["retrieval"][name]["ndcg@10"]) for name in sets),
            report.cell(row["documents_per_second"] and round(row["documents_per_second"])),
            report.cell(row["size_bytes"] and round(row["size_bytes"] / 1e6)),
        ]
        for row in rows
    ]
    headers = ["model", "quality", "of teacher", *sets, "documents/s", "MB"]
    return {"title": "All rows", "headers": headers, "rows": lines}


def _new_words(rows: Sequence[Part]) -> list[Part]:
    """Return the table of queries with a new word; none where the texts were not given."""
    split = [row for row in rows if row.get("share_by_words")]
    if not split:
        return []
    headers = ["model", "with a new word", "others"]
    lines = [
        [
            row["label"],
            *(
                "–" if kept is None else f"{100 * kept:.1f} %"
                for kept in row["share_by_words"].values()
            ),
        ]
        for row in split
    ]
    title = "Of the teacher's nDCG@10, on queries with a word that no training text holds"
    return [{"title": title, "headers": headers, "rows": lines}]


def _curves(stages: Sequence[StageRun]) -> Part:
    made: list[Part] = []
    for stage in stages:
        losses = [(row["step"], row["loss"]) for row in stage.metrics if _plain(row, "loss")]
        if len(losses) > 1:
            svg = charts.curves({"loss": tuple(zip(*losses, strict=True))}, "step", "loss")
            made.append({"svg": svg, "caption": f"{stage.name}: the loss, step by step"})
        watched: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
        for row in stage.metrics:
            for name in row:
                if name.endswith(("ndcg@10", "_cosine", "spearman", "precision")) and (
                    name != "mean_cosine" and _plain(row, name) and "/" not in name
                ):
                    watched[name].append((row["step"], row[name]))
        series = {name: tuple(zip(*rows, strict=True)) for name, rows in watched.items()}
        if any(len(xs) > 1 for xs, _ in series.values()):
            svg = charts.curves(series, "step", "figure")
            made.append({"svg": svg, "caption": f"{stage.name}: what was watched"})
    text = "Thin lines are single steps, thick ones their means." if made else ""
    return {"title": "Training", "text": text, "charts": made, "tables": [], "examples": []}


def _plain(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return isinstance(value, int | float) and value == value and "step" in row


def _dimensions(stages: Sequence[StageRun]) -> Part:
    made = []
    for stage in stages:
        path = stage.final / "dimensions.json"
        if not path.is_file():
            continue
        quality = json.loads(path.read_text(encoding="utf-8"))
        series: dict[str, tuple[list[float], list[float]]] = {}
        for when, by_dimension in quality.items():
            if not isinstance(by_dimension, dict):
                continue
            sizes = sorted(by_dimension, key=int)
            for name in by_dimension[sizes[0]] if sizes else []:
                values = [by_dimension[size][name] for size in sizes]
                series[f"{name}, {when}"] = ([int(size) for size in sizes], values)
        if series:
            svg = charts.curves(series, "numbers kept of a vector", "figure")
            made.append({"svg": svg, "caption": f"{stage.name}: quality against dimension"})
    return {"title": "Matryoshka", "text": "", "charts": made, "tables": [], "examples": []}


def _data(stages: Sequence[StageRun]) -> Part | None:
    corpus = next((stage for stage in stages if stage.name == "mlm/create_dataset"), None)
    if corpus is None or not corpus.finished:
        return None
    rows: dict[str, dict[str, int]] = corpus.record.get("rows") or {}
    total = collections.Counter[str]()
    for counts in rows.values():
        total.update(counts)
    reasons = [
        name
        for name in total
        if total[name] and name not in ("read", "extra chunks", "kept", "held out", "tokens")
    ]
    funnel = {"read and cut": total["read"] + total["extra chunks"]}
    funnel |= {name: total[name] for name in sorted(reasons, key=lambda name: -total[name])}
    funnel["kept"] = total["kept"]
    by_source, lengths = read_examples(corpus.final)
    table = [
        [source, *(report.cell(counts.get(name, 0)) for name in ("read", *reasons, "kept"))]
        for source, counts in rows.items()
    ]
    made = [
        {"svg": charts.bars(funnel, "texts"), "caption": "what became of the texts"},
    ]
    if lengths:
        svg = charts.histogram(lengths, "tokens of a text", "texts")
        made.append({"svg": svg, "caption": "how long the texts are"})
    return {
        "title": "Text",
        "text": "",
        "charts": made,
        "tables": [
            {"title": "By source", "headers": ["source", "read", *reasons, "kept"], "rows": table}
        ],
        "examples": [
            {"title": source, "texts": texts} for source, texts in sorted(by_source.items())
        ],
    }


def read_examples(folder: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Return the first texts of each source of a corpus, and its texts' lengths in tokens."""
    from small_modernbert.data import corpus

    opened = corpus.open_corpus(folder)
    by_source: dict[str, list[str]] = {}
    lengths: list[int] = []
    for batch in opened.batches("train", ["text", "source", "tokens"]):
        lengths += batch.column("tokens").to_pylist()
        for text, source in zip(
            batch.column("text").to_pylist(), batch.column("source").to_pylist(), strict=True
        ):
            texts = by_source.setdefault(source, [])
            if len(texts) < EXAMPLES:
                texts.append(report.shorten(text, SHOWN_CHARACTERS))
    return by_source, lengths


def _folded(stage: StageRun) -> Part:
    shown = {name: value for name, value in stage.record.items() if name not in HIDDEN}
    return {
        "name": stage.name,
        "status": stage.record.get("status", "unknown"),
        "record": json.dumps(shown, indent=1, ensure_ascii=False),
    }
