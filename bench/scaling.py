r"""Cost per token and peak memory of each stage at 1, 4 and 16 times the data: both flat.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: runs/bench/scaling.json; prints the table.

    python bench/scaling.py
    python bench/scaling.py --quick

The stages are the scripts themselves, from the first line to final/. Models are tiny: what grows
with the data is the handling of it, and beside a large model's matrix products nobody would see it.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import claims
import harness
import inputs

from small_modernbert.runs import settings, storage

# Data: rows at 1 x
CORPUS_ROWS: int = 10_000  # of the offline text, for corpus building
TEXTS: int = 300  # labelled, distilled and pre-trained on; of realistic lengths
HELD_OUT: int = 100  # of them at every size
MAX_TOKENS: int = 256  # of a text
SIZES: list[int] = [1, 4, 16]  # times that many rows

# Model
PRESET: str = "offline"  # narrowed to two layers of 64
TOKENS_PER_BATCH: int = 2_048  # of labelling

# Bounds
COST_GROWTH: float = 1.2  # cost per token at the largest size over the best of the smaller ones
MEMORY_GROWTH: float = 1.2  # peak memory at the largest size over that at the one before

# Run
THREADS: int = 0  # 0 = all processors
QUICK: bool = False  # two small sizes, to see that it works
SEED: int = 42  # of texts and weights

STAGES = ("corpus", "labels", "mlm", "distillation")
NAMES = {
    "corpus": "corpus building",
    "labels": "labelling",
    "mlm": "MLM pre-training",
    "distillation": "distillation",
}
# From profiles on the machine of docs/BENCHMARKS.md; shown where the bound is missed.
REASONS = {name: {"cost": "", "memory": ""} for name in STAGES}


def main() -> None:
    """Run each stage at each size in a process of its own, compare the sizes, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(CORPUS_ROWS=400, TEXTS=200, HELD_OUT=20, SIZES=[1, 4])
    rows, table = [], []
    with tempfile.TemporaryDirectory() as place:
        prepare_inputs(Path(place))
        for stage in STAGES:
            flags = {"folder": place, "stage": stage, "sizes": SIZES, "seed": SEED}
            shape = {"max_tokens": MAX_TOKENS, "held_out": HELD_OUT, "budget": TOKENS_PER_BATCH}
            # A process for each size: what one leaves in memory must not hide the next one's.
            results = [
                harness.run(
                    [harness.Contender(f"{stage} {size} x", run, flags | shape | {"size": size})],
                    1,
                    THREADS,
                ).popitem()[1]
                for size in SIZES
            ]
            rows += judge(stage, results)
            table += [lines(stage, size, one) for size, one in zip(SIZES, results, strict=True)]
    headers = ["stage", "size", "rows", "tokens", "CPU s / 1M tokens", "wall s / 1M tokens"]
    claims.publish(
        __file__,
        rows,
        setting=(
            f"Two layers of 64. Corpus building: {CORPUS_ROWS:,} rows at 1 ×; the other stages: "
            f"{TEXTS:,} texts. Growth of cost is by CPU seconds per token, the largest size over "
            "the best of the smaller ones; of memory, the largest size over the one before: the "
            "smallest does not fill the windows that the stages work in."
        ),
        tables={"Sizes": ([*headers, "peak memory, MiB"], table)},
        seconds=time.monotonic() - begun,
    )


def prepare_inputs(folder: Path) -> None:
    """Write the texts of every size, and the tiny student that is its own teacher."""
    import torch
    from transformers import ModernBertModel

    from small_modernbert.models import architecture, students

    source = inputs.locate(inputs.TEXT)
    tokenizer = students.load_tokenizer(inputs.locate(inputs.TEACHER))
    shape = architecture.choose(PRESET, num_hidden_layers=2, hidden_size=64)
    torch.manual_seed(SEED)
    model = ModernBertModel(architecture.configure(shape, tokenizer))
    students.Student(model, tokenizer, MAX_TOKENS).save(folder / "student")
    texts = inputs.make_texts(source, max(SIZES) * TEXTS, seed=SEED, longest=MAX_TOKENS)
    for size in SIZES:
        write_sources(folder, size, source, texts[: size * TEXTS])


def write_sources(folder: Path, size: int, source: Path, texts: list[str]) -> None:
    """Write the rows of one size: for corpus building, and for the other stages."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pq.read_table(source)
    stride = max(1, whole.num_rows // (size * CORPUS_ROWS))
    numbers = range(0, whole.num_rows, stride)
    pq.write_table(whole.take(list(numbers)[: size * CORPUS_ROWS]), folder / f"rows-{size}.parquet")
    columns = {"text": texts, "source": ["bench"] * len(texts)}
    pq.write_table(pa.table(columns), folder / f"texts-{size}.parquet")


def run(
    folder: str,
    stage: str,
    size: int,
    sizes: list[int],
    seed: int,
    max_tokens: int,
    held_out: int,
    budget: int,
) -> harness.Round:
    """Prepare one stage at one size; its warm-up is a run at the smallest size.

    The stages read one another's output, recipe `x<size>`.
    """
    import os

    os.environ["RUNS"] = f"{folder}/runs"
    script = load_stage(stage)

    def work(number: int, clock: harness.Clock) -> harness.Work:
        wanted = size if number else sizes[0]
        recipe = f"x{wanted}" if number else "warm-up"
        if stage == "labels":
            # Not timed: the corpus that the later stages read.
            build_corpus(folder, wanted, recipe, max_tokens, held_out)
        flags = {
            "corpus": {
                "sources": ["offline"],
                "offline-text": f"{folder}/rows-{wanted}.parquet",
                "tokenizer": f"{folder}/student",
                "variant": "scaling",
                "max-tokens": max_tokens,
                "held-out-rows": held_out,
            },
            "labels": {
                "teacher": f"{folder}/student",
                "student": f"{folder}/student",
                "tokens-per-batch": budget,
            },
            "mlm": {
                "student": f"{folder}/student",
                "sequence-tokens": max_tokens,
                "accumulate": 1,
                "epochs": 1,
                "evaluate-every": 0,
                "checkpoint-every": 0,
            },
            "distillation": {
                "student": f"{folder}/student",
                "epochs": 1,
                "validation-sets": [],
                "evaluate-every": 0,
                "checkpoint-every": 0,
            },
        }[stage]
        settings.override(vars(script), [*words(flags | {"recipe": recipe}), "--overwrite"])
        clock.start()
        script.main()
        clock.stop()
        rows, tokens = corpus_size(folder, recipe, "@scaling" if stage == "corpus" else "")
        return harness.Work(tokens, tokens, figures={"rows": rows})

    return work


def load_stage(stage: str) -> Any:  # noqa: ANN401  a module
    """Import the script of a stage, and what it would import when it runs."""
    import importlib
    import sys

    from small_modernbert.runs import references

    sys.path.insert(0, str(references.ROOT))
    scripts = {
        "corpus": "mlm.create_dataset",
        "labels": "create_distil_dataset",
        "mlm": "mlm.pre_train",
        "distillation": "distil_modernbert",
    }
    return importlib.import_module(scripts[stage])


def build_corpus(folder: str, size: int, recipe: str, max_tokens: int, held_out: int) -> None:
    """Build the corpus of the training stages."""
    from mlm import create_dataset

    flags = {
        "sources": ["offline"],
        "offline-text": f"{folder}/texts-{size}.parquet",
        "tokenizer": f"{folder}/student",
        "max-tokens": max_tokens,
        "held-out-rows": held_out,
        "recipe": recipe,
    }
    settings.override(vars(create_dataset), words(flags))
    create_dataset.main()


def words(flags: dict[str, Any]) -> list[str]:
    """Return flags as they are typed."""
    typed = []
    for name, value in flags.items():
        typed += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return typed


def corpus_size(folder: str, recipe: str, variant: str) -> tuple[int, int]:
    """Return the rows and tokens of a corpus that was built."""
    final = Path(folder) / "runs" / recipe / f"mlm/create_dataset{variant}" / "final"
    manifest = storage.read_json(final / "corpus.json", "run it again")
    return sum(manifest["rows"].values()), manifest["tokens"]


def judge(stage: str, results: list[harness.Result]) -> list[claims.Row]:
    """Return the two claims of a stage: its cost and its memory do not grow with the data."""

    def growth(by: str) -> float:
        cost = [getattr(one.samples[0], by) / one.samples[0].work.tokens for one in results]
        # Start-up weighs on the smallest size, so it alone would be too kind a yardstick.
        return cost[-1] / min(cost[:-1])

    memory = [one.peak_mib for one in results]
    grown = memory[-1] / memory[-2]
    times = f"{SIZES[-1]} ×"
    by_cpu, by_wall = growth("cpu_seconds"), growth("seconds")
    return [
        claims.Row(
            f"{NAMES[stage]}: cost per token at {times} the data",
            "itself with less",
            claims.Spread(by_cpu, by_cpu, by_cpu),
            claims.Spread(by_wall, by_wall, by_wall),
            most=COST_GROWTH,
            reason=REASONS[stage]["cost"],
        ),
        claims.Row(
            f"{NAMES[stage]}: peak memory at {times} the data",
            "itself with less",
            claims.Spread(grown, grown, grown),
            most=MEMORY_GROWTH,
            memory_mib=(memory[-1], memory[-2]),
            reason=REASONS[stage]["memory"],
        ),
    ]


def lines(stage: str, size: int, result: harness.Result) -> list[Any]:
    """Return a line of the table of sizes."""
    sample = result.samples[0]
    millions = sample.work.tokens / 1e6
    return [
        NAMES[stage],
        f"{size} ×",
        round(sample.work.figures["rows"]),
        round(sample.work.tokens),
        f"{sample.cpu_seconds / millions:.1f}",
        f"{sample.seconds / millions:.1f}",
        round(result.peak_mib),
    ]


if __name__ == "__main__":
    settings.run(globals())
