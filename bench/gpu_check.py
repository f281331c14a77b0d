r"""What a GPU makes of it: attention, each stage's speed, one miniature recipe; ten minutes.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: docs/GPU.md, to be committed with the figures; prints it.

    make gpu-check
    python bench/gpu_check.py
    python bench/gpu_check.py --on-cpu --quick

Where there is no GPU it says so and ends well. The model is the recipe's: 12 layers of 384, texts
of 1,024 tokens, random weights, whose speed is that of trained ones. Training stages are the
scripts themselves, by the steps in their metrics.jsonl.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import document
import inputs
import measure
import peak

from small_modernbert.runs import references, report, settings, storage

# Model and data
PRESET: str = "small-v2"  # 12 x 384 / 768, six heads
TOKENS: int = 1_024  # of a text
TEXTS: int = 4_096  # encoded and labelled; trained on as far as the steps go

# Steps
STEPS: int = 20  # of each training stage, after one that is not counted
SEQUENCES: int = 64  # of TOKENS, a step of MLM
ROWS_PER_BATCH: int = 64  # texts, a step of distillation

# Run
RECIPE: bool = True  # also recipes/offline.sh --size smoke
THREADS: int = 0  # 0 = all processors; the GPU is not asked
ON_CPU: bool = False  # go on without a GPU
QUICK: bool = False  # a small model and few steps, to see that it works
OUTPUT: str = "docs/GPU.md"  # where the table goes, from the repository
SEED: int = 42  # of texts and weights

# Of an attention's outputs in bf16, whose steps at 1 are 0.008; inputs are normal.
TOLERANCE = 0.03
LENGTHS = (1_024, 700, 129, 33, 1)


def main() -> None:
    """Look for a GPU; check attention, run the stages, run the recipe, write the table."""
    import torch

    if not torch.cuda.is_available() and not ON_CPU:
        print("no GPU here (torch sees none): nothing to check; --on-cpu goes on all the same")
        return
    if QUICK:
        globals().update(PRESET="offline", TOKENS=64, TEXTS=64, STEPS=1, SEQUENCES=2)
        globals().update(ROWS_PER_BATCH=8)
    begun = time.monotonic()
    inputs.locate(inputs.TEXT)
    kernels = check_attention()
    with tempfile.TemporaryDirectory() as place:
        outside, os.environ["RUNS"] = os.environ.get("RUNS"), f"{place}/runs"
        try:
            rates = peak.product_rates()
            rows = [line(name, stage, rates) for name, stage in run_stages(Path(place)).items()]
            recipe = run_recipe() if RECIPE else "not run"
        finally:
            os.environ.pop("RUNS")
            os.environ.update({} if outside is None else {"RUNS": outside})
    text = markdown(kernels, rows, recipe, rates, time.monotonic() - begun)
    print(text)
    storage.write_text(references.ROOT / OUTPUT, text)


def check_attention() -> list[list[Any]]:
    """Hold packed attention in half precision against fp32, with and without a window.

    Returns:
        Rows of a table: what, kernel, largest difference, verdict.
    """
    import torch

    from small_modernbert.models import attention
    from small_modernbert.models.precision import default_device

    device = default_device()
    fused = device.type == "cuda" and attention.has_flash_attention(torch.bfloat16, 64)
    kernel = "FlashAttention" if fused else "a call for each length"
    draw = torch.Generator().manual_seed(SEED)
    shape = (3, 1, 6, sum(LENGTHS), 64)
    exact = torch.randn(shape, generator=draw).to(device)
    rows = []
    for name, window in (("all tokens", None), ("window of 128", 65)):
        outputs = [
            attention.packed_attention(
                torch.nn.Module(),
                *parts,
                None,
                lengths=LENGTHS,
                scaling=1 / 8,
                sliding_window=window,
            )[0].float()
            for parts in (exact, exact.to(torch.bfloat16))
        ]
        difference = float((outputs[0] - outputs[1]).abs().max())
        verdict = "equal" if difference <= TOLERANCE else "NOT EQUAL"
        rows.append([f"attention, {name}, bf16 beside fp32", kernel, difference, verdict])
    return rows


def run_stages(folder: Path) -> dict[str, dict[str, float]]:
    """Run every stage; return by name its tokens, seconds, operations a token, peak memory."""
    from transformers import AutoConfig

    teacher = inputs.locate(inputs.TEACHER)
    inputs.make_student(folder / "student", teacher, SEED, PRESET)
    source = inputs.locate(inputs.TEXT)
    # So long that nearly every text fills its tokens.
    texts = inputs.make_texts(source, TEXTS, seed=SEED, longest=TOKENS, median=8 * TOKENS)
    inputs.write_texts(folder / "texts.parquet", texts)
    student, config = str(folder / "student"), AutoConfig.from_pretrained(folder / "student")
    forward = peak.encoder_flops(config, [TOKENS]) / TOKENS
    masked = forward + 0.3 * peak.prediction_flops(config, 1)
    corpus = {"sources": ["offline"], "offline_text": str(folder / "texts.parquet")}
    corpus |= {"tokenizer": student, "max_tokens": TOKENS, "held_out_rows": 0}
    inputs.run_stage("mlm/create_dataset", "gpu", **corpus)
    common = {"student": student, "evaluate_every": 0, "checkpoint_every": 0}
    common["max_steps"] = 1 + STEPS
    mlm = common | {"sequence_tokens": TOKENS, "sequences_per_batch": SEQUENCES, "accumulate": 1}
    distil = common | {"rows_per_batch": ROWS_PER_BATCH, "validation_sets": [], "select_by": ""}
    distil |= {"tokens_per_batch": ROWS_PER_BATCH * TOKENS, "epochs": 100}
    return {
        "MLM pre-training": trained("mlm/pre_train", peak.TRAINING * masked, mlm | {"epochs": 100}),
        "labelling": labelled(student, forward),
        "distillation": trained("distil_modernbert", peak.TRAINING * forward, distil),
        "encoding": encoded(Path(student), texts, forward),
    }


def trained(script: str, flops: float, flags: dict[str, Any]) -> dict[str, float]:
    """Run a training stage; return what its steps took."""
    forget_peak()
    steps = inputs.steps_of(inputs.run_stage(script, "gpu", **flags))
    tokens, seconds = (sum(step[name] for step in steps) for name in ("tokens", "seconds"))
    return {"tokens": tokens, "seconds": seconds, "flops": flops, "memory": peak_gib()}


def labelled(student: str, flops: float) -> dict[str, float]:
    """Label the corpus with the student as its own teacher, tokenising and writing included."""
    forget_peak()
    stage = inputs.run_stage("create_distil_dataset", "gpu", teacher=student, student=student)
    record = storage.read_json(stage / "run.json", "run it again")
    tokens = storage.read_json(stage / "final" / "labels.json", "run it again")["tokens"]
    seconds = tokens / record["tokens_per_second"]
    return {"tokens": tokens, "seconds": seconds, "flops": flops, "memory": peak_gib()}


def encoded(student: Path, texts: list[str], flops: float) -> dict[str, float]:
    """Encode the texts as the benchmark does, after a few that are not counted."""
    from small_modernbert.models.encoders import load_encoder

    forget_peak()
    encoder = load_encoder(student)
    encoder.encode(texts[:8])
    begun = time.perf_counter()
    encoder.encode(texts)
    seconds = time.perf_counter() - begun
    ids = encoder.model.tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    tokens = sum(map(len, ids))
    return {"tokens": tokens, "seconds": seconds, "flops": flops, "memory": peak_gib()}


def forget_peak() -> None:
    """Let the next peak of the GPU's memory count from here."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Return the GPU's allocations at their largest; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def run_recipe() -> str:
    """Run the smallest recipe, from a blank student to the benchmark; return how it ended."""
    begun = time.monotonic()
    command = ["bash", str(references.ROOT / "recipes" / "offline.sh"), "--size", "smoke"]
    ended = subprocess.run(command, check=False)
    verdict = "finished" if ended.returncode == 0 else f"FAILED with exit code {ended.returncode}"
    return f"{verdict} after {report.minutes(time.monotonic() - begun)}"


def line(name: str, stage: dict[str, float], rates: dict[str, float]) -> list[Any]:
    """Return a stage's line of the table."""
    pace = stage["tokens"] / stage["seconds"]
    share = f"{pace * stage['flops'] / rates['bf16']:.0%}"
    return [name, round(stage["tokens"]), round(pace), share, f"{stage['memory']:.1f}"]


def markdown(
    kernels: list[list[Any]],
    rows: list[list[Any]],
    recipe: str,
    rates: dict[str, float],
    seconds: float,
) -> str:
    """Return the report."""
    result = {"ceilings": rates, "seconds": seconds}
    where = document.machine(len(measure.processors()))
    headers = ["stage", "tokens", "tokens/s", "of the bf16 peak", "GPU memory, GiB"]
    parts = [
        f"# On a GPU: {where['name']}",
        "Written by `make gpu-check`; do not edit.",
        document.machine_line({"machine": where, "scripts": {"gpu_check": result}}),
        report.table(["what", "kernel", "largest difference", "verdict"], kernels),
        f"{PRESET} of random weights, {TOKENS:,} tokens a text. Useful operations only; labelling "
        "is the whole stage, loading and writing included.",
        report.table(headers, rows),
        f"`recipes/offline.sh --size smoke`: {recipe}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    settings.run(globals())
