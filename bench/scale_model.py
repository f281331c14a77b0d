r"""What 10**6 to 10**10 texts take: bytes, GPU-hours, files, memory, and what breaks first.

Reads: nothing; the constants below are of measured runs, and say of which.
Writes: docs/SCALE.md.

    python bench/scale_model.py

Arithmetic, not a measurement, but for two things that are measured here: the memory and the time
in which the coordinators (one process each) plan a pass or find duplicates, at a size and at four
times that, which the first must predict. The rest is held against a `make run`.
"""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import peak

from small_modernbert.data import duplicates
from small_modernbert.models import architecture, packing
from small_modernbert.runs import report, settings, storage
from small_modernbert.runs.references import ROOT

TEXTS: list[int] = [10**6, 10**8, 10**9, 10**10]  # sizes told
TRIAL_TEXTS: int = 100_000  # that coordinators are measured on; then four times as many

# A text, as in the `make run` of 2026-11-25 (28,000 texts, 2,208,259 tokens)
TOKENS_PER_TEXT: int = 79  # short queries and passages of at most 256
CORPUS_BYTES: int = 164  # of a text in the corpus' shards

# Rates on the two cores of docs/BENCHMARKS.md
CORPUS_ROWS_PER_CORE: float = 25_307 / 2  # a second
CPU_RATE: float = 430e9  # bf16 operations a second in a matrix product
SHARES = {  # of that rate, in useful operations
    "labels": 0.53,
    "pre-training": 0.44,
    "distillation": 0.30,
}

# A GPU: assumed, none was run
GPU_RATE: float = 989e12  # an H100's dense bf16 operations a second, by its data sheet
GPU_SHARE: float = 0.35  # of it; what trainers of encoders this small report is 0.2 to 0.5

# The full recipe
EPOCHS = {"labels": 1, "pre-training": 3, "distillation": 2}
MASKED: float = 0.3  # share of the tokens predicted in pre-training
ROWS_PER_SHARD: int = 2_048  # of labels
MANIFEST_BYTES: int = 170  # of labels.json for a shard

# What a machine has
MEMORY_GIB: int = 256  # shared by its ranks
RANKS: int = 8  # on it; each plans for itself
DISK_TB: int = 8  # for one copy of text, labels and the vectors' cache
PAUSE_HOURS: float = 1.0  # that all GPUs may wait for a plan
FILES: int = 100_000  # in one folder before listing it hurts

TEACHER = SimpleNamespace(  # gte-modernbert-base, the recipe's
    model_type="modernbert", hidden_size=768, intermediate_size=1_152, vocab_size=50_368,
    local_attention=128, layer_types=architecture.layer_types(22, 3),
)  # fmt: skip
MINILM = SimpleNamespace(  # all-MiniLM-L6-v2, the teacher of `make run`
    model_type="bert", hidden_size=384, intermediate_size=1_536, num_hidden_layers=6
)
# Of that `make run`: tokens a second while labelling and while distilling; bytes of the labels
RUN = {"labels": 8_657, "distillation": 8_712, "bytes": 18_635_131, "texts": 28_000, "width": 256}


class Cost(NamedTuple):
    """What a coordinator takes for a text."""

    bytes: float
    seconds: float


def student(preset: str) -> SimpleNamespace:
    """Return the configuration of a preset over ModernBERT's vocabulary."""
    shape = architecture.PRESETS[preset]
    return SimpleNamespace(
        model_type="modernbert",
        hidden_size=shape.hidden_size,
        intermediate_size=shape.geglu_units,
        vocab_size=TEACHER.vocab_size,
        local_attention=shape.local_attention,
        layer_types=architecture.layer_types(shape.num_hidden_layers, shape.global_every),
    )


def operations(config: SimpleNamespace, masked: float = 0.0) -> float:
    """Return the useful operations of a forward pass, a token."""
    own = peak.encoder_flops(config, [TOKENS_PER_TEXT]) / TOKENS_PER_TEXT
    return own + (peak.prediction_flops(config, masked) if masked else 0.0)


def gpu_hours(texts: int) -> dict[str, float]:
    """Return the GPU-hours of each stage of the full recipe."""
    small = student("small-v2")
    of_token = {
        "labels": operations(TEACHER),
        "pre-training": peak.TRAINING * operations(small, MASKED),
        "distillation": peak.TRAINING * operations(small),
    }
    tokens = texts * TOKENS_PER_TEXT
    return {
        stage: EPOCHS[stage] * tokens * each / (GPU_RATE * GPU_SHARE) / 3600
        for stage, each in of_token.items()
    }


def label_bytes(width: int) -> int:
    """Return the bytes of a label: fp16 numbers, and its text beside."""
    return 2 * width + CORPUS_BYTES


def disk_bytes() -> int:
    """Return the bytes of a text on disk: corpus, tokens, labels and their vectors once more."""
    width = student("small-v2").hidden_size
    return CORPUS_BYTES + 4 * TOKENS_PER_TEXT + 8 + label_bytes(width) + 2 * width


def coordinators(texts: int) -> dict[str, Cost]:
    """Measure what each coordinator takes for so many texts of log-normal lengths."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(4.1, 0.7, texts)), 3, 512).astype(np.int64)
    keys = random.integers(0, 2**63, texts).astype(np.uint64)
    minhash = duplicates.MinHash(64, 0.8, 0)
    nothing = np.zeros((0, 64), dtype=np.uint16)
    works: dict[str, Callable[[], object]] = {
        "exact duplicates": lambda: duplicates.exact_duplicates(keys),
        "near duplicates": lambda: duplicates.near_duplicates(
            minhash, np.ones(texts, dtype=bool), lambda band: keys, lambda rows: nothing
        ),
        "a pass of distillation, planned": lambda: packing.plan_batches(
            lengths, tokens_per_batch=16_384, rows_per_batch=64, window_batches=64, seed=0, epoch=0
        ),
        "a pass of pre-training, packed": lambda: packing.pack_into_bins(
            lengths, 1_024, seed=0, epoch=0
        ),
    }
    return {name: cost(work, texts) for name, work in works.items()}


def cost(work: Callable[[], object], texts: int) -> Cost:
    """Measure the peak of what Python and numpy allocate, then the processor time."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    begun = time.process_time()
    work()
    return Cost(most / texts, (time.process_time() - begun) / texts)


def limits(costs: dict[str, Cost]) -> list[tuple[str, float, str]]:
    """Return what breaks: its name, the number of texts, and what to do; the first one first."""
    memory = MEMORY_GIB * 2**30
    plan = costs["a pass of pre-training, packed"]
    batches = costs["a pass of distillation, planned"]
    near = costs["near duplicates"]
    return sorted(
        [
            ("label shards in one folder", FILES * ROWS_PER_SHARD,
             "fewer, larger shards: --rows-per-shard 65536"),
            ("labels and their cache on one disk", DISK_TB * 1e12 / disk_bytes(),
             "several corpora, each labelled and distilled from in turn"),
            ("packing a pass of pre-training: time", PAUSE_HOURS * 3600 / plan.seconds,
             "pack windows of the corpus, not all of it (not built)"),
            ("packing a pass of pre-training: memory", memory / RANKS / plan.bytes,
             "pack windows of the corpus (not built); until then --max-texts and several runs"),
            ("planning a pass of distillation: time", PAUSE_HOURS * 3600 / batches.seconds,
             "plan windows of the labels (not built)"),
            ("planning a pass of distillation: memory", memory / RANKS / batches.bytes,
             "plan windows of the labels (not built)"),
            ("near duplicates: memory", memory / near.bytes,
             "divide the bands' hashes by their first bits (not built)"),
        ],
        key=lambda row: row[1],
    )  # fmt: skip


def checks(few: dict[str, Cost], many: dict[str, Cost]) -> list[list[object]]:
    """Return predicted and measured figures, and the one over the other."""
    rows: list[list[object]] = []

    def add(what: str, predicted: float, measured: float) -> None:
        rows.append([what, predicted, measured, f"{predicted / measured:.2f}"])

    for name, each in few.items():
        add(f"{name}: bytes a text at 4 x", each.bytes, many[name].bytes)
        add(f"{name}: µs a text at 4 x", 1e6 * each.seconds, 1e6 * many[name].seconds)
    rate = CPU_RATE * SHARES["labels"] / operations(MINILM)
    add("`make run`, labels: tokens/s", rate, float(RUN["labels"]))
    needed = peak.TRAINING * operations(student("offline"))
    rate = CPU_RATE * SHARES["distillation"] / needed
    add("`make run`, distillation of the ModernBERT: tokens/s", rate, float(RUN["distillation"]))
    mib = RUN["texts"] * label_bytes(RUN["width"]) / 2**20
    add("`make run`, label shards: MiB", mib, RUN["bytes"] / 2**20)
    return rows


def main() -> None:
    """Measure the coordinators, work out the sizes, write the page."""
    few, many = coordinators(TRIAL_TEXTS), coordinators(4 * TRIAL_TEXTS)
    head = ["", *(f"10^{len(str(texts)) - 1}" for texts in TEXTS)]

    def row(name: str, of: Callable[[int], float]) -> list[object]:
        values = [of(texts) for texts in TEXTS]
        return [name, *(f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in values)]

    width = student("small-v2").hidden_size
    sizes = [
        row("tokens, 10^9", lambda texts: texts * TOKENS_PER_TEXT / 1e9),
        row("corpus, GB", lambda texts: texts * CORPUS_BYTES / 1e9),
        row("labels, GB", lambda texts: texts * label_bytes(width) / 1e9),
        row("disk in all, GB", lambda texts: texts * disk_bytes() / 1e9),
        row("label shards", lambda texts: -(-texts // ROWS_PER_SHARD)),
        row("labels.json, MB", lambda texts: texts / ROWS_PER_SHARD * MANIFEST_BYTES / 1e6),
        row("corpus building, core-hours", lambda texts: texts / CORPUS_ROWS_PER_CORE / 3600),
        *(
            row(f"{stage}, GPU-hours", lambda texts, stage=stage: gpu_hours(texts)[stage])
            for stage in SHARES
        ),
        *(
            row(f"{name}: memory, GiB", lambda texts, each=each: texts * each.bytes / 2**30)
            for name, each in many.items()
        ),
        *(
            row(f"{name}: hours", lambda texts, each=each: texts * each.seconds / 3600)
            for name, each in many.items()
        ),
    ]
    broken = [[what, f"{texts:.2g}", cure] for what, texts, cure in limits(many)]
    compared = checks(few, many)
    text = PAGE.format(
        sizes_table=report.table(head, sizes),
        limits_table=report.table(["what", "texts", "what to do"], broken),
        checks_table=report.table(["figure", "predicted", "measured", "ratio"], compared),
        **globals(),
    )
    storage.write_text(Path(ROOT / "docs/SCALE.md"), text)
    print(text)


PAGE = """# Scale

Written by `python bench/scale_model.py`; do not edit. Arithmetic from measured constants, which
stand in the script with their runs. A text has {TOKENS_PER_TEXT} tokens, as in `make run`; all but
planning grows in proportion to that. No GPU was run: an H100 is taken to reach {GPU_SHARE:.0%} of
its data sheet's dense bf16 rate. Stages: labels by gte-modernbert-base, small-v2 pre-trained in
{EPOCHS[pre-training]} passes and distilled in {EPOCHS[distillation]}.

{sizes_table}

Memory (the peak of what Python and numpy allocate) and hours of duplicates and plans are those of
one process on one core of this machine; each rank plans for itself. Near duplicates are told for
texts of which none meets another; each pair that meets takes 16 bytes more.

## What breaks first

With {MEMORY_GIB} GiB and {RANKS} ranks a machine, {DISK_TB} TB of disk, GPUs that may wait
{PAUSE_HOURS:g} hour for a plan, {FILES:,} files in a folder.

{limits_table}

Not modelled: reading from object storage, the network of many machines, stragglers and failures.

## Predicted and measured

The first rows predict 4 x {TRIAL_TEXTS:,} texts from {TRIAL_TEXTS:,}, the others a `make run` from
the shares that docs/BENCHMARKS.md has.

{checks_table}
"""

if __name__ == "__main__":
    settings.run(globals())
