"""Show a run as one page: pipeline, curves, quality against speed, texts, neighbours, settings.

Reads:  runs/<recipe>/: the records, metrics and results of its stages, held-out labels, a student
Writes: runs/<recipe>/report.html, one file that needs no network; written anew each time

    python report.py
    python report.py --recipe mine --student distil_modernbert
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from small_modernbert.runs import references, settings, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.reporting.run_folder import StageRun

# Inputs
RECIPE: str = "offline"  # the run to show: a folder of runs/
STUDENT: str = ""  # whose neighbours are shown: a stage; "" is the last one that makes a student
LABELS: str = "create_distil_dataset"  # the teacher's vectors of held-out texts

# Neighbours and map
TEXTS: int = 600  # held-out texts that the student reads; 0 leaves both out

# Output
OPEN: bool = False  # in the browser, when it is written
SEED: int = 42  # draws the texts, and turns the map


def main() -> None:
    """Read the stages, compare student and teacher, write the page."""
    if TEXTS < 0:
        raise UserError(f"TEXTS is {TEXTS}; at least 0: --texts 600")
    folder = references.runs_folder() / RECIPE
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; run: make run, or name a run: --recipe NAME")
    from small_modernbert.reporting import page, run_folder

    stages = run_folder.read_stages(folder)
    neighbours, maps = compare(stages) if TEXTS else (None, [])
    path = folder / "report.html"
    storage.write_text(path, page.render(RECIPE, stages, neighbours, maps))
    print(f"report: {path}")
    if OPEN:
        import webbrowser

        webbrowser.open(path.as_uri())


def compare(stages: "list[StageRun]") -> "tuple[dict[str, Any] | None, list[dict[str, str]]]":
    """Compare the student with its teacher on held-out texts; nothing where one is missing.

    Raises:
        UserError: STUDENT is named and not there.
    """
    from small_modernbert.evaluation import charts
    from small_modernbert.reporting import page

    student = find_student()
    labelled = next((stage for stage in stages if stage.name == LABELS and stage.finished), None)
    if student is None or labelled is None:
        return None, []
    from small_modernbert.reporting import neighbours

    sample = neighbours.read_sample(labelled.final, student, TEXTS, SEED)
    if len(sample.texts) < 2 * neighbours.DEPTH:
        return None, []
    shown = page.describe_neighbours(*neighbours.compare(sample))
    long = [len(text) > page.SHOWN_CHARACTERS for text in sample.texts]
    groups = [
        role if role != "text" else ("passage" if is_long else "short text")
        for role, is_long in zip(sample.roles, long, strict=True)
    ]
    maps = [
        {
            "svg": charts.scatter_map(neighbours.flatten(vectors, SEED), groups),
            "caption": f"held-out texts as the {who} places them (t-SNE)",
        }
        for who, vectors in (("teacher", sample.teacher), ("student", sample.student))
    ]
    return shown, maps


def find_student() -> Path | None:
    """Return the folder of the student whose neighbours are shown; None where there is none."""
    if STUDENT:
        return references.need(STUDENT, RECIPE, "STUDENT", "name a stage that has finished")
    try:
        return Path(references.find_result("", RECIPE))
    except UserError:
        return None


if __name__ == "__main__":
    settings.run(globals())
