r"""What 10**6 to 10**10 texts take: bytes, GPU-hours, files, memory, and what breaks first.

Reads: docs/scale.json (make scale); the constants below are of measured runs, and say of which.
Writes: docs/SCALE.md.

    python bench/scale_model.py

Arithmetic, not a measurement, but for two things that are measured here: the memory and the time
in which the coordinators (one process each) plan a pass or find duplicates, at a size and at four
times that, which the first must predict. The rest is held against runs of `make run`. What fails
is simulated by bench/failures.py.
"""

import math
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import failures
import numpy as np
import peak

from small_modernbert.data import duplicates
from small_modernbert.models import architecture, packing
from small_modernbert.runs import report, settings, storage
from small_modernbert.runs.references import ROOT

TEXTS: list[int] = [10**6, 10**8, 10**9, 10**10]  # sizes told
TRIAL_TEXTS: int = 100_000  # that coordinators are measured on; then four times as many

TRIALS: int = 5  # of which the shortest counts

# A text, as in `make run`: half are short, half are passages. There lengths are 78.9 tokens in the
# mean, and 132 if each token counts once, which is what attention sees.
LENGTHS: list[int] = [14, 144]
TOKENS_PER_TEXT: int = sum(LENGTHS) // len(LENGTHS)
CORPUS_BYTES: int = 164  # of a text in the corpus' shards

# Rates on the two cores of docs/BENCHMARKS.md
CORPUS_ROWS_PER_CORE: float = 25_307 / 2  # a second
CPU_RATE: float = 430e9  # bf16 operations a second in a matrix product
SHARES = {  # of that rate, in useful operations
    "labels": 0.53,
    "pre-training": 0.44,
    "distillation": 0.30,
}

# A GPU
GPU_RATE: float = 989e12  # an H100's dense bf16 operations a second, by its data sheet
GPU_SHARES = {"labels": 0.20, "pre-training": 0.08, "distillation": 0.08}  # of it, useful ones
GPU_SOURCE: str = (  # of these shares
    "Training: 10% of the 799 TFLOP/s that an H200 reached (docs/GPU.md; 65,000 tokens a step, of\n"
    "1,024 a text). Labels: 20% of the data sheet's rate is assumed for a teacher twice as wide,\n"
    "which was not run."
)

# The full recipe
EPOCHS = {"labels": 1, "pre-training": 3, "distillation": 2}
MASKED: float = 0.3  # share of the tokens predicted in pre-training
BATCH_TOKENS = {"pre-training": 16 * 1_024, "distillation": 64 * TOKENS_PER_TEXT}  # of a rank
CORPUS_SHARD_ROWS: int = 100_000
ROWS_PER_SHARD: int = 2_048  # of labels
TASK_SHARDS: int = 64  # of them that a worker labels in a task
MANIFEST_BYTES: int = 170  # of labels.json for a shard, and of corpus.json
WINDOW_ROWS: int = 4_000_000  # texts at hand at once in training; two windows are planned
MEASURE_BYTES: int = 5  # of each streamed text: its length

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
# Four runs of `make run`, 2026-11-25 and 26, some minutes of the second and third beside other work
RUNS = {
    "labels": [8_657, 7_987, 9_550, 9_742],  # tokens a second of the whole stage
    "distillation": [8_712, 10_582, 9_748, 9_421],  # of the small ModernBERT's steps
    "texts": [28_000, 25_000, 26_000, 24_000],
}
START_SECONDS: float = 5.0  # of labelling, until the first text is read
LABELS_OF_RUN = {"bytes": 18_635_131, "texts": 28_000, "width": 256}  # of the first

# Starts on machines with GPUs: assumed
BEGIN_SECONDS: float = 60.0  # imports, weights and batches from a shared disk
DETECT_SECONDS: float = 15.0  # torchrun asks three times, 5 s apart, before a machine is lost


PASSES = {  # planned window by window, each for a stage
    "a pass of distillation, planned": "distillation",
    "a pass of pre-training, packed": "pre-training",
}


SORTING = ("exact duplicates", "near duplicates")  # seconds a text grow as the logarithm


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
    own = peak.encoder_flops(config, LENGTHS) / sum(LENGTHS)
    return own + (peak.prediction_flops(config, masked) if masked else 0.0)


def token_seconds() -> dict[str, float]:
    """Return the seconds that a GPU takes for a token of each stage of the full recipe."""
    small = student("small-v2")
    of_token = {
        "labels": operations(TEACHER),
        "pre-training": peak.TRAINING * operations(small, MASKED),
        "distillation": peak.TRAINING * operations(small),
    }
    return {stage: each / (GPU_RATE * GPU_SHARES[stage]) for stage, each in of_token.items()}


def gpu_hours(texts: int) -> dict[str, float]:
    """Return the GPU-hours of each stage of the full recipe."""
    tokens = texts * TOKENS_PER_TEXT
    return {
        stage: EPOCHS[stage] * tokens * seconds / 3600 for stage, seconds in token_seconds().items()
    }


def label_bytes(width: int) -> int:
    """Return the bytes of a label: fp16 numbers, and its text beside."""
    return 2 * width + CORPUS_BYTES


def disk_bytes(texts: int) -> float:
    """Return the bytes on disk: corpus, labels, and tokens and vectors of what is at hand."""
    width = student("small-v2").hidden_size
    cached = min(texts, 2 * WINDOW_ROWS) * (4 * TOKENS_PER_TEXT + 8 + 2 * width)
    return texts * (CORPUS_BYTES + label_bytes(width) + MEASURE_BYTES) + cached


def memory_bytes(name: str, each: Cost, texts: int) -> float:
    """Return the memory of a coordinator: passes of training hold the plans of two windows."""
    return each.bytes * (min(texts, 2 * WINDOW_ROWS) if name in PASSES else texts)


def coordinators(*sizes: int) -> list[dict[str, Cost]]:
    """Measure what each coordinator takes for some numbers of texts of log-normal lengths.

    The sizes take turns, and the shortest seconds of each count: other work only adds to them.
    """
    works = [works_on(texts) for texts in sizes]
    measured: list[dict[str, Cost]] = [{} for _ in sizes]
    for name in works[0]:
        seconds: list[list[float]] = [[] for _ in sizes]
        for _ in range(TRIALS):
            for work, taken in zip(works, seconds, strict=True):
                begun = time.process_time()
                work[name]()
                taken.append(time.process_time() - begun)
        for texts, work, taken, costs in zip(sizes, works, seconds, measured, strict=True):
            costs[name] = Cost(peak_bytes(work[name]) / texts, min(taken) / texts)
    return measured


def works_on(texts: int) -> dict[str, Callable[[], object]]:
    """Return what the coordinators do with so many texts."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(4.1, 0.7, texts)), 3, 512).astype(np.int64)
    keys = random.integers(0, 2**63, texts).astype(np.uint64)
    minhash = duplicates.MinHash(64, 0.8, 0)
    nothing = np.zeros((0, 64), dtype=np.uint16)
    return {
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


def peak_bytes(work: Callable[[], object]) -> float:
    """Return the most that Python and numpy allocate; not in a first call, which imports, too."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def seconds_at(name: str, cost: Cost, measured_at: int, texts: int) -> float:
    """Return the seconds a text that a coordinator takes where there are so many."""
    growth = math.log(texts) / math.log(measured_at) if name in SORTING else 1.0
    return cost.seconds * growth


def limits(costs: dict[str, Cost]) -> list[tuple[str, float, str]]:
    """Return what breaks: its name, the number of texts, and what to do; the first one first."""
    memory = MEMORY_GIB * 2**30
    per_text = disk_bytes(10**12) / 10**12
    rows = [
        ("label shards in one folder", FILES * ROWS_PER_SHARD,
         "fewer, larger shards: --rows-per-shard 65536"),
        ("corpus and labels on one disk", DISK_TB * 1e12 / per_text,
         "create_distil_dataset.py --output-url, and --labels by URL"),
        ("near duplicates: memory", memory / costs["near duplicates"].bytes,
         "divide the bands' hashes by their first bits (not built)"),
        ("exact duplicates: memory", memory / costs["exact duplicates"].bytes,
         "likewise by the keys' first bits (not built)"),
    ]  # fmt: skip
    # The loop asks for the batches of all passes before the first step, and each rank plans them.
    rows += [
        (f"{name}: time before the first step",
         PAUSE_HOURS * 3600 / (EPOCHS[stage] * costs[name].seconds),
         "count a later pass's batches when it comes (not built); until then --epochs 1")
        for name, stage in PASSES.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row[1])


def checks(few: dict[str, Cost], many: dict[str, Cost]) -> list[list[object]]:
    """Return predicted and measured figures, and the one over the other."""
    rows: list[list[object]] = []

    def add(what: str, predicted: float, measured: float) -> None:
        rows.append([what, predicted, measured, f"{predicted / measured:.2f}"])

    for name, each in few.items():
        add(f"{name}: bytes a text at 4 x", each.bytes, many[name].bytes)
        seconds = seconds_at(name, each, TRIAL_TEXTS, 4 * TRIAL_TEXTS)
        add(f"{name}: µs a text at 4 x", 1e6 * seconds, 1e6 * many[name].seconds)
    rate = CPU_RATE * SHARES["labels"] / operations(MINILM)
    texts, median = statistics.median(RUNS["texts"]), statistics.median
    tokens = texts * TOKENS_PER_TEXT
    whole = tokens / (tokens / rate + START_SECONDS)
    add("`make run`, labels: tokens/s", whole, float(median(RUNS["labels"])))
    needed = peak.TRAINING * operations(student("offline"))
    rate = CPU_RATE * SHARES["distillation"] / needed
    what = "`make run`, distillation of the ModernBERT: tokens/s"
    add(what, rate, float(median(RUNS["distillation"])))
    run = LABELS_OF_RUN
    mib = run["texts"] * label_bytes(run["width"]) / 2**20
    add("`make run`, label shards: MiB", mib, run["bytes"] / 2**20)
    return rows


def size_rows(costs: dict[str, Cost]) -> list[list[object]]:
    """Return the table of sizes."""

    def row(name: str, of: Callable[[int], float]) -> list[object]:
        values = [of(texts) for texts in TEXTS]
        return [name, *(f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in values)]

    width = student("small-v2").hidden_size
    return [
        row("tokens, 10^9", lambda texts: texts * TOKENS_PER_TEXT / 1e9),
        row("corpus, GB", lambda texts: texts * CORPUS_BYTES / 1e9),
        row("labels, GB", lambda texts: texts * label_bytes(width) / 1e9),
        row("disk in all, GB", lambda texts: disk_bytes(texts) / 1e9),
        row("corpus shards", lambda texts: -(-texts // CORPUS_SHARD_ROWS)),
        row("label shards", lambda texts: -(-texts // ROWS_PER_SHARD)),
        row("corpus.json, MB", lambda texts: texts / CORPUS_SHARD_ROWS * MANIFEST_BYTES / 1e6),
        row("labels.json, MB", lambda texts: texts / ROWS_PER_SHARD * MANIFEST_BYTES / 1e6),
        row("corpus building, core-hours", lambda texts: texts / CORPUS_ROWS_PER_CORE / 3600),
        *(
            row(f"{stage}, GPU-hours", lambda texts, stage=stage: gpu_hours(texts)[stage])
            for stage in SHARES
        ),
        *(
            row(
                f"{name}: memory, GiB",
                lambda texts, name=name, each=each: memory_bytes(name, each, texts) / 2**30,
            )
            for name, each in costs.items()
        ),
        *(
            row(
                f"{name}: hours",
                lambda texts, name=name, each=each: (
                    texts * seconds_at(name, each, 4 * TRIAL_TEXTS, texts) / 3600
                ),
            )
            for name, each in costs.items()
        ),
    ]


def read_measured() -> dict[str, Any]:
    """Return what `make scale` has measured."""
    return storage.read_json(ROOT / "docs/scale.json", "run: make scale")


def failures_section() -> str:
    """Return what failures and slow ranks cost, simulated."""
    measured, seconds = read_measured()["constants"], token_seconds()
    steps = {stage: tokens * seconds[stage] for stage, tokens in BATCH_TOKENS.items()}
    saving = measured["checkpoint"]
    times = failures.Times(steps["pre-training"], saving, BEGIN_SECONDS, 0.0, DETECT_SECONDS)
    shares, best = failures.training_tables(times)
    pauses = [f"every {pause:,} s" for pause in failures.PAUSES]
    shard = ROWS_PER_SHARD * TOKENS_PER_TEXT * seconds["labels"]
    # A worker on a machine that is taken away daily, for some days.
    each = {"shard_seconds": TASK_SHARDS * shard, "begin": BEGIN_SECONDS, "dealt": False}
    tasks = round(10 * 24 * 3600 / each["shard_seconds"])
    hours = failures.PLACES["machines taken away daily"].hours
    lost = failures.labelling_growth(1, tasks, 0.0, hours_to_death=hours, **each) - 1
    where = ["failures", "ranks", "hours between"]
    return FAILURES.format(
        goodput_table=report.table([*where, *pauses, "at the best"], shares),
        best_table=report.table(
            [*where[:2], "simulated, s", "Daly, s", "Young, s", "simulated / Daly"], best
        ),
        straggler_table=report.table(
            ["workers", "one slower by", "training", "labels dealt out", "labels taken in turn"],
            failures.straggler_table(),
        ),
        lost=lost,
        spread="; ".join(
            f"{failures.step_growth(ranks, 0.0) - 1:.0%} at {ranks}" for ranks in failures.RANKS
        ),
        llama=failures.PLACES["as Llama 3's cluster"].hours,
        checkpoint_gb=measured["checkpoint_bytes"] / 1e9,
        saving=saving,
        default_pauses=" and ".join(
            f"{500 * step:.1f} s of {stage} ({500 * step / (500 * step + saving):.0%} of the time)"
            for stage, step in steps.items()
        ),
        shard=shard,
        SPREAD=failures.SPREAD,
        SHARDS_PER_WORKER=failures.SHARDS_PER_WORKER,
        **globals(),
    )


def main() -> None:
    """Measure the coordinators, work out the sizes, simulate what fails, write the page."""
    few, many = coordinators(TRIAL_TEXTS, 4 * TRIAL_TEXTS)
    head = ["", *(f"10^{len(str(texts)) - 1}" for texts in TEXTS)]
    broken = [[what, f"{texts:.2g}", cure] for what, texts, cure in limits(many)]
    measured = read_measured()
    words = {True: "held", False: "not held", None: "told"}
    looked = [[each["what"], each["figure"], words[each["held"]]] for each in measured["checks"]]
    compared = checks(few, many)
    for what, simulated, seconds in measured["seconds"]:
        compared.append([f"{what}: seconds", simulated, seconds, f"{simulated / seconds:.2f}"])
    text = PAGE.format(
        sizes_table=report.table(head, size_rows(many)),
        limits_table=report.table(["what", "texts", "what to do"], broken),
        failures_told=failures_section(),
        checks_table=report.table(["figure", "predicted", "measured", "ratio"], compared),
        looked_table=report.table(["what", "measured", ""], looked),
        measured=measured,
        **globals(),
    )
    storage.write_text(Path(ROOT / "docs/SCALE.md"), text)
    print(text)


PAGE = """# Scale

Written by `make scale`, from arithmetic (`bench/scale_model.py`), simulation (`bench/failures.py`)
and tiny runs (`bench/scale.py`); do not edit. Constants stand in the scripts, with their sources. A
text has {TOKENS_PER_TEXT} tokens, as in `make run` before spans; all but planning grows with that.
{GPU_SOURCE}
Stages: labels by gte-modernbert-base, small-v2 pre-trained in {EPOCHS[pre-training]} passes and
distilled in {EPOCHS[distillation]}. What sorts grows a little faster than the texts.

{sizes_table}

Memory (the peak of what Python and numpy allocate) and hours of duplicates and plans are those of
one process on one core of this machine; each rank plans for itself. Training streams more than
{WINDOW_ROWS:,} texts by windows of shards, and holds the plans of two. Near duplicates are told for
texts of which none meets another; each pair that meets takes 16 bytes more.

## What breaks first

With {MEMORY_GIB} GiB and {RANKS} ranks a machine, {DISK_TB} TB of disk, GPUs that may wait
{PAUSE_HOURS:g} hour for a plan, {FILES:,} files in a folder.

{limits_table}

{failures_told}
Not modelled: reading from object storage, the network of many machines.

## Predicted and measured

The first rows predict 4 x {TRIAL_TEXTS:,} texts from {TRIAL_TEXTS:,}; those of `make run` come from
the shares that docs/BENCHMARKS.md has, and are held against the median of four runs; the last ones
are simulated, and measured on two gloo ranks whose steps mostly wait. Seconds of starts are those
of the run itself. What sorts (duplicates) gets dearer than n log n says where a processor's caches
no longer hold it, the more the busier the machine is: its hours are some fifth too few.

{checks_table}

## One and the same run

`make scale` on {measured[machine][name]}, {measured[machine][cores]} cores:
{measured[minutes]} minutes, {measured[machine][date]}.

{looked_table}

Ranks are torch's DistributedDataParallel. Lines of code, without docstrings and comments, before it
(our own leader and followers) and after: processes.py 130 and 111, data_parallel.py 57 of them new,
loop.py 299 and 327, other work on it included.
"""

FAILURES = """## Failures and slow ranks

Simulated with measured seconds where there are any: a checkpoint of small-v2 has
{checkpoint_gb:.2f} GB and took {saving:.1f} s on this machine, while all ranks wait. A start is
assumed to take {BEGIN_SECONDS:g} s, a death to be noticed after {DETECT_SECONDS:g} s. Llama 3's
report (arXiv 2407.21783) tells of 419 unexpected interruptions in 54 days of 16,384 GPUs, one in
{llama:,.0f} hours of a GPU; machines of eight that are taken away once a day are assumed. What was
made since the last checkpoint is lost, as with NCCL (over gloo the last whole step is saved, unless
it is the first rank that dies).

Share of the time in which training makes steps that count, by seconds between checkpoints:

{goodput_table}

A recipe's checkpoints come every 500 steps, which is right for a CPU. On such GPUs that is
{default_pauses}:
give --checkpoint-every so many steps that some minutes lie between two. The best pause, simulated
and by formula (Young 1974; Daly 2006):

{best_table}

One worker that is slower than the others: by how much training, whose ranks wait for one another in
each step, and labelling take longer. Shards that are dealt out beforehand wait for the slow one,
too; shards that each worker takes when it is free do not ({SHARDS_PER_WORKER} shards a worker).

{straggler_table}

Where all are alike but for an assumed {SPREAD:.0%} from step to step, ranks wait all the same:
{spread} ranks.

A worker that labels loses the task it is at, {TASK_SHARDS} shards of {shard:.1f} s of a GPU each,
and nobody else notices: on a machine that is taken away daily that and the starts add {lost:.2%}.
"""

if __name__ == "__main__":
    settings.run(globals())
