"""The card of an export: its student's, with the forms, the check of readers, the benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from small_modernbert.evaluation import benchmark_report
from small_modernbert.export import golden_vectors, onnx_export
from small_modernbert.models import card_examples, model_card
from small_modernbert.models.model_card import Added
from small_modernbert.models.students import Student
from small_modernbert.runs import ancestry, lineage, report, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage

OWN, OTHERS = "this model", ("teacher", "BM25")  # rows of a benchmark that a card shows
SMALLER = """Documents stored so, queries in full: `quantize_embeddings` of sentence-transformers, a
byte by the range of the documents in its dimension, a bit as -1 or 1."""
CHECK = f"""`{golden_vectors.FILE}` holds texts of rising length and their vectors. One line asks a
server, or a loader, whether it gives them:

```sh
python -m small_modernbert.export.golden_vectors . http://127.0.0.1:8080/v1/embeddings
```"""

IN_BROWSER = """`browser/` is a page that searches with this model, without a network: serve this
folder, and open http://127.0.0.1:8000/browser/

```sh
python -m http.server 8000 --bind 127.0.0.1
```"""


def write(
    stage: Stage,
    student: Student,
    folder: Path,
    forms: str,
    *,
    licence: str = "",
    language: Sequence[str] = (),
    compact: str = "",
    browser: bool = False,
) -> None:
    """Write README.md of an export.

    A student of ours is told by the records of its stages. One of somebody else's keeps its own
    card, and gets the sections on the export at its end.

    Args:
        stage: of the export.
        student: as it was exported.
        folder: where it came from.
        forms: a table of what was exported.
        licence: as the hub spells it; "" = as its origins say.
        language: likewise.
        compact: a table of what smaller vectors lose, if that was measured.
        browser: whether the page for a browser lies beside it.
    """
    sections = [
        ("With ONNX", card_examples.with_onnx(student, onnx_export.GRAPH)),
        ("Forms", forms),
        ("Is it read rightly?", CHECK),
        *([("In a browser", IN_BROWSER)] if browser else []),
        *([("Smaller vectors", f"{compact}\n\n{SMALLER}")] if compact else []),
    ]
    path, own = stage.building / "README.md", folder / "README.md"
    behind = ancestry.stage_of(folder)
    if behind is None and own.is_file():
        written = own.read_text(encoding="utf-8").rstrip()
        parts = [written, *(f"## {heading}\n\n{text}" for heading, text in sections)]
        storage.write_text(path, "\n\n".join(parts) + "\n")
        return
    record = stage.record.to_json() if behind is None else behind.record
    results, table = _benchmark(stage.folder_of_recipe, record)
    sections.append(("Benchmark", table))
    added = Added("", licence, language, results, sections)
    storage.write_text(path, model_card.make(record, stage.folder_of_recipe.name, student, added))


def find_row(recipe: Path, digest: str | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a model's row of a benchmark of its recipe, and the whole results; None if unmeasured.

    Args:
        recipe: its folder.
        digest: of the model, as its own stage recorded it.
    """
    for path in sorted(recipe.glob("benchmark_hotpotqa*/run.json")):
        try:
            record = lineage.read_record(path, "")
            if record is None or record["status"] != "finished":
                continue
            results = benchmark_report.read(path.parent / "final")
        except UserError:  # no benchmark that can be read
            continue
        for name, entry in record["inputs"].items():
            label = name.removeprefix("model ")
            rows = [row for row in results["rows"] if row["label"] == label]
            if name.startswith("model ") and digest and entry["digest"] == digest and rows:
                return rows[0], results
    return None


def _benchmark(recipe: Path, record: Mapping[str, Any]) -> tuple[list[EvalResult], str]:
    """Return the results of this very model for the front matter, and a table with its peers."""
    measured = find_row(recipe, record.get("output_digest"))
    if measured is None:
        return [], ""
    row, results = measured
    found = [
        model_card.evaluation(name, "_ndcg@10", figures["ndcg@10"])
        for name, figures in row["retrieval"].items()
    ]
    own = row["label"]
    mixed = (f"{own} > ", f"{own} + ")  # its queries over another's documents; with BM25
    beside = [each for each in results["rows"] if each["label"].startswith(mixed)]
    beside += [each for each in results["rows"] if each["label"] in OTHERS]
    lines = [
        [
            each["label"] if each["label"] in OTHERS else each["label"].replace(own, OWN, 1),
            *(each["retrieval"][name]["ndcg@10"] for name in row["retrieval"]),
            each["parameters"],
            each["documents_per_second"] and round(each["documents_per_second"]),
        ]
        for each in (row, *beside)
    ]
    sets = [f"{name}, nDCG@10" for name in row["retrieval"]]
    text = report.table(["model", *sets, "parameters", "documents/s"], lines)
    machine = results["machine"]
    counts = "; ".join(
        f"{name}: {each['queries']:,} queries, {each['documents']:,} documents"
        for name, each in results["sets"].items()
    )
    speed = f"Speed on {machine['processor']}, {machine['threads']} threads."
    return found, f"{text}\n\n{counts}. {speed}"
