"""The full recipes, unchanged, against a hub on this machine: what `make rehearse` runs.

    PYTHONPATH=tests python -m rehearsal.rehearse
    PYTHONPATH=tests python -m rehearsal.rehearse --recipes small_v2 --keep

Each recipe's own shell script runs at its full size: real ids, shapes and flags. Two things differ:
HF_ENDPOINT names the made hub (made_hub.py), and a training takes a step instead of its epochs.
What it shows is that the path is whole, up to a model that sentence-transformers loads; the figures
of the models mean nothing, their teachers are random.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rehearsal import made_hub
from rehearsal.local_hub import LocalHub

from small_modernbert.runs import report, settings, storage
from small_modernbert.runs.references import ROOT, runs_folder

MAX_STEPS = "1"
# For the disk that the full data take. A text made here is short; a stored one of the offline
# corpora takes 63 to 243 bytes, a SQuAD passage 353.
TEXT_BYTES = 200
LONGEST_NAME = 15  # of a source or a role; longer strings are texts
# Where a recipe takes all rows of its sources. Triplets: as relabel_triplets.py says. Texts are a
# guess: MS MARCO's triplets, NPR's articles and FineWiki's cap, half a million each or so.
ALL_ROWS = {"MAX_TEXTS": 3_000_000, "MAX_TRIPLETS": 1_570_000}
# The static model's own recipe is an offline one; this is `make run-main` and its benchmark.
STATIC = """set -e
python distil_model2vec.py --recipe model2vec
python benchmark_hotpotqa.py --recipe model2vec --models static=distil_model2vec \
  --reduced-teacher "" --retrieval NanoMSMARCO
"""
RECIPES = {
    "small_v1": "sts_fine_tuning",
    "small_v2": "sts_fine_tuning",
    "small_v2_guide": "post_train_distilled_model",
    "model2vec": "distil_model2vec",
}
LOAD = """import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(model.encode(["how do tides work", "a text"]).shape)
"""


@dataclasses.dataclass(frozen=True)
class Timed:
    """How one stage ended: exit code, wall and processor seconds, largest resident MiB.

    Tokens are those of a training's last step; none for what trains nothing. Disk is the MiB of the
    stage's folder, and `full` the estimated GB of final/ with the rows that the recipe asks for.
    """

    stage: str
    exit_code: int
    seconds: float
    cpu: float
    peak: int
    tokens: int | None
    disk: float
    full: float | None


def main() -> int:
    """Make the hub, run the recipes, load what they made, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--keep", action="store_true", help="keep the hub and the runs: gigabytes")
    chosen = parser.parse_args()
    work = runs_folder() / "rehearsal"
    begun = time.monotonic()
    marker, digest = work / "made", storage.sha256_file(Path(made_hub.__file__))
    # What is kept from a run before goes on, unless it was made otherwise.
    if not marker.is_file() or marker.read_text(encoding="utf-8") != digest:
        storage.remove(work)
        made_hub.make_data(work / "hub")
        made_hub.make_models(work / "hub")
        storage.write_text(marker, digest)
    print(f"hub: made in {report.minutes(time.monotonic() - begun)}", flush=True)
    code = 0
    with LocalHub(work / "hub", made_hub.COMMITS) as hub:
        for recipe in chosen.recipes:
            code = code or rehearse(recipe, work, hub.endpoint)
    if not chosen.keep and not code:
        storage.remove(work)
    print(
        f"rehearsal: {'failed' if code else 'whole'} in {report.minutes(time.monotonic() - begun)}"
    )
    return code


def rehearse(recipe: str, work: Path, endpoint: str) -> int:
    """Run one recipe, print its stages, load its model; return an exit code."""
    log = work / f"{recipe}.jsonl"
    storage.remove(log)
    binaries = work / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    stub = binaries / "python"
    stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" time "$@"\n')
    stub.chmod(0o755)
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(work / "home"),
        "RUNS": str(work / "runs"),
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "REHEARSAL_LOG": str(log),
    }
    command = ["bash", "-c", STATIC] if recipe == "model2vec" else ["bash", f"recipes/{recipe}.sh"]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    stages = [Timed(**json.loads(line)) for line in lines]
    rows = [
        (
            *(timed.stage, round(timed.seconds), round(timed.cpu), timed.peak, timed.tokens),
            *(round(timed.disk), timed.full and f"{timed.full:.2f}"),
        )
        for timed in stages
    ]
    sums = [round(sum(getattr(timed, name) for timed in stages)) for name in ("seconds", "cpu")]
    disk = round(sum(timed.disk for timed in stages))
    rows.append(("in all", *sums, None, None, disk, None))
    headers = (recipe, "seconds", "of processors", "peak MiB", "tokens a step", "disk MiB")
    headers += ("GB in full",)
    print(report.table(headers, rows), flush=True)
    if code:
        return code
    final = work / "runs" / recipe / RECIPES[recipe] / "final"
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(final)], env=environment, check=False
    ).returncode


def time_stage(command: list[str]) -> int:
    """Run a script as the recipe wrote it, a training for a step; note seconds and memory."""
    constants = {constant.name for constant in settings.read_constants(ROOT / command[0])}
    limit = ["--max-steps", MAX_STEPS] if "MAX_STEPS" in constants else []
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, *command, *limit], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begun
    cpu = usage.ru_utime + usage.ru_stime
    folder = stage_folder(command)
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    timed = Timed(
        *(command[0], code, seconds, cpu, usage.ru_maxrss >> 10, last_tokens(folder), disk),
        gigabytes_in_full(folder / "final"),
    )
    with open(os.environ["REHEARSAL_LOG"], "a", encoding="utf-8") as log:
        log.write(json.dumps(dataclasses.asdict(timed)) + "\n")
    return code


def stage_folder(command: list[str]) -> Path:
    """Return where a command's stage is."""
    recipe, variant = (
        command[command.index(flag) + 1] if flag in command else ""
        for flag in ("--recipe", "--variant")
    )
    stage = command[0].removesuffix(".py") + (f"@{variant}" if variant else "")
    return runs_folder() / recipe / stage


def gigabytes_in_full(final: Path) -> float | None:
    """Estimate what a stage's rows take at full size; None where it makes no rows.

    Numbers are counted as they are stored, a text as TEXT_BYTES; how many rows there are, a corpus
    or triplets, is said by the recipe that made them.
    """
    shards = [path for path in final.glob("*/shard-*.parquet") if pq.read_metadata(path).num_rows]
    if not shards:
        return None
    table = pq.read_table(shards[0])
    texts = numbers = 0.0
    for column in table.columns:
        cells = column.combine_chunks()
        while pa.types.is_list(cells.type) or pa.types.is_fixed_size_list(cells.type):
            cells = cells.flatten()
        if pa.types.is_string(cells.type):
            long = pc.mean(pc.utf8_length(cells)).as_py() > LONGEST_NAME
            texts += len(cells) / len(table) if long else 0  # sources and roles repeat
        else:
            numbers += cells.nbytes / len(table)
    return full_rows(final.parents[0]) * (numbers + texts * TEXT_BYTES) / 1e9


def full_rows(stage: Path) -> int:
    """Return how many rows a recipe asks for: what limits its corpus, or its triplets, says it."""
    for folder in (stage, stage.parent / "mlm" / "create_dataset"):
        path = folder / "run.json"
        settings_of = json.loads(path.read_text("utf-8"))["settings"] if path.is_file() else {}
        for name, rows in ALL_ROWS.items():
            if name in settings_of:
                return settings_of[name] or rows
    return 0


def last_tokens(folder: Path) -> int | None:
    """Return the tokens of the last step that a stage noted."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    tokens = [json.loads(line).get("tokens") for line in lines]
    return next((number for number in reversed(tokens) if number), None)


if __name__ == "__main__":
    if sys.argv[1:2] == ["time"]:
        sys.exit(time_stage(sys.argv[2:]))
    assert shutil.which("bash"), "the recipes are shell scripts"
    sys.exit(main())
