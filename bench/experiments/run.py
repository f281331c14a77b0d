r"""Run the experiments that the defaults come from, and write docs/EXPERIMENTS.md.

Reads: the labels, the corpus and the blank student of `make run`; assets/ (make assets).
Writes: docs/experiments.jsonl, a line a finished row; docs/EXPERIMENTS.md and its plot.

    python bench/experiments/run.py
    python bench/experiments/run.py --only "static start" "random"
    python bench/experiments/run.py --tables-only

One row after the other, on one thread; a row that stands in the file with the same flags is not run
again. Budgets are processor seconds of training, so that a busy machine changes nothing.
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # bench/, whose inputs.py runs stages

import inputs
import peers
import quality
import rows
import tables

from small_modernbert.runs import lineage, references, settings, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.data.labels import Labels

# Inputs
OFFLINE: str = "runs/offline"  # of `make run`: labels, corpus, blank student, the saved student
SAVED: list[str] = []  # label=folder of other students: now, afternoon (rows that take them)
ASSETS: str = "assets"  # of get_offline_assets.py

# Rows
ONLY: list[str] = []  # some of them by name; none = all
BUDGET: float = 90.0  # processor seconds of training
THREADS: int = 1
TABLES_ONLY: bool = False  # write the tables of what there is

# Evaluation, on documents drawn once and the queries that they answer
SELECTION_DOCUMENTS: int = 400  # of each set that defaults are chosen on
REPORTED_DOCUMENTS: int = 250  # of each set that is only reported

# Output
OUTPUT: str = "docs"  # folder of experiments.jsonl and EXPERIMENTS.md

RECIPE = "experiments"
SEED = 42  # of starts that draw nothing
TRIAL_STEPS = 10  # that tell what a token takes; the first is not counted


def main() -> None:
    """Run what is not there yet, and write the tables after each row."""
    output = references.ROOT / OUTPUT
    record = output / "experiments.jsonl"
    chosen = [row for row in rows.ROWS if not ONLY or row.name in ONLY]
    if unknown := set(ONLY) - {row.name for row in rows.ROWS}:
        raise UserError(f"ONLY: no such row: {', '.join(sorted(unknown))}; rows.py has them")
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # read by torch in the processes of the rows
    constants = {name: globals()[name] for name in ("OFFLINE", "SAVED", "ASSETS", "BUDGET")}
    constants |= {"SELECTION_DOCUMENTS": SELECTION_DOCUMENTS}
    constants |= {"REPORTED_DOCUMENTS": REPORTED_DOCUMENTS}
    for row in [] if TABLES_ONLY else chosen:
        if is_done(row, read_record(record)):
            continue
        # A process of its own, so that no row inherits another's settings, memory or warm caches.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn) as pool:
            line = pool.submit(measure, row, constants, read_record(record)).result()
        with record.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{row.name}: {line['retrieval']}, {line.get('seconds', 0):.0f} s", flush=True)
    tables.write(output, read_record(record), rows.ROWS)


def read_record(path: Path) -> list[dict[str, Any]]:
    """Return the finished rows; of those with one name the last."""
    if not path.exists():
        return []
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return list({line["name"]: line for line in lines}.values())


def flags_of(row: rows.Row) -> dict[str, Any]:
    """Return what a row is made by, as it stands in the record."""
    flags = dataclasses.asdict(row) | {"distil": rows.DISTIL | row.distil if not row.peer else None}
    for words in ("question", "note", "name"):
        del flags[words]
    return json.loads(json.dumps(flags))


def is_done(row: rows.Row, record: list[dict[str, Any]]) -> bool:
    """Say whether a row stands in the record, made by the same flags and budget."""
    wanted = flags_of(row) | {"seconds": BUDGET}
    return any(line["name"] == row.name and line["flags"] == wanted for line in record)


def measure(
    row: rows.Row, constants: dict[str, Any], record: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make a row's model and measure it; called in a process of its own."""
    globals().update(constants)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    count_processor_seconds()
    alike = [line for line in record if line["flags"]["shape"] == row.shape and row.shape]
    known = alike[-1]["step_seconds"] if alike else 0.0
    scratch = references.runs_folder() / RECIPE / "scratch" / variant_of(row)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    start, start_seconds = make_start(row)
    facts: dict[str, Any] = {"start_seconds": start_seconds}
    if row.peer:
        function, arguments = row.peer
        work = peer_work(row, start, scratch / "model", known)
        facts |= getattr(peers, function)(work, **arguments)
        model = work.output.resolve()  # a form of an export is known by what stands above it
    else:
        trained, model = distil(row, start, known)
        facts |= trained
    line = {"name": row.name, "flags": flags_of(row) | {"seconds": BUDGET}, "seed": row.seed}
    line["code"] = lineage.git_state()
    documents = dict.fromkeys(tables.SELECTION, SELECTION_DOCUMENTS)
    documents |= dict.fromkeys(tables.REPORTED, REPORTED_DOCUMENTS)
    # What is not trained here are the models that BM25's weight is chosen for.
    figures = quality.evaluate(
        model,
        references.ROOT / ASSETS / "models/all-MiniLM-L6-v2",
        references.ROOT / ASSETS,
        documents,
        open_labels().texts("train"),
        with_words=not row.shape,
    )
    for script in ("distil_modernbert", "mlm/pre_train"):
        shutil.rmtree(references.runs_folder() / RECIPE / f"{script}@{variant_of(row)}", True)
    shutil.rmtree(scratch)
    return line | facts | figures


def variant_of(row: rows.Row) -> str:
    """Return the name of a row's folders: rows of two runs at once do not meet."""
    return storage.digest_json(row.name)[:12]


def count_processor_seconds() -> None:
    """Let the loop's clock count the processor's seconds instead of the wall's."""
    import types

    from small_modernbert.training import loop

    loop.time = types.SimpleNamespace(perf_counter=time.process_time)


def make_start(row: rows.Row) -> tuple[str | None, float]:
    """Return a row's start, made once for all rows with the same, and its processor seconds."""
    if row.start is None:
        return (None if row.peer else blank_student()), 0.0
    # Layers are copied and fitted in closed form: there is nothing to draw.
    seed = SEED if row.start["init"] == "layers" else row.seed
    variant = storage.digest_json([row.start, seed])[:12]
    folder = references.runs_folder() / RECIPE / f"mlm/init_model_mlm@{variant}"
    seconds = folder / "processor_seconds.json"
    if not seconds.exists():
        teacher, offline = f"{ASSETS}/models/all-MiniLM-L6-v2", str(references.ROOT / OFFLINE)
        labels = f"{offline}/create_distil_dataset/final"
        common = {"labels": labels, "student": blank_student(), "donor": teacher, "seed": seed}
        common["teacher"] = f"{labels}/reduced_teacher"
        tokenise_once(common)
        flags = dict(row.start)
        if flags.get("donor") == rows.REDUCED:
            flags["donor"] = common["teacher"]
        begun = time.process_time()
        inputs.run_stage("mlm/init_model_mlm", RECIPE, variant=variant, **(common | flags))
        storage.write_json(seconds, time.process_time() - begun)
    return str(folder / "final"), storage.read_json(seconds, "remove it")


def tokenise_once(common: dict[str, Any]) -> None:
    """Tokenise the labels outside of any row's seconds, by the smallest start that needs them."""
    done = references.runs_folder() / RECIPE / "mlm/init_model_mlm@tokens"
    if not done.exists():
        small = {"init": "layers", "layers": [0], "ffn_units": 1280, "variant": "tokens"}
        inputs.run_stage("mlm/init_model_mlm", RECIPE, **(common | small))


def open_labels() -> "Labels":
    """Open the labels of `make run`."""
    from small_modernbert.data import labels

    return labels.open_labels(references.ROOT / OFFLINE / "create_distil_dataset/final")


def blank_student() -> str:
    """Return the folder of the blank ModernBERT."""
    return str(references.ROOT / OFFLINE / "build_and_save_small_modernbert/final")


def peer_work(row: rows.Row, start: str | None, output: Path, step_seconds: float) -> peers.Work:
    """Collect what a peer is given."""
    stored = open_labels()
    vectors = stored.vectors("train", output.with_name("vectors.f16"))
    return peers.Work(
        texts=list(stored.texts("train")),
        vectors=vectors.astype("float32"),
        teacher=(references.ROOT / ASSETS / "models/all-MiniLM-L6-v2").resolve(),
        reduced=stored.folder / "reduced_teacher",
        student=references.ROOT / OFFLINE / "distil_modernbert/final",
        saved={
            label: references.ROOT / folder
            for label, _, folder in (entry.partition("=") for entry in SAVED)
        },
        twin=references.ROOT / OFFLINE / "mlm/init_model_mlm@static/final/static_twin",
        start=Path(start) if start else None,
        output=output,
        budget=BUDGET * row.budget,
        step_seconds=step_seconds,
        seed=row.seed,
    )


def distil(row: rows.Row, start: str, step_seconds: float) -> tuple[dict[str, Any], Path]:
    """Train as a user would, for as many steps as the budget buys; return facts and the model."""
    offline = str(references.ROOT / OFFLINE)
    budget, facts = BUDGET * row.budget, {}
    if row.language_share:
        start, facts = learn_language(row, start, offline)
        budget -= facts["language_seconds"]
    flags = rows.DISTIL | row.distil
    flags |= {"student": start, "labels": f"{offline}/create_distil_dataset/final"}
    flags |= {"seed": row.seed, "variant": variant_of(row)}
    if not step_seconds:
        trial = inputs.run_stage("distil_modernbert", RECIPE, max_steps=TRIAL_STEPS, **flags)
        tried = inputs.steps_of(trial)
        # By the token: so few batches are not as long as all of them in the mean.
        each = sum(step["seconds"] for step in tried) / sum(step["tokens"] for step in tried)
        step_seconds = each * tokens_per_text() * flags["rows_per_batch"]
    steps = round(budget / step_seconds)
    stage = inputs.run_stage("distil_modernbert", RECIPE, max_steps=steps, **flags)
    made = inputs.steps_of(stage)
    seconds = sum(step["seconds"] for step in made) * steps / len(made)
    facts |= {"seconds": seconds, "steps": steps, "step_seconds": seconds / steps}
    facts["tokens"] = sum(step["tokens"] for step in made)
    return facts, stage / "final"


def learn_language(row: rows.Row, start: str, offline: str) -> tuple[str, dict[str, Any]]:
    """Spend a share of the budget on masked-language modelling; return the model and its facts."""
    flags = {
        "student": start, "corpus": f"{offline}/mlm/create_dataset/final",
        "variant": variant_of(row),
        "sequence_tokens": 256, "sequences_per_batch": 16, "accumulate": 1, "epochs": 1,
        "held_out_rows": 100, "evaluate_every": 0, "checkpoint_every": 0, "seed": row.seed,
    }  # fmt: skip
    trial = inputs.steps_of(inputs.run_stage("mlm/pre_train", RECIPE, max_steps=4, **flags))
    each = sum(step["seconds"] for step in trial) / len(trial)
    steps = round(BUDGET * row.language_share / each)
    stage = inputs.run_stage("mlm/pre_train", RECIPE, max_steps=steps, **flags)
    made = inputs.steps_of(stage)
    seconds = sum(step["seconds"] for step in made) * steps / len(made)
    return str(stage / "final"), {"language_seconds": seconds, "language_steps": steps}


def tokens_per_text() -> float:
    """Return the mean length of the labelled texts."""
    index = references.ROOT / OFFLINE / "create_distil_dataset/final/labels.json"
    counts = storage.read_json(index, "run: make run")
    return counts["tokens"] / sum(counts["rows"].values())


if __name__ == "__main__":
    settings.run(globals())
