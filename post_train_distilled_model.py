r"""Sharpen the distilled student on judged triplets, at several dimensions at once (Matryoshka).

Reads: a student (distil_modernbert.py), judged triplets (relabel_triplets.py).
Writes: final/, a sentence-transformers folder with dimensions.{json,md,png}: quality against
    dimension, before and after; checkpoints/, metrics.jsonl.

    python post_train_distilled_model.py
    python post_train_distilled_model.py --objective kl --negatives 4 --dimensions
    python post_train_distilled_model.py --recipe offline --dimensions 256 128 64 \
        --learning-rate 1e-4 --retrieval-folder assets/retrieval --validation-sets boolq-dev \
        --sts assets/sentence_pairs/mrpc.parquet

The student's cosines learn the judge's margins (margin_mse), the judge's ranking of each row's
texts (kl), or only which text is the positive (mnrl). Any beginning of a vector that DIMENSIONS
names is trained as a vector of its own: SentenceTransformer(folder, truncate_dim=64). The kept
model is the best one by SELECT_BY.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    from small_modernbert.data.training_examples import Examples
    from small_modernbert.evaluation.validation import Watched
    from small_modernbert.training.contrastive import Loss

# Inputs
STUDENT: str = "distil_modernbert"  # a stage of this recipe, or a folder
TRIPLETS: str = "relabel_triplets"  # the judged triplets, likewise
NEGATIVES: int = 0  # of a row at most, those that the judge scores highest; 0 = all

# Objective
OBJECTIVE: Literal["margin_mse", "mnrl", "kl"] = "margin_mse"  # margins, the positive, the ranking
DIMENSIONS: list[int] = [384, 256, 128, 64]  # trained at once; none = the full width alone
MARGINS: Literal["auto", "scores", "logits"] = (
    "auto"  # of the judge's scores from 0 to 1, or of the logits under them; auto: logits of a
    # cross-encoder, whose sigmoid makes 9 and 7 one thing; scores of a bi-encoder, its cosines
)
MARGIN_SCALE: float = 0.0  # cosine margin for one of 1; 0 = 1 of scores, 0.05 of logits
SCALE: float = 20.0  # inverse temperature of the cosines; mnrl only
TEMPERATURE: float = 0.05  # of the student's cosines; kl only
JUDGE_TEMPERATURE: float = 0.1  # of the judge's scores; kl only, 0.05 suits a bi-encoder's cosines

# Training
EPOCHS: int = 3  # passes over the triplets
MAX_STEPS: int = 0  # ends earlier; 0 = all the epochs
ROWS_PER_BATCH: int = 64  # triplets per step at most
TOKENS_PER_BATCH: int = 65_536  # tokens of all their texts per step at most
CACHED_TOKENS: int = 0  # tokens in memory at once, for large batches (GradCache); 0 = the batch
LENGTH_WINDOW: int = 16  # batches whose rows are sorted by length together; 1 = lengths as drawn
ACCUMULATE: int = 1  # batches per optimizer step
LEARNING_RATE: float = 2e-5  # of the plateau
WARMUP: float = 0.1  # share of the steps, linear from 0
DECAY: float = 0.3  # share of the steps at the end, 1 - sqrt to 0
WEIGHT_DECAY: float = 0.01  # matrices only
OPTIMIZER: Literal["stable_adamw", "adamw"] = "stable_adamw"  # the paper's, or torch's fused one
TRAIN_WITH_PROMPTS: bool = True  # the student's own, if it has any; without, it loses them
MAX_TOKENS: int = 0  # longer texts are cut; 0 = as many as the student takes
PRECISION: Literal["auto", "fp32", "bf16"] = "auto"  # auto measures which is faster here
CHECKPOINT_EVERY: int = 500  # steps; what a kill can cost

# Evaluation
EVALUATE_EVERY: int = 500  # steps
STS: str = "sentence-transformers/stsb"  # hub id (its validation split), Parquet file, "" for none
RETRIEVAL_FOLDER: str = ""  # local sets in the NanoBEIR layout; empty = NanoBEIR from the hub
VALIDATION_SETS: list[str] = ["NanoMSMARCO", "NanoHotpotQA"]  # retrieval sets to watch
SELECT_BY: str = (
    "triplet_accuracy"  # maximised by the kept model; also at a dimension: triplet_accuracy/64
)

# Output
SEED: int = 42  # of the batches' order
RECIPE: str = "small_v2"  # runs/<recipe>/post_train_distilled_model
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
REPORT_TO: list[str] = []  # show the figures in tensorboard, trackio, wandb, too
OVERWRITE: bool = False  # redo a finished stage


def main() -> None:
    """Load, train, keep the best, and show what it is worth at every dimension."""
    inputs = find_inputs()
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.evaluation import matryoshka, validation
        from small_modernbert.models import prompts, students
        from small_modernbert.training import contrastive, loop

        student = students.load_student(inputs["student"], max_tokens=MAX_TOKENS)
        prompts.settle(stage, student, TRAIN_WITH_PROMPTS)
        measured = matryoshka.check_dimensions(DIMENSIONS, student.width)
        train, plain = load_examples(stage, inputs)
        train, watched = contrastive.with_prompts(train, plain, student.prompts)
        read_by = functools.partial(contrastive.watched_by, plain)
        before = validation.measure_as_it_came(student, inputs["student"], read_by, measured)
        encoder = student.training_encoder(stage, PRECISION)
        task = contrastive.ContrastiveTask(
            encoder,
            train,
            contrastive.tokenise(stage, train, student),
            loss_function(stage.record.facts["judge"]["margin_scale"]),
            lambda: watched.measure(encoder, student.backend, measured, student.prompts),
            weight_by="negatives" if OBJECTIVE == "margin_mse" else "rows",
            mix="mixed",
            distinct=OBJECTIVE == "mnrl",  # a text that stands twice harms where it is a negative
            tokens_per_batch=TOKENS_PER_BATCH,
            rows_per_batch=ROWS_PER_BATCH,
            window_batches=LENGTH_WINDOW,
            cached_tokens=CACHED_TOKENS,
            seed=SEED,
        )
        stage.record.rows["epoch"] = task.describe()
        optimizer, plan = loop.prepare(globals(), encoder.model)
        outcome = loop.train(task, optimizer, plan, stage, before)
        student.save(stage.building)
        print(matryoshka.write_dimensions(stage.building, measured, outcome.before, outcome.latest))
        loop.finish(stage, outcome, SELECT_BY or "triplet_accuracy", student)


def find_inputs() -> dict[str, Path | str]:
    """Resolve every reference before anything is loaded."""
    inputs: dict[str, Path | str] = {
        "student": references.need(STUDENT, RECIPE, "student", "run: python distil_modernbert.py"),
        "triplets": references.need(
            TRIPLETS, RECIPE, "triplets", "run: python relabel_triplets.py"
        ),
    }
    return inputs | references.need_evaluation(RECIPE, RETRIEVAL_FOLDER, STS)


def load_examples(stage: stages.Stage, inputs: dict[str, Path | str]) -> "tuple[Examples, Watched]":
    """Read the judged triplets, and what they are watched by; keep evaluation texts out of them."""
    from small_modernbert.data import evaluation_sets, training_examples, triplets
    from small_modernbert.evaluation import validation
    from small_modernbert.runs.errors import UserError
    from small_modernbert.training import contrastive

    sets, pairs = evaluation_sets.load_watched(VALIDATION_SETS, STS, inputs)
    stored = triplets.open_triplets(inputs["triplets"])
    logits = OBJECTIVE == "margin_mse" and contrastive.takes_logits(MARGINS, stored.scale)
    dev, _ = training_examples.collect(training_examples.from_judged(stored.rows("dev")))
    dev = contrastive.with_logits(dev) if logits else dev
    watched = validation.Watched(validation.HeldOutTriplets(dev.with_negatives()), pairs, sets)
    rows = training_examples.from_judged(stored.rows("train"))
    train, dropped = training_examples.collect(rows, watched.texts())
    train, read = contrastive.with_logits(train) if logits else train, len(train)
    if NEGATIVES:
        train = train.hardest(NEGATIVES)
    if OBJECTIVE != "mnrl":
        # Margins and rankings are of a row's own texts: without a negative there is none.
        train = train.with_negatives()
    if not len(train):
        lost = f"dropped: {dropped or 'none'}; without a negative: {read:,}"
        raise UserError(f"{stored.folder} has no row to train on ({lost}); {stored.cure}")
    stage.record.facts["judge"] = {
        "name": stored.judge,
        "scale": stored.scale,
        "margins": "logits" if logits else "scores",
        "margin_scale": MARGIN_SCALE or (contrastive.LOGIT_MARGIN if logits else 1.0),
    }
    stage.record.rows = {
        "train": len(train),
        "negatives": len(train.negatives),
        "without_negatives": read - len(train),
        "dev": stored.counts["dev"],
        "dev_with_negatives": len(watched.held_out),
        "dropped": dropped,
    }
    return train, watched


def loss_function(margin_scale: float) -> "Loss":
    """Return the objective, at every dimension; `margin_scale` is what MARGIN_SCALE stands for."""
    from small_modernbert.training import contrastive

    if OBJECTIVE == "margin_mse":
        loss = contrastive.margin_mse(scale=margin_scale)
    elif OBJECTIVE == "kl":
        loss = contrastive.score_kl(temperature=TEMPERATURE, judge_temperature=JUDGE_TEMPERATURE)
    else:
        loss = contrastive.mnrl(scale=SCALE)
    return contrastive.nested(loss, DIMENSIONS)


if __name__ == "__main__":
    settings.run(globals())
