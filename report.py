"""Show a run as one page: pipeline, curves, quality against speed, texts, neighbours, settings.

Reads:  runs/<recipe>/: the records, metrics and results of its stages, held-out labels, a student
Writes: runs/<recipe>/report.html, one file that needs no network; written anew each time

    python report.py
    python report.py --recipe mine --student distil_modernbert
    python report.py --own-texts asked.txt
"""

import random
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
OWN_TEXTS: str = ""  # texts or questions of yours (a file or folder), to be asked for among them

# Output
OPEN: bool = False  # in the browser, when it is written
SEED: int = 42  # draws the texts, and turns the map


def main() -> None:
    """Read the stages, compare student and teacher, write the page."""
    if TEXTS < 0:
        raise UserError(f"TEXTS is {TEXTS}; at least 0: --texts 600")
    own = find_own() if OWN_TEXTS else None
    folder = references.runs_folder() / RECIPE
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; run: make run, or name a run: --recipe NAME")
    from small_modernbert.reporting import page, run_folder

    stages = run_folder.read_stages(folder)
    neighbours, maps = compare(stages, own) if TEXTS else (None, [])
    path = folder / "report.html"
    storage.write_text(path, page.render(RECIPE, stages, neighbours, maps))
    print(f"report: {path}")
    if OPEN:
        import webbrowser

        webbrowser.open(path.as_uri())


def compare(
    stages: "list[StageRun]", own: Path | None
) -> "tuple[dict[str, Any] | None, list[dict[str, str]]]":
    """Compare the student with its teacher on texts; nothing where one of them is missing.

    Args:
        stages: of the run.
        own: the user's texts; None to ask for held-out ones.

    Raises:
        UserError: STUDENT is named and not there, or OWN_TEXTS cannot be compared.
    """
    from small_modernbert.evaluation import charts
    from small_modernbert.reporting import page

    student = find_student()
    labelled = next((stage for stage in stages if stage.name == LABELS and stage.finished), None)
    if student is None or labelled is None:
        if own:
            raise UserError(
                f"OWN_TEXTS: {RECIPE} has no finished student and {LABELS} to compare on them; "
                "run: make run, or name the run that has: --recipe NAME"
            )
        return None, []
    from small_modernbert.reporting import neighbours

    sample = neighbours.read_sample(labelled.final, student, TEXTS, SEED)
    if own:
        sample = neighbours.add_own(sample, read_own(own), student, find_teacher(labelled))
    if len(sample.texts) < 2 * neighbours.DEPTH:
        return None, []
    shown = page.describe_neighbours(*neighbours.compare(sample), sample.asked)
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


def find_own() -> Path:
    """Return the file or folder of the user's texts.

    Raises:
        UserError: it is not there.
    """
    cure = "give a file of texts, a line each: --own-texts asked.txt"
    file = references.find_file(OWN_TEXTS, "OWN_TEXTS", cure)
    return file or references.need(OWN_TEXTS, RECIPE, "OWN_TEXTS", cure)


def read_own(place: Path) -> list[str]:
    """Return the user's texts; TEXTS of them, drawn, where there are more.

    Raises:
        UserError: there is none, or a file does not read.
    """
    from small_modernbert.data import evaluation_sets, file_rows

    files = file_rows.find_files(place, cure="give a file of texts, a line each")
    texts = evaluation_sets.read_texts([file.path for file in files])
    if len(texts) > TEXTS:
        print(f"{TEXTS:,} of your {len(texts):,} texts (--texts)")
        texts = random.Random(SEED).sample(texts, TEXTS)
    return texts


def find_teacher(labelled: "StageRun") -> Path:
    """Return the folder of the teacher whose labels a stage made.

    Raises:
        UserError: it is not to be had.
    """
    from small_modernbert.models import encoders

    teacher = labelled.record["settings"]["TEACHER"]
    return references.locate(teacher, RECIPE) or encoders.fetch(teacher)


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
