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

import inputs
import measure
from measure import Contender, Rounds, Work

from small_modernbert.runs import settings, storage

# Data: rows at 1 x
CORPUS_ROWS: int = 10_000  # of the offline text, for corpus building
TEXTS: int = 300  # labelled, distilled and pre-trained on; of realistic lengths
HELD_OUT: int = 100  # of them at every size
MAX_TOKENS: int = 256  # of a text
SIZES: list[int] = [1, 4, 16]  # times that many rows

# Model
PRESET: str = "offline"  # narrowed to two layers of 64

# Bounds
COST_GROWTH: float = 1.2  # cost per token at the largest size over the best of the smaller ones
MEMORY_GROWTH: float = 1.2  # peak memory at the largest size over that at the one before

# Run
THREADS: int = 0  # 0 = all processors
QUICK: bool = False  # two small sizes, to see that it works
SEED: int = 42  # of texts and weights

STAGES = {  # script -> what the tables call it
    "mlm/create_dataset": "corpus building",
    "create_distil_dataset": "labelling",
    "mlm/pre_train": "MLM pre-training",
    "distil_modernbert": "distillation",
}
TRAINING = {"epochs": 1, "evaluate_every": 0, "checkpoint_every": 0}


def main() -> None:
    """Run each stage at each size in a process of its own, compare the sizes, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(CORPUS_ROWS=400, TEXTS=200, HELD_OUT=20, SIZES=[1, 4])
    claims, table = [], []
    with tempfile.TemporaryDirectory() as place:
        prepare_inputs(Path(place))
        for script in STAGES:
            results = []
            for size in SIZES:
                given = {"folder": place, "script": script, "size": size, "smallest": SIZES[0]}
                shape = {"max_tokens": MAX_TOKENS, "held_out": HELD_OUT}
                # A process each: what one leaves in memory must not hide the next one's.
                contender = Contender(f"{script} {size} x", run, given | shape)
                results += measure.run([contender], 1, THREADS).values()
            claims += judge(script, results)
            table += [line(script, size, each) for size, each in zip(SIZES, results, strict=True)]
    headers = ["stage", "size", "rows", "tokens", "CPU s / 1M tokens", "wall s / 1M tokens"]
    measure.publish(
        __file__,
        claims,
        setting=(
            f"Two layers of 64. Corpus building: {CORPUS_ROWS:,} rows at 1 ×; the other stages: "
            f"{TEXTS:,} texts. Growth of cost is by CPU seconds per token, the largest size over "
            "the best of the smaller ones; of memory, the largest size over the one before: the "
            "smallest does not fill the windows that the stages work in."
        ),
        tables={"Sizes": ([*headers, "peak memory, MiB"], table)},
        begun=begun,
    )


def prepare_inputs(folder: Path) -> None:
    """Write the texts of every size, and the tiny student that is its own teacher."""
    import pyarrow.parquet as pq

    source = inputs.locate(inputs.TEXT)
    shape = {"num_hidden_layers": 2, "hidden_size": 64}
    inputs.make_student(folder / "student", inputs.locate(inputs.TEACHER), SEED, PRESET, **shape)
    texts = inputs.make_texts(source, max(SIZES) * TEXTS, seed=SEED, longest=MAX_TOKENS)
    whole = pq.read_table(source)
    for size in SIZES:
        inputs.write_texts(folder / f"texts-{size}.parquet", texts[: size * TEXTS])
        stride = max(1, whole.num_rows // (size * CORPUS_ROWS))
        numbers = list(range(0, whole.num_rows, stride))[: size * CORPUS_ROWS]
        pq.write_table(whole.take(numbers), folder / f"rows-{size}.parquet")


def run(
    folder: str, script: str, size: int, smallest: int, max_tokens: int, held_out: int
) -> measure.Round:
    """Prepare one stage at one size; its warm-up is a run at the smallest size.

    The stages read one another's output, recipe `x<size>`.
    """
    import os

    os.environ["RUNS"] = f"{folder}/runs"
    student = f"{folder}/student"
    corpus = {"sources": ["offline"], "tokenizer": student, "max_tokens": max_tokens}
    corpus["held_out_rows"] = held_out
    flags: dict[str, dict[str, Any]] = {
        "mlm/create_dataset": corpus | {"variant": "scaling"},
        "create_distil_dataset": {"teacher": student, "student": student},
        "mlm/pre_train": {"student": student, "sequence_tokens": max_tokens} | TRAINING,
        "distil_modernbert": {"student": student, "validation_sets": []} | TRAINING,
    }

    def work(number: int) -> Work:
        wanted = size if number else smallest
        recipe = f"x{wanted}" if number else "warm-up"
        given = flags[script]
        if script == "mlm/create_dataset":
            given = given | {"offline_text": f"{folder}/rows-{wanted}.parquet"}
        elif script == "create_distil_dataset":  # not timed: the corpus of the later stages
            text = f"{folder}/texts-{wanted}.parquet"
            inputs.run_stage("mlm/create_dataset", recipe, **corpus, offline_text=text)
        begun, cpu = time.perf_counter(), measure.cpu_seconds()
        stage = inputs.run_stage(script, recipe, **given)
        seconds, cpu = time.perf_counter() - begun, measure.cpu_seconds() - cpu
        own = script == "mlm/create_dataset"
        built = stage if own else Path(folder) / "runs" / recipe / "mlm/create_dataset"
        manifest = storage.read_json(built / "final" / "corpus.json", "run it again")
        rows = sum(manifest["rows"].values())
        return Work(manifest["tokens"], seconds, figures={"rows": rows, "cpu": cpu})

    return work


def judge(script: str, results: list[Rounds]) -> list[dict[str, Any]]:
    """Return the two claims of a stage: its cost and its memory do not grow with the data."""
    # Start-up weighs on the smallest size, so it alone would be too kind a yardstick.
    cost = [rounds[0].figures["cpu"] / rounds[0].amount for rounds in results]
    memory = [measure.peak_mib(rounds) for rounds in results]
    peer, times = ("itself with less", ""), f"{SIZES[-1]} ×"
    growth = {
        f"{STAGES[script]}: cost per token at {times} the data": cost[-1] / min(cost[:-1]),
        f"{STAGES[script]}: peak memory at {times} the data": memory[-1] / memory[-2],
    }
    bounds = (COST_GROWTH, MEMORY_GROWTH)
    return [
        measure.claim(what, measure.spread([value]), peer, most=most)
        for (what, value), most in zip(growth.items(), bounds, strict=True)
    ]


def line(script: str, size: int, rounds: Rounds) -> list[Any]:
    """Return a line of the table of sizes."""
    work = rounds[0]
    millions = work.amount / 1e6
    return [
        STAGES[script],
        f"{size} ×",
        round(work.figures["rows"]),
        round(work.amount),
        f"{work.figures['cpu'] / millions:.1f}",
        f"{work.seconds / millions:.1f}",
        round(work.peak_mib),
    ]


if __name__ == "__main__":
    settings.run(globals())
