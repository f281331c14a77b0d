r"""Train the blank student on pairs and triplets of texts, as the first generation was.

Reads: a student (build_and_save_small_modernbert.py); pairs by name from the hub (the table is in
    small_modernbert/data/hub_datasets.py), Parquet files or folders of them.
Writes: final/, a sentence-transformers folder; checkpoints/, metrics.jsonl.

    python train_small_modernbert.py --recipe small_v1
    python train_small_modernbert.py --recipe small_v1 --mix round_robin --pairs all-nli gooaq \
        quora-duplicates natural-questions trivia-qa msmarco
    python train_small_modernbert.py --recipe offline --pairs assets/pairs/train.parquet --dev "" \
        --sts assets/sentence_pairs/mrpc.parquet --select-by retrieval_ndcg@10 \
        --retrieval-folder assets/retrieval --validation-sets boolq-dev

An anchor must find its positive among all the positives and negatives of its batch (multiple
negatives ranking). No text stands twice in a batch. The kept model is the best one by SELECT_BY.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    from small_modernbert.data.training_examples import Examples
    from small_modernbert.evaluation.validation import Watched

# Inputs
STUDENT: str = "build_and_save_small_modernbert"  # a stage of this recipe, or a folder
PAIRS: list[str] = ["all-nli"]  # names in the table of pairs, Parquet files, folders
SOURCES: list[str] = []  # only rows of these sources, as the rows name them; empty = all
CLEANING: Literal["none", "web"] = "none"  # "web" takes markup and tokenisation out of prose
MAX_LOST_SHARE: float = 0.5  # of a source's rows that may be no use; beyond it the run is refused
ROWS: int = 50_000  # drawn from all the pairs; 0 = all of them
MIX: Literal["mixed", "proportional", "round_robin"] = (
    "proportional"  # batches of all sources; of one each, by size; of one each, in turn
)

# Objective
SCALE: float = 20.0  # inverse temperature of the cosines
CACHED_TOKENS: int = 0  # tokens in memory at once, for large batches (GradCache); 0 = the batch

# Training
EPOCHS: int = 1  # passes over the rows
MAX_STEPS: int = 0  # ends earlier; 0 = all the epochs
ROWS_PER_BATCH: int = 32  # rows per step at most; each is a negative of the others
TOKENS_PER_BATCH: int = 32_768  # tokens per step at most
LENGTH_WINDOW: int = 16  # batches whose rows are sorted by length together; 1 = lengths as drawn
ACCUMULATE: int = 1  # batches per optimizer step; adds no in-batch negatives
LEARNING_RATE: float = 2e-5  # of the plateau
WARMUP: float = 0.1  # share of the steps, linear from 0
DECAY: float = 0.9  # share of the steps at the end, down to 0
DECAY_SHAPE: Literal["sqrt", "linear"] = "linear"  # falls as 1 - sqrt, or as in the first log
WEIGHT_DECAY: float = 0.01  # matrices only
OPTIMIZER: Literal["stable_adamw", "adamw"] = "stable_adamw"  # the paper's, or torch's fused one
TRAIN_WITH_PROMPTS: bool = True  # the student's own, if it has any; without, it loses them
MAX_TOKENS: int = 0  # longer texts are cut; 0 = as many as the student takes
PRECISION: Literal["auto", "fp32", "bf16"] = "auto"  # auto measures which is faster here
CHECKPOINT_EVERY: int = 500  # steps; what a kill can cost

# Evaluation
EVALUATE_EVERY: int = 500  # steps
DEV: str = "all-nli"  # pairs whose dev split gives the triplet accuracy; "" = held out of PAIRS
DEV_ROWS: int = 1_000  # of them
STS: str = "sentence-transformers/stsb"  # hub id (its validation split), Parquet file, "" for none
RETRIEVAL_FOLDER: str = ""  # local sets in the NanoBEIR layout; empty = NanoBEIR from the hub
VALIDATION_SETS: list[str] = []  # retrieval sets to watch
SELECT_BY: str = "sts-dev_spearman"  # figure that the kept model maximises; "" keeps the last

# Output
SEED: int = 42  # of the rows drawn and the batches' order
RECIPE: str = "small_v2"  # runs/<recipe>/train_small_modernbert
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
REPORT_TO: list[str] = []  # show the figures in tensorboard, trackio, wandb, too
OVERWRITE: bool = False  # redo a finished stage


def main() -> None:
    """Read the pairs, hold some out, train on the rest, keep the best."""
    inputs = find_inputs()
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.evaluation import validation
        from small_modernbert.models import prompts, students
        from small_modernbert.training import contrastive, loop

        student = students.load_student(inputs["student"], max_tokens=MAX_TOKENS)
        prompts.settle(stage, student, TRAIN_WITH_PROMPTS)
        train, plain = load_examples(stage, inputs)
        train, watched = contrastive.with_prompts(train, plain, student.prompts)
        read_by = functools.partial(contrastive.watched_by, plain)
        measure_before = validation.measure_as_it_came(student, inputs["student"], read_by)
        encoder = student.training_encoder(stage, PRECISION)

        def measure() -> dict[str, float]:
            figures = watched.measure(encoder, student.backend, prompts=student.prompts)
            return figures | {"sequential_score": watched.sequential_score(figures)}

        task = contrastive.ContrastiveTask(
            encoder,
            train,
            contrastive.tokenise(stage, train, student),
            contrastive.mnrl(scale=SCALE),
            measure,
            mix=MIX,
            tokens_per_batch=TOKENS_PER_BATCH,
            rows_per_batch=ROWS_PER_BATCH,
            window_batches=LENGTH_WINDOW,
            cached_tokens=CACHED_TOKENS,
            seed=SEED,
        )
        stage.record.rows["epoch"] = task.describe()
        optimizer, plan = loop.prepare(globals(), encoder.model)
        outcome = loop.train(task, optimizer, plan, stage, measure_before)
        student.save(stage.building)
        loop.finish(stage, outcome, SELECT_BY or "triplet_accuracy", student)


def find_inputs() -> dict[str, Path | str]:
    """Resolve every reference before anything is loaded."""
    inputs: dict[str, Path | str] = {
        "student": references.need(
            STUDENT, RECIPE, "student", "run: python build_and_save_small_modernbert.py"
        )
    }
    for what, given in (("PAIRS", PAIRS), ("DEV", [DEV] if DEV else [])):
        for reference in given:
            file = references.find_file(reference, what, references.ASSETS)
            place = file or references.locate(reference, RECIPE) or reference
            inputs[f"{what} {reference}"] = place
    return inputs | references.need_evaluation(RECIPE, RETRIEVAL_FOLDER, STS)


def load_examples(stage: stages.Stage, inputs: dict[str, Path | str]) -> "tuple[Examples, Watched]":
    """Read, split and draw the rows, keep evaluation texts out of them, and write them down.

    A resumed run reads what was written: it goes on with the very same rows.
    """
    from small_modernbert.data import evaluation_sets, training_examples
    from small_modernbert.evaluation import validation
    from small_modernbert.runs.errors import UserError

    sets, graded = evaluation_sets.load_watched(VALIDATION_SETS, STS, inputs)
    folder = stage.scratch / "rows"
    if not (folder / training_examples.LAYOUT.index).exists():
        write_rows(folder, inputs)
    stored = training_examples.reopen_rows(folder)
    dev_rows, _ = training_examples.collect(training_examples.rows_of(stored, "dev"))
    held_out = validation.HeldOutTriplets(dev_rows.with_negatives())
    watched = validation.Watched(held_out, graded, sets)
    train, dropped = training_examples.collect(
        training_examples.rows_of(stored, "train"), watched.texts()
    )
    if not len(train):
        raise UserError(f"PAIRS leave no row to train on (dropped: {dropped or 'none'}); give more")
    stage.record.rows = {
        "read": stored.index["read"],
        "train": len(train),
        "dev": len(dev_rows),
        "dev_with_negatives": len(watched.held_out),
        "dropped": dropped,
    }
    return train, watched


def write_rows(folder: Path, inputs: dict[str, Path | str]) -> None:
    """Read the pairs, hold some out, draw of the others, and write both down."""
    from small_modernbert.data import offline_assets, pairs, training_examples

    counts = pairs.PairCounts()
    given = [inputs[f"PAIRS {reference}"] for reference in PAIRS]
    rules = {"seed": SEED, "cleaning": CLEANING}
    usable = list(pairs.read_pairs(*given, counts=counts, max_lost=MAX_LOST_SHARE, **rules))
    pairs.check_sources(SOURCES, counts)
    for source in set(counts.kept) - set(SOURCES or counts.kept):
        counts.move(source, pairs.NOT_ASKED_FOR, counts.kept[source])
    usable = [pair for pair in usable if not SOURCES or pair.source in SOURCES]
    dev = []
    if DEV:
        place = inputs[f"DEV {DEV}"]
        dev = list(pairs.read_pairs(place, split="dev", cap=DEV_ROWS, **rules))
    parted = training_examples.part(usable, dev, DEV_ROWS, SEED)
    sources = [pair.source for pair in parted[0]]
    chosen = training_examples.draw(sources, ROWS, SEED, evenly=MIX == "round_robin")
    rows = {"train": [parted[0][row] for row in chosen], "dev": parted[1]}
    for line in offline_assets.counts_table(counts.to_json()).splitlines():
        stages.logger.info("%s", line)
    splits = {split: list(training_examples.from_pairs(some)) for split, some in rows.items()}
    training_examples.write_rows(folder, splits, {"read": counts.to_json()})


if __name__ == "__main__":
    settings.run(globals())
