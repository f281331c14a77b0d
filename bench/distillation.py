r"""Distillation from stored vectors, ours against SentenceTransformerTrainer + MSELoss, texts/s.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: runs/bench/distillation.json; prints the table.

    python bench/distillation.py
    python bench/distillation.py --quick

Ours is distil_modernbert.py, by the steps in its metrics.jsonl; the peer tokenises in its steps, so
what tokenising takes is added to ours. The labels are random unit vectors: a step costs the same
whatever it learns.
"""

import os
import tempfile
import time
from pathlib import Path

import inputs
import measure
import numpy as np
import peak
from measure import Contender, Work

from small_modernbert.runs import settings

# Data
TEXTS: int = 320  # of a round, of realistic lengths
LONGEST: int = 512  # tokens of a text at most
PRESET: str = "offline"  # the student, random weights

# Ours, as distil_modernbert.py
ROWS_PER_BATCH: int = 64  # texts a step at most

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
DEFAULT_BATCH = 8


def main() -> None:
    """Write texts, labels and the student, let the three and the products work, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(TEXTS=160, ROUNDS=1, LONGEST=128)
    teacher, source = inputs.locate(inputs.TEACHER), inputs.locate(inputs.TEXT)
    texts = inputs.make_texts(source, TEXTS, seed=SEED, longest=LONGEST)
    with tempfile.TemporaryDirectory() as place:
        inputs.make_student(Path(place) / "student", teacher, SEED, PRESET)
        write_labels(Path(place) / "labels", texts, Path(place) / "student")
        contenders = [
            Contender("ours", ours, {"folder": place, "rows_per_batch": ROWS_PER_BATCH}),
            Contender("defaults", trainer, {"folder": place, "batch": DEFAULT_BATCH}),
            Contender("same batch", trainer, {"folder": place, "batch": ROWS_PER_BATCH}),
            Contender("products", peak.products),
        ]
        done = measure.run(contenders, ROUNDS, THREADS)
    ceilings = peak.ceilings(done["products"])
    what = "MSE distillation, texts/s"
    claims = [
        measure.versus(what, done, ("ours", "defaults"), DEFAULTS, least=2.5, ceilings=ceilings),
        measure.versus(what, done, ("ours", "same batch"), SAME_BATCH, ceilings=ceilings),
    ]
    setting = (
        f"Student {PRESET!r}; {TEXTS:,} texts a round, of log-normal lengths, median "
        f"{inputs.MEDIAN_TOKENS} tokens, at most {LONGEST}; ours in batches of {ROWS_PER_BATCH}."
    )
    measure.publish(__file__, claims, setting=setting, ceilings=ceilings, begun=begun)


def write_labels(folder: Path, texts: list[str], student: Path) -> None:
    """Write the texts with random directions as a folder of label shards."""
    from small_modernbert.data import labels
    from small_modernbert.models.vectors import normalise
    from small_modernbert.runs import storage

    width = storage.read_json(student / "config.json", "run it again")["hidden_size"]
    drawn = np.random.default_rng(SEED).standard_normal((len(texts), width), dtype=np.float32)
    labels.write_shard(labels.shard_path(folder, "train", 0), texts, normalise(drawn))
    labels.write_index(folder, width, {"train": 1})


def ours(folder: str, rows_per_batch: int) -> measure.Round:
    """Prepare the student; a round is one pass of distil_modernbert.py over the labels."""
    from transformers import AutoConfig, AutoTokenizer

    from small_modernbert.data.labels import open_labels

    os.environ["RUNS"] = f"{folder}/runs"
    config, tokenizer = (
        kind.from_pretrained(f"{folder}/student") for kind in (AutoConfig, AutoTokenizer)
    )
    texts = list(open_labels(Path(folder) / "labels").texts("train"))

    def work(number: int) -> Work:
        stage = inputs.run_stage(
            "distil_modernbert",
            "bench",
            student=f"{folder}/student",
            labels=f"{folder}/labels",
            epochs=1,
            rows_per_batch=rows_per_batch,
            validation_sets=[],
            select_by="",
            evaluate_every=0,
            checkpoint_every=0,
            seed=number,
        )
        begun = time.perf_counter()
        ids = tokenizer(texts, truncation=True)["input_ids"]
        tokenising = time.perf_counter() - begun
        lines = inputs.steps_of(stage)
        tokens = sum(line["tokens"] for line in lines)
        share = tokens / sum(map(len, ids))
        seconds = sum(line["seconds"] for line in lines) + share * tokenising
        flops = peak.TRAINING * share * peak.encoder_flops(config, list(map(len, ids)))
        return Work(share * len(texts), seconds, flops)

    return work


def trainer(folder: str, batch: int) -> measure.Round:
    """Prepare the peer: a new Trainer a round, on the same student, texts and labels."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss

    from small_modernbert.data.labels import open_labels

    model = SentenceTransformer(f"{folder}/student")
    stored = open_labels(Path(folder) / "labels")
    texts = list(stored.texts("train"))
    vectors = stored.vectors("train", Path(folder) / f"vectors-{batch}").astype("float32")

    def work(number: int) -> Work:
        rows = len(texts) if number else batch
        arguments = SentenceTransformerTrainingArguments(
            output_dir=f"{folder}/trainer",
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            bf16=True,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        peer = SentenceTransformerTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_dict(
                {"text": texts[:rows], "label": vectors[:rows].tolist()}
            ),
            loss=MSELoss(model),
        )
        # Its own clock: of the steps, not of the set-up.
        return Work(rows, peer.train().metrics["train_runtime"])

    return work


if __name__ == "__main__":
    settings.run(globals())
