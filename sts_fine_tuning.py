r"""Fine-tune the student on graded pairs, so that its cosines follow the scores.

Reads: a student (post_train_distilled_model.py, or distil_modernbert.py) and pairs: STS-B from the
    hub, a Parquet file or folder, or pairs mined from the label shards (create_distil_dataset.py)
    and scored by the teacher.
Writes: final/, a sentence-transformers folder, with the mined pairs in final/pairs.

    python sts_fine_tuning.py
    python sts_fine_tuning.py --recipe offline --pairs mined --epochs 1 --mine-words 60 \
        --retrieval-folder assets/retrieval --validation-sets boolq-dev \
        --sentence-pairs assets/sentence_pairs/mrpc.parquet

The best model by the held-out pairs is kept. Pairs that a teacher scored give agreement with the
teacher, never STS. If retrieval on the validation sets falls by more than MAX_RETRIEVAL_DROP, the
student that came in is the result, and the closing line says so.
"""

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import places, references, settings, stages

if TYPE_CHECKING:
    from small_modernbert.data.evaluation_sets import SentencePairs
    from small_modernbert.data.graded_pairs import PairSplits
    from small_modernbert.data.retrieval_sets import RetrievalSet
    from small_modernbert.data.token_store import TokenStore
    from small_modernbert.evaluation.validation import HeldOutPairs, Watched
    from small_modernbert.models.students import Student
    from small_modernbert.training.loop import Progress

# Inputs
STUDENT: list[str] = [
    "post_train_distilled_model",  # the first stage that is there, or a folder
    "distil_modernbert",
]
PAIRS: str = "sentence-transformers/stsb"  # hub id (id@revision), Parquet file, folder, or "mined"
LABELS: str = "create_distil_dataset"  # label shards that pairs are mined from; mined only

# Pairs
HELD_OUT_PAIRS: int = 500  # drawn where the pairs have no validation split of their own
MAX_LOST_SHARE: float = 0.5  # of a source's rows that may be no use; beyond it the run is refused
MINE_PAIRS: int = 4_000  # training pairs to mine
MINE_TEXTS: int = 20_000  # seeded sample of the labels that they are mined from
MINE_WORDS: int = 0  # longer texts are not mined, they cost the most; 0 = all lengths

# Objective
OBJECTIVE: Literal["cosent", "cosine"] = "cosent"  # the order of the scores, or the scores
SCALE: float = 20.0  # inverse temperature of the cosines; cosent only
SCORE_RANGE: list[float] = []  # of people's scores, 0 5 for STS; scaled to 0-1; cosine only

# Training
EPOCHS: int = 3  # passes over the pairs
MAX_STEPS: int = 0  # ends earlier; 0 = all the epochs
ROWS_PER_BATCH: int = 32  # pairs per step at most
TOKENS_PER_BATCH: int = 16_384  # tokens of both sides per step at most
ACCUMULATE: int = 1  # batches per optimizer step
LEARNING_RATE: float = 2e-5  # of the plateau
WARMUP: float = 0.1  # share of the steps, linear from 0
DECAY: float = 0.3  # share of the steps at the end, 1 - sqrt to 0
WEIGHT_DECAY: float = 0.01  # matrices only
OPTIMIZER: Literal["stable_adamw", "adamw"] = "stable_adamw"  # the paper's, or torch's fused one
TRAIN_WITH_PROMPTS: bool = True  # the student's own, if it has any; without, it loses them
MAX_TOKENS: int = 0  # longer texts are cut; 0 = as many as the student takes
PRECISION: Literal["auto", "fp32", "bf16"] = "auto"  # auto measures which is faster here
CHECKPOINT_EVERY: int = 200  # steps; what a kill can cost

# Evaluation
EVALUATE_EVERY: int = 100  # steps; 0 = before and after only
SENTENCE_PAIRS: str = ""  # Parquet of sentence1, sentence2, label; reported, never selected by
RETRIEVAL_FOLDER: str = ""  # local sets in the NanoBEIR layout; empty = NanoBEIR from the hub
VALIDATION_SETS: list[str] = ["NanoNQ", "NanoFiQA2018"]  # must not suffer; never those reported
MAX_RETRIEVAL_DROP: float = 0.01  # of their mean nDCG@10, absolute; beyond it the input is kept

# Output
SEED: int = 42  # of the mining, the held-out pairs and the batches' order
RECIPE: str = "small_v2"  # runs/<recipe>/sts_fine_tuning
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
REPORT_TO: list[str] = []  # show the figures in tensorboard, trackio, wandb, too
OVERWRITE: bool = False  # redo a finished stage

MINED = "mined"


def main() -> None:
    """Get the pairs, train on them, and keep what is better, or what came in."""
    inputs = find_inputs()
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        from small_modernbert.data import evaluation_sets
        from small_modernbert.evaluation import validation
        from small_modernbert.models import prompts, students
        from small_modernbert.training import graded_similarity, loop

        sets, sentence_pairs = evaluation_sets.load_watched(VALIDATION_SETS, SENTENCE_PAIRS, inputs)
        gathered = gather_pairs(stage, sets, sentence_pairs)
        splits = graded_similarity.scale_scores(gathered, OBJECTIVE, SCORE_RANGE)
        student = students.load_student(inputs["student"], max_tokens=MAX_TOKENS)
        prompts.settle(stage, student, TRAIN_WITH_PROMPTS)
        encoder = student.training_encoder(stage, PRECISION)
        train_tokens, held_out = tokenise(stage, splits, student)
        watched = validation.Watched(held_out, sentence_pairs, sets)
        as_read_by = functools.partial(watch_as, watched, splits.held_out.texts())
        measure_before = validation.measure_as_it_came(student, inputs["student"], as_read_by)
        task = graded_similarity.PairTask(
            encoder,
            train_tokens,
            splits.train.scores,
            graded_similarity.loss_function(OBJECTIVE, SCALE),
            lambda: watched.measure(encoder, student.backend, prompts=student.prompts),
            tokens_per_batch=TOKENS_PER_BATCH,
            rows_per_batch=ROWS_PER_BATCH,
            seed=SEED,
        )
        optimizer, plan = loop.prepare(globals(), encoder.model, select_by=splits.figure)
        outcome = loop.train(task, optimizer, plan, stage, measure_before)
        stage.record.rows = splits.counts()
        if reason := why_keep_input(outcome, splits.figure):
            keep_input(stage, inputs["student"], outcome, splits.figure, reason)
            return
        stage.record.facts["result"] = "the fine-tuned model"
        student.save(stage.building)
        loop.finish(stage, outcome, splits.figure, student)


def find_inputs() -> dict[str, Path | str]:
    """Resolve every reference before anything is loaded."""
    from small_modernbert.runs.errors import UserError

    inputs: dict[str, Path | str] = {
        "student": references.need_first(
            STUDENT, RECIPE, "student", "run: python distil_modernbert.py"
        )
    }
    if PAIRS == MINED:
        inputs["labels"] = references.need(
            LABELS, RECIPE, "labels", "run: python create_distil_dataset.py"
        )
    else:
        file = references.find_file(
            PAIRS, "PAIRS", "give a Parquet file, a hub id, or: --pairs mined"
        )
        inputs["pairs"] = file or references.locate(PAIRS, RECIPE) or PAIRS
    evaluation = references.need_evaluation(
        RECIPE, RETRIEVAL_FOLDER, SENTENCE_PAIRS, "SENTENCE_PAIRS"
    )
    if isinstance(evaluation.get("sentence pairs"), str):
        raise UserError(f"SENTENCE_PAIRS: {SENTENCE_PAIRS} is not a file; {references.ASSETS}")
    return inputs | evaluation


def gather_pairs(
    stage: stages.Stage, sets: "list[RetrievalSet]", sentence_pairs: "SentencePairs | None"
) -> "PairSplits":
    """Read or mine the pairs, keep evaluation texts out of them, and write them down.

    A resumed run reads what was written: it goes on with the very same pairs.
    """
    from small_modernbert.data import graded_pairs, labels
    from small_modernbert.labelling import graded_mining

    mined = PAIRS == MINED
    folder = stage.building / "pairs" if mined else stage.scratch / "pairs"
    if (stored := graded_pairs.reopen(folder)) is not None:
        return stored
    place = stage.record.inputs["labels" if mined else "pairs"]["path"]
    if mined:
        splits = graded_mining.mine_splits(
            labels.open_labels(places.reopen(place)),
            pairs=MINE_PAIRS,
            held_out=HELD_OUT_PAIRS,
            texts=MINE_TEXTS,
            max_words=MINE_WORDS,
            seed=SEED,
        )
    elif Path(place).exists():
        splits = graded_pairs.read_files(Path(place), HELD_OUT_PAIRS, SEED, MAX_LOST_SHARE)
    else:
        splits = graded_pairs.read_hub(place, MAX_LOST_SHARE)
    texts = {each.name: [*each.queries, *each.documents] for each in sets}
    if sentence_pairs is not None:
        texts[sentence_pairs.name] = [*sentence_pairs.first, *sentence_pairs.second]
    splits = graded_pairs.keep_apart(splits, texts)
    graded_pairs.write_pairs(folder, splits)
    return splits


def tokenise(
    stage: stages.Stage, splits: "PairSplits", student: "Student"
) -> "tuple[TokenStore, HeldOutPairs]":
    """Return the tokens of the training and of the held-out pairs, both sides of each in turn."""
    from small_modernbert.data.token_store import store
    from small_modernbert.evaluation.validation import HeldOutPairs

    prompt = student.prompts.text  # trained as it will be used
    train, held_out = (
        store(
            [prompt + text for text in pairs.texts()],
            student.backend,
            stage.scratch / split,
            split,
        )
        for split, pairs in (("train", splits.train), ("held_out", splits.held_out))
    )
    return train, HeldOutPairs(held_out, splits.held_out.scores, splits.figure)


def watch_as(watched: "Watched", texts: list[str], own: "Student") -> "Watched":
    """Return what is watched, with the held-out pairs as another student reads them."""
    encoded = own.backend.encode_batch([own.prompts.text + text for text in texts])
    held_out = replace(watched.held_out, tokens=[encoding.ids for encoding in encoded])
    return replace(watched, held_out=held_out)


def why_keep_input(outcome: "Progress", figure: str) -> str:
    """Say why the student that came in is the better one; "" if the fine-tuned one is."""
    if not outcome.best_step or outcome.latest[figure] <= outcome.before[figure]:
        return f"no evaluated step raised {figure}"
    before, after = (
        figures.get("retrieval_ndcg@10") for figures in (outcome.before, outcome.latest)
    )
    if before is None or after is None:
        stages.logger.info("VALIDATION_SETS is empty: nothing says what retrieval lost")
        return ""
    if before - after <= MAX_RETRIEVAL_DROP:
        return ""
    return (
        f"nDCG@10 on {', '.join(VALIDATION_SETS)} fell from {before:.4f} to {after:.4f}, by more "
        f"than {MAX_RETRIEVAL_DROP:g}"
    )


def keep_input(
    stage: stages.Stage, folder: Path, outcome: "Progress", figure: str, reason: str
) -> None:
    """Publish a copy of the student that came in, and record the figures of both."""
    import shutil

    from small_modernbert.models import students

    student = students.load_student(folder)
    if (folder / "modules.json").exists():
        # Its own mined pairs, if any, are not ours.
        ignored = shutil.ignore_patterns("pairs")
        shutil.copytree(folder, stage.building, dirs_exist_ok=True, ignore=ignored)
    else:
        student.save(stage.building)
    fine_tuned = outcome.latest if outcome.best_step else last_figures(stage, figure)
    stage.record.facts["result"] = "kept the input model"
    stage.record.facts["reason"] = reason
    for name in ("prompts", "prompts_trained_with"):  # of the model that is not kept
        stage.record.facts.pop(name, None)
    stage.record.metrics = {
        "before": outcome.before,
        "after": outcome.before,
        "fine_tuned": fine_tuned,
        "best_step": outcome.best_step,
    }
    student.write_card(stage)
    stage.finish(
        f"kept the input model: {reason} ({figure} {outcome.before[figure]:.4f} -> "
        f"{fine_tuned[figure]:.4f} after {outcome.step:,} steps)",
        student.check_reload,
    )


def last_figures(stage: stages.Stage, figure: str) -> dict[str, float]:
    """Return the last evaluation in metrics.jsonl: of weights that were not the best ones."""
    import json

    lines = (stage.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [values for values in map(json.loads, lines) if figure in values][-1]
    return {name: value for name, value in last.items() if name != "step"}


if __name__ == "__main__":
    settings.run(globals())
