r"""Train a student to predict hidden words: 30 % masking, packed sequences, StableAdamW, WSD.

Reads: a student (mlm/init_model_mlm.py, or a blank one) and a corpus (mlm/create_dataset.py).
Writes: final/, the model with its head (best by held-out loss); checkpoints/, metrics.jsonl.

    python mlm/pre_train.py
    python mlm/pre_train.py --recipe offline --max-steps 100 --sequence-tokens 512
    torchrun --nproc-per-node 2 mlm/pre_train.py --accumulate 2
    python mlm/pre_train.py --variant long --student mlm/pre_train \
        --corpus mlm/create_dataset@long --sequence-tokens 8192 --sequences-per-batch 2 \
        --learning-rate 3e-4 --mixture finewiki=2 msmarco=0.2

The last one is context extension, a second phase: a corpus cut at the new length (made by
mlm/create_dataset.py --variant long --max-tokens 8192), longer sequences, a rate, a decay and a
mixture of sources of its own, and, for a student that was made with a rotary base of 10,000,
--global-rope-theta 160000.
Under torchrun, as any training script, it deals a step's ACCUMULATE batches out to the processes.
The recipe is the ModernBERT paper's (arXiv 2412.13663, section 2.2). Predictions are computed at
masked positions only; the decoder is the embedding table.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from small_modernbert.runs import references, settings, stages

if TYPE_CHECKING:
    import numpy as np

    from small_modernbert.data.streamed_rows import StreamedRows
    from small_modernbert.data.token_store import TokenStore
    from small_modernbert.models.students import Student

# Inputs
STUDENT: str = "mlm/init_model_mlm"  # a stage of this recipe, or a folder
CORPUS: str = "mlm/create_dataset"  # likewise, or a URL

# Data
SEQUENCE_TOKENS: int = 1_024  # texts are packed into sequences of this many tokens
MASKING: float = 0.3  # share of the tokens to predict; special tokens never
MIXTURE: list[str] = []  # source=weight: how often its texts come in a pass; others once
HELD_OUT_ROWS: int = 1_000  # texts that the loss is watched on; never trained on
WINDOW_ROWS: int = 4_000_000  # texts at hand at once; more are streamed by shards; 0 = all

# Context
GLOBAL_ROPE_THETA: float = 0.0  # of the global layers; 0 = the student's; 160,000 at 8,192 tokens

# Training
EPOCHS: int = 3  # passes over the corpus
MAX_STEPS: int = 0  # ends earlier; 0 = all the epochs
SEQUENCES_PER_BATCH: int = 16  # packed sequences per forward pass
ACCUMULATE: int = 2  # forward passes per optimizer step
ACCUMULATE_WARMUP: float = 0.0  # share of the run over which that grows from 1 (batch-size warm-up)
LEARNING_RATE: float = 5e-4  # of the plateau
WARMUP: float = 0.05  # share of the steps, linear from 0
DECAY: float = 0.2  # share of the steps at the end, 1 - sqrt to 0
WEIGHT_DECAY: float = 0.01  # matrices only
CLIP: float = 1.0  # bound on the gradient's norm; 0 = none
OPTIMIZER: Literal["stable_adamw", "adamw"] = "stable_adamw"  # the paper's, or torch's fused one
PRECISION: Literal["auto", "fp32", "bf16"] = "auto"  # auto measures which is faster here
CHECKPOINT_EVERY: int = 500  # steps; what a kill can cost
EVALUATE_EVERY: int = 1_000  # steps; 0 = before and after only

# Output
SEED: int = 42  # of the order and of the masks
RECIPE: str = "small_v2"  # runs/<recipe>/mlm/pre_train
VARIANT: str = ""  # a second run in the same recipe: ...@<variant>
REPORT_TO: list[str] = []  # show the figures in tensorboard, trackio, wandb, too
OVERWRITE: bool = False  # redo a finished stage


def main() -> None:
    """Tokenise once, pack, train, keep the best, save with the head."""
    inputs = find_inputs()
    with stages.Stage(globals(), inputs) as stage:
        if stage.finished:
            return
        import torch

        from small_modernbert.models import precision, students
        from small_modernbert.training import loop, masked_lm

        torch.manual_seed(SEED)  # a bare student gets a fresh head
        student = students.load_student(inputs["student"], masked_lm=True)
        tokens, weights = read_corpus(stage, inputs["corpus"], student)
        student.extend_context(SEQUENCE_TOKENS, GLOBAL_ROPE_THETA)
        student.to(precision.default_device())
        task = masked_lm.MaskedTask(
            student.transformer,
            student.tokenizer,
            tokens["train"],
            tokens["held_out"].head(min(HELD_OUT_ROWS, len(tokens["held_out"]))),
            sequence_tokens=SEQUENCE_TOKENS,
            sequences_per_batch=SEQUENCES_PER_BATCH,
            probability=MASKING,
            precision=precision.settle(stage, PRECISION, student.device),
            seed=SEED,
            weights=weights,
        )
        optimizer, plan = loop.prepare(
            globals(),
            student.transformer,
            select_by="held_out_loss" if task.held_out_batches else "",
            lower_is_better=True,
        )
        stages.logger.info("packing fills %.2f %% of each sequence", 100 * task.fill)
        outcome = loop.train(task, optimizer, plan, stage)
        student.save(stage.building)
        loop.finish(stage, outcome, "held_out_loss", student)


def find_inputs() -> dict[str, Path]:
    """Resolve every reference before anything is loaded."""
    return {
        "student": references.need(STUDENT, RECIPE, "student", "run: python mlm/init_model_mlm.py"),
        "corpus": references.need(CORPUS, RECIPE, "corpus", "run: python mlm/create_dataset.py"),
    }


def read_corpus(
    stage: stages.Stage, folder: Path, student: "Student"
) -> "tuple[dict[str, TokenStore | StreamedRows], np.ndarray | None]":
    """Tokenise both splits; weigh the training texts if MIXTURE is given, else None.

    Raises:
        UserError: the sequences are longer than the student takes, and the texts are not.
    """
    from small_modernbert.data import corpus, streamed_rows
    from small_modernbert.training import masked_lm

    texts = corpus.open_corpus(folder)
    backend = student.cut_at(SEQUENCE_TOKENS)
    reading = streamed_rows.Reading(
        texts, ("text",), lambda batch: batch.column(0).to_pylist(), backend
    )
    tokens = streamed_rows.open_splits(stage, "corpus", reading, WINDOW_ROWS)
    weights = masked_lm.mixture_weights(MIXTURE, texts.sources()) if MIXTURE else None
    lengths = tokens["train"].lengths
    masked_lm.check_extension(lengths, weights, student.max_tokens, SEQUENCE_TOKENS)
    return tokens, weights


if __name__ == "__main__":
    settings.run(globals())
