"""Evaluate models by mteb: its own tasks where the hub can be reached, and sets on this disk.

Reads:  models (earlier stages, folders or hub ids); mteb's tasks and benchmarks by name, retrieval
        sets of a folder, files of sentence pairs
Writes: runs/<recipe>/benchmark_mteb/final/ with results.md and results/, mteb's own JSON files

    python benchmark_mteb.py
    python benchmark_mteb.py --models student=distil_modernbert --tasks NanoBEIR STSBenchmark
    python benchmark_mteb.py --recipe offline --retrieval-folder assets/retrieval \
        --tasks sciq boolq assets/sentence_pairs/mrpc.parquet

mteb searches and scores; texts are encoded as everywhere here, each behind the prompt of its role.
A run that was interrupted does no finished task again. Needs: pip install -r requirements-mteb.txt
"""

import importlib.util
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from small_modernbert.runs import references, settings, stages, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

# Models: a stage of the recipe (distil_modernbert, distil_modernbert@random), a folder, or a hub id
# (owner/name, owner/name@revision). `label=reference` names the column.
MODELS: list[str] = [
    "sts_fine_tuning",
    "teacher=Alibaba-NLP/gte-modernbert-base@e7f32e3c00f91d699e8c43b53106206bcc72bb22",
]  # columns, as label=reference
QUERY_PROMPT: str = ""  # for models whose folder names none (E5, BGE, DenseOn: "query: ")
DOCUMENT_PROMPT: str = ""  # likewise (E5: "passage: ", DenseOn: "document: ")

# Data
TASKS: list[str] = [
    "NanoBEIR",
    "STSBenchmark",
]  # sets of RETRIEVAL_FOLDER, files of sentence pairs, tasks or benchmarks of mteb
RETRIEVAL_FOLDER: str = ""  # in NanoBEIR's or BEIR's layout, looked into before mteb
LANGUAGE: str = "eng-Latn"  # of the sets on this disk, as mteb spells it
MAX_QUERIES: int = 0  # the first of each set on this disk, over all its documents; 0 for all

# Run
RECIPE: str = "small_v2"  # runs/<recipe>/ is where it reads and writes
VARIANT: str = ""  # a folder of its own beside another run of this script
OVERWRITE: bool = False  # redo a finished run


def main() -> None:
    """Run each task on each model, the finished ones not again, and write the table."""
    models, inputs = find_inputs()
    with stages.Stage(globals(), inputs=inputs) as stage:
        if stage.finished:
            print((stage.final / "results.md").read_text(encoding="utf-8"))
            return
        from small_modernbert.runs import report

        tasks = load_tasks(inputs)
        scores = run_tasks(models, tasks, stage.building)
        rows = [
            [task.metadata.name, task.metadata.main_score, *scores[task.metadata.name].values()]
            for task in tasks
        ]
        if len(rows) > 1:
            means = (
                statistics.mean(row[place] for row in rows) for place in range(2, len(rows[0]))
            )
            rows.append(["mean", "", *means])
        table = report.table(["task", "score", *models], rows)
        storage.write_text(stage.building / "results.md", table + "\n")
        stage.record.metrics = scores
        stage.finish(f"{len(models)} models on {len(tasks)} tasks")
        print(table)


def find_inputs() -> tuple[dict[str, Path | str], dict[str, Path | str]]:
    """Resolve every reference before anything is loaded: models by label, and the stage's inputs.

    Raises:
        UserError: mteb is not installed, a stage has not finished, or a label or a file can't be
            used.
    """
    if not MODELS or not TASKS:
        raise UserError("MODELS and TASKS name nothing to do: --tasks NanoBEIR")
    models: dict[str, Path | str] = {}
    for entry in MODELS:
        label, _, reference = entry.partition("=")
        if label in models:
            raise UserError(f"MODELS: the label {label!r} stands twice; give one another: a=...")
        models[label] = references.find_result(reference or label, RECIPE)
    inputs = {f"model {label}": place for label, place in models.items()}
    inputs |= references.need_evaluation(RECIPE, RETRIEVAL_FOLDER)
    for name in TASKS:
        if (file := references.find_file(name, "TASKS", references.ASSETS)) is not None:
            inputs[f"pairs {name}"] = file
    if importlib.util.find_spec("mteb") is None:
        raise UserError("mteb is not installed; run: pip install -r requirements-mteb.txt")
    return models, inputs


def load_tasks(inputs: dict[str, Path | str]) -> "list[AbsTask]":
    """Return the tasks in their order; a benchmark of mteb gives all of its own."""
    from small_modernbert.data import evaluation_sets
    from small_modernbert.evaluation import mteb_tasks

    folder = inputs.get("retrieval")
    tasks: list[AbsTask] = []
    for name in TASKS:
        if isinstance(file := inputs.get(f"pairs {name}"), Path):
            pairs = evaluation_sets.load_sentence_pairs(name, file)
            tasks.append(mteb_tasks.from_sentence_pairs(pairs, LANGUAGE))
        elif isinstance(folder, Path) and evaluation_sets.has_retrieval_set(folder, name):
            questions = evaluation_sets.load_retrieval_set(folder, name)
            questions = questions.first_queries(MAX_QUERIES)
            tasks.append(mteb_tasks.from_retrieval_set(questions, LANGUAGE))
        else:
            tasks += mteb_tasks.named_tasks(name)
    names = [task.metadata.name for task in tasks]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"TASKS: {repeated} stands twice; name each task once")
    return tasks


def run_tasks(
    models: dict[str, Path | str], tasks: "list[AbsTask]", folder: Path
) -> dict[str, dict[str, float]]:
    """Return the main score of each task and model: task -> model -> score.

    Raises:
        UserError: some tasks' data can't be had; the others have been run, and are kept.
    """
    from small_modernbert.evaluation import mteb_tasks
    from small_modernbert.models import encoders

    scores: dict[str, dict[str, float]] = {task.metadata.name: {} for task in tasks}
    unreached: dict[str, str] = {}
    for label, reference in models.items():
        place = reference if isinstance(reference, Path) else encoders.fetch(reference)
        model = mteb_tasks.Model(label, place, QUERY_PROMPT, DOCUMENT_PROMPT)
        for task in (task for task in tasks if task.metadata.name not in unreached):
            result = mteb_tasks.find_result(model, task, folder)
            if result is None:
                try:
                    mteb_tasks.load(task)
                except UserError as error:
                    unreached[task.metadata.name] = str(error)
                    continue
                result = mteb_tasks.evaluate(model, task, folder)
            score = scores[task.metadata.name][label] = float(result.get_score())
            stages.logger.info("%s on %s: %.4f", label, task.metadata.name, score)
    if unreached:
        raise UserError(
            f"{len(unreached)} of {len(tasks)} tasks could not be run ({', '.join(unreached)}): "
            f"{next(iter(unreached.values()))}; what has been run is kept: run it again, or name "
            "the others alone with --tasks and --variant"
        )
    return scores


if __name__ == "__main__":
    settings.run(globals())
