r"""Masked-language-modelling steps, ours against transformers' Trainer, real tokens a second.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: runs/bench/mlm_pretraining.json; prints the table.

    python bench/mlm_pretraining.py
    python bench/mlm_pretraining.py --quick

Ours is mlm/pre_train.py, by the steps in its metrics.jsonl. Two peers: the Trainer and its collator
as their documentation writes them, and the same with length grouping and bf16. Tokenising is done
before the clock starts, for all three.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import inputs
import measure
import numpy as np
import peak
from measure import Contender, Work

from small_modernbert.runs import settings

# Data
ROWS: int = 16_000  # texts that batches are drawn from; realistic lengths
LONGEST: int = 512  # tokens of a text at most
MASKING: float = 0.3  # share of the tokens to predict

# Model: 12 x 384 / 768, six heads
PRESET: str = "small-v2"  # of architecture.py
VOCABULARY: int = 50_368  # ModernBERT's size; the ids are WordPiece ones, so a part of it is idle

# Batches
PEER_BATCH: int = 32  # texts of a step
SEQUENCES: int = 6  # packed sequences of LONGEST tokens a step: as many real tokens as the peer's

# Rounds
ROUNDS: int = 3  # counted, after one warm-up
THREADS: int = 0  # 0 = all processors
STEPS: int = 8  # steps a round
PADDED_STEPS: int = 1  # steps a round of the first peer, which is slow
QUICK: bool = False  # one round of one step with a small model, to see that it works
SEED: int = 42  # of texts, weights, order and masks

PADDED = (
    "Trainer, padded",
    "`Trainer` + `DataCollatorForLanguageModeling`, batches of 32 in random order, fp32; "
    "`sparse_prediction` off, as it is by default.",
)
GROUPED = (
    "Trainer, grouped, bf16",
    'the same with `train_sampling_strategy="group_by_length"` and `bf16=True`.',
)
# From a profile on the machine of docs/BENCHMARKS.md; shown where the bound is missed.
REASON = (
    "matrix products are 57 % of a step's time, attention's batched products 6 %, copies and casts "
    "to bf16 7 %; the rest is softmax of the vocabulary, StableAdamW over 40M weights, norms and "
    "GeGLU, which the processor's memory bounds"
)
# The Trainer's grouping sampler sorts inside windows of this many batches (trainer_pt_utils).
WINDOW_BATCHES = 50


def main() -> None:
    """Write texts and student, let the three and the products work in turn, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(ROWS=600, ROUNDS=1, PRESET="offline", VOCABULARY=0, LONGEST=128)
        globals().update(STEPS=1, PADDED_STEPS=1, PEER_BATCH=8, SEQUENCES=2)
    teacher = inputs.locate(inputs.TEACHER)
    texts = inputs.make_texts(inputs.locate(inputs.TEXT), ROWS, seed=SEED, longest=LONGEST)
    with tempfile.TemporaryDirectory() as place:
        inputs.write_texts(Path(place) / "texts.parquet", texts)
        inputs.make_student(Path(place) / "student", teacher, SEED, PRESET, VOCABULARY)
        common = {"folder": place, "longest": LONGEST, "masking": MASKING, "seed": SEED}
        peer = common | {"batch": PEER_BATCH}
        contenders = [
            Contender("ours", ours, common | {"sequences": SEQUENCES, "steps": STEPS}),
            Contender("padded", trainer, peer | {"grouped": False, "steps": PADDED_STEPS}),
            Contender("grouped", trainer, peer | {"grouped": True, "steps": STEPS}),
            Contender("products", peak.products),
        ]
        done = measure.run(contenders, ROUNDS, THREADS)
    mine, ceilings = done["ours"], peak.ceilings(done["products"])
    memory = measure.peak_mib(done["padded"]) / measure.peak_mib(mine)
    less = measure.check("peak memory of the peer over ours", memory, least=4.0)
    what = "MLM pre-training, real tokens/s"
    claims = [
        measure.versus(
            what, done, ("ours", "padded"), PADDED, ceilings=ceilings, least=8.5, checks=[less]
        ),
        measure.versus(what, done, ("ours", "grouped"), GROUPED, ceilings=ceilings, least=1.8),
        measure.of_peak("MLM step", mine, ceilings, REASON),
    ]
    setting = (
        f"{PRESET}, vocabulary {VOCABULARY:,}; {MASKING:.0%} masked; texts of log-normal lengths, "
        f"median {inputs.MEDIAN_TOKENS} tokens, at most {LONGEST}; a step of ours is about "
        f"{SEQUENCES * LONGEST:,} tokens, of the peers {PEER_BATCH} texts."
    )
    measure.publish(__file__, claims, setting=setting, ceilings=ceilings, begun=begun)


def ours(
    folder: str, longest: int, masking: float, seed: int, sequences: int, steps: int
) -> measure.Round:
    """Build the corpus; a round is a run of mlm/pre_train.py."""
    os.environ["RUNS"] = f"{folder}/runs"
    corpus = {"sources": ["offline"], "offline_text": f"{folder}/texts.parquet"}
    corpus |= {"tokenizer": f"{folder}/student", "max_tokens": longest, "held_out_rows": 0}
    inputs.run_stage("mlm/create_dataset", "bench", **corpus)
    config, lengths = model_and_lengths(folder, longest)[1:]

    def work(number: int) -> Work:
        stage = inputs.run_stage(
            "mlm/pre_train",
            "bench",
            student=f"{folder}/student",
            sequence_tokens=longest,
            sequences_per_batch=sequences,
            accumulate=1,
            masking=masking,
            max_steps=1 + (steps if number else 1),
            evaluate_every=0,
            checkpoint_every=0,
            seed=seed + number,
        )
        lines = inputs.steps_of(stage)
        tokens = sum(line["tokens"] for line in lines)
        # All rows together have the mean cost a token of any batch.
        flops = useful(config, lengths, masking) * tokens / lengths.sum()
        return Work(tokens, sum(line["seconds"] for line in lines), flops)

    return work


def trainer(
    folder: str, longest: int, masking: float, seed: int, batch: int, grouped: bool, steps: int
) -> measure.Round:
    """Prepare the peer: a Trainer a round, on batches such as its own sampler would give."""
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    from small_modernbert.models.precision import default_device

    model, _, lengths = model_and_lengths(folder, longest)
    # Our students predict masked places alone; transformers does so only where it is asked to.
    model.config.sparse_prediction = model.sparse_prediction = False
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/student")
    texts = inputs.read_texts(Path(folder) / "texts.parquet")
    rows = Dataset.from_dict(
        {"input_ids": tokenizer(texts, truncation=True, max_length=longest)["input_ids"]}
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=masking)

    def work(number: int) -> Work:
        size = batch if number else max(1, batch // 4)  # a full padded one can take a minute
        order = draw_batches(lengths, size, steps if number else 1, grouped, seed + number)
        arguments = TrainingArguments(
            output_dir=f"{folder}/trainer",
            per_device_train_batch_size=size,
            num_train_epochs=1,
            train_sampling_strategy="sequential",  # the order is the sampler's own already
            bf16=grouped,
            use_cpu=default_device().type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        peer = Trainer(model, arguments, data_collator=collator, train_dataset=rows.select(order))
        # Its own clock: of the steps, not of the set-up.
        return Work(float(lengths[order].sum()), peer.train().metrics["train_runtime"])

    return work


def draw_batches(
    lengths: np.ndarray, batch: int, steps: int, grouped: bool, seed: int
) -> np.ndarray:
    """Return rows in the order of the Trainer's sampler, `steps` batches of them.

    Grouped batches are of very different lengths: drawn are evenly spaced ones of a window of the
    sampler, so that a round holds long and short ones as an epoch does.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    if not grouped:
        return order[: steps * batch]
    window = order[: WINDOW_BATCHES * batch]
    window = window[np.argsort(-lengths[window], kind="stable")]
    batches = [window[begin : begin + batch] for begin in range(0, len(window), batch)]
    batches = [rows for rows in batches if len(rows) == batch]
    places = (np.arange(steps) + 0.5) * len(batches) / steps
    return np.concatenate([batches[int(place)] for place in places])


def model_and_lengths(folder: str, longest: int) -> tuple[Any, Any, np.ndarray]:
    """Return the student with its head, its configuration, and the tokens of each text."""
    from transformers import AutoTokenizer, ModernBertForMaskedLM

    model = ModernBertForMaskedLM.from_pretrained(f"{folder}/student")
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/student")
    texts = inputs.read_texts(Path(folder) / "texts.parquet")
    ids = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
    return model, model.config, np.array([len(tokens) for tokens in ids])


def useful(config: Any, lengths: np.ndarray, masking: float) -> float:  # noqa: ANN401  a configuration
    """Return the useful operations of training steps over texts of these lengths."""
    predictions = masking * float((lengths - inputs.SPECIAL_TOKENS).sum())
    forward = peak.encoder_flops(config, lengths)
    return peak.TRAINING * (forward + peak.prediction_flops(config, predictions))


if __name__ == "__main__":
    settings.run(globals())
