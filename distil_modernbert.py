r"""Distil a teacher into the student: its embeddings (mse, cosine) or its ranking (kl).

Reads: a student (mlm/pre_train.py, train_small_modernbert.py, or any ModernBERT, BERT or MPNet) and
    label shards (create_distil_dataset.py).
Writes: final/, a sentence-transformers folder; checkpoints/, metrics.jsonl.

    python distil_modernbert.py
    python distil_modernbert.py --recipe offline --student mlm/init_model_mlm@static \
        --objective cosine --retrieval-folder assets/retrieval --validation-sets boolq-dev
    python distil_modernbert.py --recipe offline --variant random --student \
        build_and_save_small_modernbert

Batches are packed: texts of near-equal length end to end, no padding. Held-out rows of the label
shards are never trained on. The kept model is the best one by SELECT_BY, which is never a set that
the benchmark reports.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    import numpy as np

    from small_modernbert.data.labels import Labels
    from small_modernbert.data.token_store import TokenStore
    from small_modernbert.evaluation.validation import HeldOutTexts, Watched
    from small_modernbert.models.students import Student

# Inputs
STUDENT: list[str] = ["mlm/pre_train", "train_small_modernbert"]  # the first stage that is there
LABELS: str = "create_distil_dataset"  # the label shards: a stage, a folder or a URL

# Objective
OBJECTIVE: Literal["mse", "cosine", "kl"] = (
    "mse"  # raw vectors up to one scale, their directions alone, or their ranking in the batch
)
TEMPERATURE: float = 0.05  # of the in-batch similarities; kl only
TRAIN_WITH_PROMPTS: bool = True  # the teacher's, by each text's role; the saved student keeps them
CUT_ALIKE: bool = False  # training texts to what the teacher read of them at most

# Training
EPOCHS: int = 2  # passes over the labels
MAX_STEPS: int = 0  # ends earlier; 0 = all the epochs
WINDOW_ROWS: int = 4_000_000  # texts at hand at once; more are streamed by shards; 0 = all
ROWS_PER_BATCH: int = 64  # texts per step at most
TOKENS_PER_BATCH: int = 16_384  # tokens per step at most
ACCUMULATE: int = 1  # batches per optimizer step
LEARNING_RATE: float = 1e-4  # of the plateau
WARMUP: float = 0.05  # share of the steps, linear from 0
DECAY: float = 0.3  # share of the steps at the end, 1 - sqrt to 0
WEIGHT_DECAY: float = 0.01  # matrices only
OPTIMIZER: Literal["stable_adamw", "adamw"] = "stable_adamw"  # the paper's, or torch's fused one
MAX_TOKENS: int = 0  # longer texts are cut; 0 = as many as the student takes
FREEZE_EMBEDDINGS: bool = False  # leave the vocabulary's vectors as they came
POOLING: Literal["student", "mean", "cls"] = "student"  # how token vectors become one
PRECISION: Literal["auto", "fp32", "bf16"] = "auto"  # auto measures which is faster here
CHECKPOINT_EVERY: int = 500  # steps; what a kill can cost

# Evaluation
EVALUATE_EVERY: int = 1_000  # steps
RETRIEVAL_FOLDER: str = ""  # local sets in the NanoBEIR layout; empty = NanoBEIR from the hub
VALIDATION_SETS: list[str] = ["NanoMSMARCO", "NanoHotpotQA"]  # watched; not selected by
HELD_OUT_ROWS: int = 1_000  # labels to measure the distance to the teacher on
SELECT_BY: str = "held_out_cosine"  # figure that the kept model maximises; "" keeps the last

# Output
SEED: int = 42  # of the batches' order
RECIPE: str = "small_v2"  # runs/<recipe>/distil_modernbert
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
REPORT_TO: list[str] = []  # show the figures in tensorboard, trackio, wandb, too
OVERWRITE: bool = False  # redo a finished stage


def main() -> None:
    """Load, tokenise once, train, keep the best, save, and say what changed."""
    inputs = find_inputs()
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.data import evaluation_sets, labels
        from small_modernbert.evaluation import validation
        from small_modernbert.models import prompts, students
        from small_modernbert.training import distillation, loop

        labelled = labels.open_labels(inputs["labels"])
        student = students.load_student(inputs["student"], pooling=POOLING, max_tokens=MAX_TOKENS)
        labelled.check_width(student.width)
        encoder = student.training_encoder(stage, PRECISION)
        student.transformer.get_input_embeddings().requires_grad_(not FREEZE_EMBEDDINGS)
        prompts.settle(stage, student, TRAIN_WITH_PROMPTS, labelled.index.get("prompts"))
        tokens = distillation.tokenise(stage, labelled, student, CUT_ALIKE, WINDOW_ROWS)
        vectors = distillation.open_vectors(stage, labelled, tokens)
        sets = evaluation_sets.load_named(VALIDATION_SETS, inputs.get("retrieval"))
        watched = validation.Watched(hold_out(tokens, vectors), sets=sets)
        as_read_by = functools.partial(watch_as, watched, labelled)
        measure_before = validation.measure_as_it_came(student, inputs["student"], as_read_by)
        task = distillation.DistillationTask(
            encoder,
            tokens["train"],
            vectors["train"],
            distillation.loss_function(OBJECTIVE, TEMPERATURE),
            lambda: watched.measure(encoder, student.backend, prompts=student.prompts),
            tokens_per_batch=TOKENS_PER_BATCH,
            rows_per_batch=ROWS_PER_BATCH,
            seed=SEED,
        )
        optimizer, plan = loop.prepare(globals(), encoder.model)
        outcome = loop.train(task, optimizer, plan, stage, measure_before)
        student.save(stage.building)
        stage.record.rows = {"train": labelled.counts["train"], "held_out": len(watched.held_out)}
        loop.finish(stage, outcome, SELECT_BY, student)


def hold_out(tokens: dict[str, TokenStore], vectors: dict[str, np.ndarray]) -> HeldOutTexts:
    """Return the held-out texts that are looked at."""
    from small_modernbert.evaluation.validation import HeldOutTexts

    rows = min(HELD_OUT_ROWS, len(tokens["held_out"]))
    return HeldOutTexts(tokens["held_out"].head(rows), vectors["held_out"][:rows])


def watch_as(watched: Watched, labelled: Labels, own: Student) -> Watched:
    """Return what is watched, with the held-out texts as another student reads them."""
    from small_modernbert.training import distillation

    tokens = distillation.tokenise_held_out(labelled, own, len(watched.held_out))
    return replace(watched, held_out=replace(watched.held_out, tokens=tokens))


def find_inputs() -> dict[str, Path]:
    """Resolve every reference before anything is loaded."""
    cure = "run: python mlm/pre_train.py, or train_small_modernbert.py"
    inputs = {
        "student": references.need_first(STUDENT, RECIPE, "student", cure),
        "labels": references.need(LABELS, RECIPE, "labels", "run: python create_distil_dataset.py"),
    }
    return inputs | references.need_evaluation(RECIPE, RETRIEVAL_FOLDER)


if __name__ == "__main__":
    settings.run(globals())
