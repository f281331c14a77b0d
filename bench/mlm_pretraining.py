r"""Masked-language-modelling steps, ours against transformers' Trainer, real tokens a second.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: runs/bench/mlm_pretraining.json; prints the table.

    python bench/mlm_pretraining.py
    python bench/mlm_pretraining.py --quick

Two peers: the Trainer and its collator as their documentation writes them, and the same with length
grouping and bf16. Tokenising is done before the clock starts, for all three.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import ceiling
import claims
import harness
import inputs

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
OUR_STEPS: int = 8  # steps a round
PADDED_STEPS: int = 1  # steps a round of the first peer
GROUPED_STEPS: int = 8  # steps a round of the second one
QUICK: bool = False  # one round of one step with a small model, to see that it works
SEED: int = 42  # of texts, weights, order and masks

LEARNING_RATE = 5e-4
PADDED = (
    "Trainer, padded",
    "`Trainer` + `DataCollatorForLanguageModeling`, batches of 32 in random order, fp32.",
)
GROUPED = (
    "Trainer, grouped, bf16",
    'the same with `train_sampling_strategy="group_by_length"` and `bf16=True`.',
)
# From profiles on the machine of docs/BENCHMARKS.md; shown where the bound is missed.
REASONS = {
    "padded": "",
    "grouped": "",
    "ceiling": (
        "matrix products are 57 % of a step's time, attention's batched products 6 %, copies and "
        "casts to bf16 7 %; the rest is softmax of the vocabulary, StableAdamW over 40M weights, "
        "norms and GeGLU, which the processor's memory bounds"
    ),
}


def main() -> None:
    """Write the texts, let the three and the ceiling work in turn, publish."""
    begun = time.monotonic()
    shrink_if_quick()
    teacher = inputs.locate(inputs.TEACHER)
    texts = inputs.make_texts(inputs.locate(inputs.TEXT), ROWS, seed=SEED, longest=LONGEST)
    with tempfile.TemporaryDirectory() as place:
        inputs.write_texts(Path(place) / "texts.parquet", texts)
        common = {
            "folder": place,
            "tokenizer": str(teacher),
            "longest": LONGEST,
            "masking": MASKING,
            "preset": PRESET,
            "vocabulary": VOCABULARY,
            "seed": SEED,
        }
        peer = common | {"batch": PEER_BATCH}
        results = harness.run(
            [
                harness.Contender("ours", ours, common | {"sequences": SEQUENCES} | steps("our")),
                harness.Contender("padded", trainer, peer | {"grouped": False} | steps("padded")),
                harness.Contender("grouped", trainer, peer | {"grouped": True} | steps("grouped")),
                harness.Contender("ceiling", ceiling.gemm),
            ],
            ROUNDS,
            THREADS,
        )
    mine, padded, grouped = (results[name] for name in ("ours", "padded", "grouped"))
    rates = claims.ceilings(results["ceiling"])
    less = claims.Check("peak memory of the peer over ours", padded.peak_mib / mine.peak_mib, 4.0)
    rows = [
        claims.versus(
            "MLM pre-training, real tokens/s",
            mine,
            padded,
            PADDED,
            least=8.5,
            ceilings=rates,
            checks=[less],
            reason=REASONS["padded"],
        ),
        claims.versus(
            "MLM pre-training, real tokens/s",
            mine,
            grouped,
            GROUPED,
            least=1.8,
            ceilings=rates,
            reason=REASONS["grouped"],
        ),
        claims.of_ceiling("MLM step", mine, rates, 0.6, REASONS["ceiling"]),
    ]
    setting = (
        f"{PRESET}, vocabulary {VOCABULARY:,}; {MASKING:.0%} masked; texts of log-normal lengths, "
        f"median {inputs.MEDIAN_TOKENS} tokens, at most {LONGEST}; a step of ours is about "
        f"{SEQUENCES * LONGEST:,} tokens, of the peers {PEER_BATCH} texts."
    )
    claims.publish(
        __file__, rows, setting=setting, ceilings=rates, seconds=time.monotonic() - begun
    )


def steps(name: str) -> dict[str, int]:
    """Return a contender's number of steps as its argument."""
    return {"steps": globals()[f"{name.upper()}_STEPS"]}


def shrink_if_quick() -> None:
    """Make the run as small as it can be, if that is wanted."""
    if QUICK:
        globals().update(
            ROWS=600,
            ROUNDS=1,
            PRESET="offline",
            VOCABULARY=30_528,
            LONGEST=128,
            OUR_STEPS=1,
            PADDED_STEPS=1,
            GROUPED_STEPS=1,
            PEER_BATCH=8,
            SEQUENCES=2,
        )


def make_model(tokenizer: str, preset: str, vocabulary: int, seed: int, *, sparse: bool) -> Any:  # noqa: ANN401  a ModernBertForMaskedLM
    """Return the model with its head, of random weights, and its tokenizer."""
    import torch
    from transformers import ModernBertForMaskedLM

    from small_modernbert.models import architecture, students

    loaded = students.load_tokenizer(Path(tokenizer))
    config = architecture.configure(architecture.choose(preset), loaded)
    config.vocab_size, config.sparse_prediction = vocabulary, sparse
    torch.manual_seed(seed)
    return ModernBertForMaskedLM(config), loaded


def tokenise(folder: str, tokenizer: str, longest: int) -> Any:  # noqa: ANN401  a TokenStore
    """Return the token ids of all texts; each contender makes its own store, before the clock."""
    import os

    from small_modernbert.data.token_store import store
    from small_modernbert.models.loading import load_backend

    texts = inputs.read_texts(Path(folder) / "texts.parquet")
    backend = load_backend(Path(tokenizer), longest)
    return store(texts, backend, Path(folder) / f"tokens-{os.getpid()}", "bench")


def ours(
    folder: str,
    tokenizer: str,
    longest: int,
    masking: float,
    preset: str,
    vocabulary: int,
    seed: int,
    sequences: int,
    steps: int,
) -> harness.Round:
    """Prepare our task and its optimizer; a round takes the next batches of the epoch."""
    from small_modernbert.models import precision
    from small_modernbert.training import loop, masked_lm

    model, loaded = make_model(tokenizer, preset, vocabulary, seed, sparse=True)
    model.to(precision.default_device())
    tokens = tokenise(folder, tokenizer, longest)
    task = masked_lm.MaskedTask(
        model,
        loaded,
        tokens,
        tokens.head(0),
        sequence_tokens=longest,
        sequences_per_batch=sequences,
        probability=masking,
        precision=precision.decide("auto", model.device)[0],
        seed=seed,
    )
    optimizer = loop.make_optimizer(
        "stable_adamw", model, learning_rate=LEARNING_RATE, weight_decay=0.01
    )
    waiting = iter(task.epoch(0))

    def work(number: int, clock: harness.Clock) -> harness.Work:
        batches = [next(waiting) for _ in range(steps if number else 1)]
        inputs.train_round(task, batches, optimizer, LEARNING_RATE, clock, Path(folder) / "steps")
        lengths = tokens.lengths[[row for _, rows in batches for row in rows]]
        total = float(lengths.sum())
        return harness.Work(total, total, total, useful(model.config, lengths, masking))

    return work


def trainer(
    folder: str,
    tokenizer: str,
    longest: int,
    masking: float,
    preset: str,
    vocabulary: int,
    seed: int,
    batch: int,
    grouped: bool,
    steps: int,
) -> harness.Round:
    """Prepare the peer: a Trainer a round, on the batches that its own sampler would give."""
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    from small_modernbert.models.precision import default_device

    model, loaded = make_model(tokenizer, preset, vocabulary, seed, sparse=False)
    tokens = tokenise(folder, tokenizer, longest)
    rows = Dataset.from_dict({"input_ids": [tokens[row].tolist() for row in range(len(tokens))]})
    batches = inputs.trainer_batches(tokens.lengths, batch, grouped, steps, seed)
    collator = DataCollatorForLanguageModeling(loaded, mlm_probability=masking)
    count = inputs.count_tokens(model)

    def work(number: int, clock: harness.Clock) -> harness.Work:
        order = [row for one in batches(number) for row in one]
        arguments = TrainingArguments(
            output_dir=f"{folder}/trainer",
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            # The order is the sampler's own already.
            train_sampling_strategy="sequential",
            bf16=grouped,
            use_cpu=default_device().type == "cpu",
            save_strategy="no",
            report_to="none",
        )
        before = inputs.TokenCount(count.real, count.processed)
        peer = Trainer(
            model,
            arguments,
            data_collator=collator,
            train_dataset=rows.select(order),
            callbacks=[inputs.clock_callback(clock)],
        )
        peer.train()
        real, processed = count.real - before.real, count.processed - before.processed
        return harness.Work(
            real, real, processed, useful(model.config, tokens.lengths[order], masking)
        )

    return work


def useful(config: Any, lengths: Any, masking: float) -> float:  # noqa: ANN401  a configuration, an array
    """Return the useful operations of training steps over texts of these lengths."""
    predictions = masking * float((lengths - inputs.SPECIAL_TOKENS).sum())
    forward = ceiling.encoder_flops(config, lengths)
    return ceiling.TRAINING * (forward + ceiling.prediction_flops(config, predictions))


if __name__ == "__main__":
    settings.run(globals())
