r"""Distillation from stored vectors, ours against SentenceTransformerTrainer + MSELoss, texts/s.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: runs/bench/distillation.json; prints the table.

    python bench/distillation.py
    python bench/distillation.py --quick

One pass over the texts of a round. The peer tokenises batch by batch, so ours tokenises inside the
clock too, although a second pass would find the tokens on disk. The labels are random unit
vectors: a step costs the same whatever it learns.
"""

import tempfile
import time
from pathlib import Path

import ceiling
import claims
import harness
import inputs

from small_modernbert.runs import settings

# Data
TEXTS: int = 256  # of a round, of realistic lengths
WARMUP_TEXTS: int = 64  # of the round that is not counted
LONGEST: int = 512  # tokens of a text at most
PRESET: str = "offline"  # the student, random weights

# Ours, as distil_modernbert.py
ROWS_PER_BATCH: int = 64  # texts a step at most
TOKENS_PER_BATCH: int = 16_384  # tokens a step at most

# Rounds
ROUNDS: int = 5  # counted, after one warm-up
THREADS: int = 0  # 0 = all processors
QUICK: bool = False  # one round of few texts, to see that it works
SEED: int = 42  # of texts, labels and weights

DEFAULTS = (
    "Trainer",
    "`SentenceTransformerTrainer` + `MSELoss`, defaults (batches of 8), `bf16=True`.",
)
SAME_BATCH = (
    "Trainer, our batch",
    "the same with `per_device_train_batch_size` as many texts as a batch of ours.",
)
# From profiles on the machine of docs/BENCHMARKS.md; shown where the bound is missed.
REASONS = {"defaults": ""}
DEFAULT_BATCH = 8
LEARNING_RATE = 1e-4


def main() -> None:
    """Write texts, labels and the student, let the three and the ceiling work, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(TEXTS=64, WARMUP_TEXTS=16, ROUNDS=1, LONGEST=128)
    teacher = inputs.locate(inputs.TEACHER)
    texts = inputs.make_texts(
        inputs.locate(inputs.TEXT), (ROUNDS + 1) * TEXTS, seed=SEED, longest=LONGEST
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs.make_student(folder / "student", PRESET, teacher, SEED)
        inputs.write_texts(folder / "texts.parquet", texts)
        common = {"folder": place, "texts": TEXTS, "warmup": WARMUP_TEXTS, "seed": SEED}
        sizes = {"rows_per_batch": ROWS_PER_BATCH, "tokens_per_batch": TOKENS_PER_BATCH}
        results = harness.run(
            [
                harness.Contender("ours", ours, common | sizes),
                harness.Contender("defaults", trainer, common | {"batch": DEFAULT_BATCH}),
                harness.Contender("same batch", trainer, common | {"batch": ROWS_PER_BATCH}),
                harness.Contender("ceiling", ceiling.gemm),
            ],
            ROUNDS,
            THREADS,
        )
    mine, rates = results["ours"], claims.ceilings(results["ceiling"])
    rows = [
        claims.versus(
            "MSE distillation, texts/s",
            mine,
            results["defaults"],
            DEFAULTS,
            least=2.5,
            ceilings=rates,
            reason=REASONS["defaults"],
        ),
        claims.versus(
            "MSE distillation, texts/s",
            mine,
            results["same batch"],
            SAME_BATCH,
            ceilings=rates,
        ),
    ]
    setting = (
        f"Student {PRESET!r}; {TEXTS:,} texts a round, of log-normal lengths, median "
        f"{inputs.MEDIAN_TOKENS} tokens, at most {LONGEST}; ours in batches of {ROWS_PER_BATCH}."
    )
    claims.publish(
        __file__, rows, setting=setting, ceilings=rates, seconds=time.monotonic() - begun
    )


def slice_of(number: int, texts: int, warmup: int) -> slice:
    """Return a round's rows; every contender gets the same."""
    return slice(number * texts, number * texts + (texts if number else warmup))


def unit_vectors(rows: int, width: int, seed: int) -> "inputs.np.ndarray":
    """Return `(rows, width)` float16 random directions, as label shards hold them."""
    from small_modernbert.models.teachers import normalise

    drawn = inputs.np.random.default_rng(seed).standard_normal((rows, width), dtype="float32")
    return normalise(drawn).astype("float16")


def ours(
    folder: str, texts: int, warmup: int, seed: int, rows_per_batch: int, tokens_per_batch: int
) -> harness.Round:
    """Prepare the student and its optimizer; a round tokenises its texts and trains on them."""
    from small_modernbert.data.token_store import store
    from small_modernbert.models import precision, students
    from small_modernbert.training import distillation, loop

    place = Path(folder)
    student = students.load_student(place / "student").to(precision.default_device())
    encoder = student.encoder(precision.decide("auto", student.device)[0])
    model, backend = encoder.model, student.backend
    found = inputs.read_texts(place / "texts.parquet")
    vectors = unit_vectors(len(found), student.width, seed)
    optimizer = loop.make_optimizer(
        "stable_adamw", model, learning_rate=LEARNING_RATE, weight_decay=0.01
    )

    def work(number: int, clock: harness.Clock) -> harness.Work:
        rows = slice_of(number, texts, warmup)
        clock.start()
        tokens = store(found[rows], backend, place / "tokens", str(number))
        task = distillation.DistillationTask(
            encoder,
            tokens,
            vectors[rows],
            distillation.loss_function("mse", 1.0),
            dict,
            tokens_per_batch=tokens_per_batch,
            rows_per_batch=rows_per_batch,
            seed=seed,
        )
        inputs.train_round(
            task,
            list(task.epoch(0)),
            optimizer,
            LEARNING_RATE,
            clock,
            place / "steps",
            started=True,
        )
        total = float(tokens.lengths.sum())
        flops = ceiling.TRAINING * ceiling.encoder_flops(model.config, tokens.lengths)
        return harness.Work(len(tokens), total, total, flops)

    return work


def trainer(folder: str, texts: int, warmup: int, seed: int, batch: int) -> harness.Round:
    """Prepare the peer: a new Trainer a round, on the same student."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss

    place = Path(folder)
    model = SentenceTransformer(str(place / "student"))
    found = inputs.read_texts(place / "texts.parquet")
    vectors = unit_vectors(len(found), model.get_embedding_dimension(), seed).astype("float32")
    count = inputs.count_tokens(model[0])

    def work(number: int, clock: harness.Clock) -> harness.Work:
        rows = slice_of(number, texts, warmup)
        arguments = SentenceTransformerTrainingArguments(
            output_dir=f"{folder}/trainer",
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            bf16=True,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            report_to="none",
        )
        count.real = count.processed = 0
        peer = SentenceTransformerTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_dict({"text": found[rows], "label": vectors[rows].tolist()}),
            loss=MSELoss(model),
            callbacks=[inputs.clock_callback(clock)],
        )
        peer.train()
        return harness.Work(len(found[rows]), count.real, count.processed)

    return work


if __name__ == "__main__":
    settings.run(globals())
