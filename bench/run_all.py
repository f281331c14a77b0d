r"""Run every benchmark, one after the other, and write docs/BENCHMARKS.md and docs/benchmarks.json.

Reads: the other scripts of bench/ and what they read (make assets).
Writes: docs/benchmarks.json, this machine's entry; docs/BENCHMARKS.md, from all its entries.

    python bench/run_all.py
    python bench/run_all.py --quick
    python bench/run_all.py --only corpus encoding

A script that fails does not stop the others; it stays in the table as failed, and this one exits
with 1. Figures of another machine (a GPU, say) stay in the files until they are measured again.
"""

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import document
import measure

from small_modernbert.runs import references, report, settings, storage
from small_modernbert.runs.errors import UserError

RERUN = "run: make bench"
SCRIPTS = ("mlm_pretraining", "teacher_labels", "distillation", "corpus", "encoding", "scaling")

ONLY: list[str] = []  # some of them; the others keep their last figures
LIMIT_MINUTES: int = 15  # of one script
THREADS: int = 0  # 0 = all processors
QUICK: bool = False  # as small as can be, written to runs/bench instead of docs
OUTPUT: str = "docs"  # folder of the two files


def main() -> None:
    """Run, collect, write."""
    unknown = set(ONLY) - set(SCRIPTS)
    if unknown:
        raise UserError(f"no such benchmark: {', '.join(unknown)}; there are: {' '.join(SCRIPTS)}")
    folder = measure.result_path("").parent if QUICK else references.ROOT / OUTPUT
    where = document.machine(len(measure.processors()))
    begun = time.monotonic()
    results = {name: run_script(name) for name in ONLY or SCRIPTS}
    stored = folder / "benchmarks.json"
    machines = storage.read_json(stored, RERUN) if stored.exists() else {}
    key = f"{where['name']}, {where['cores']} cores"
    kept = machines.get(key, {}).get("scripts", {})
    together = {name: {**kept, **results}.get(name) for name in SCRIPTS}
    machines[key] = {
        "machine": where,
        "scripts": {name: result for name, result in together.items() if result is not None},
    }
    storage.write_json(stored, machines)
    storage.write_text(folder / "BENCHMARKS.md", document.markdown(machines))
    verdicts = [row["verdict"] for result in results.values() for row in result["rows"]]
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in dict.fromkeys(verdicts))
    print(f"{counts} · {report.minutes(time.monotonic() - begun)} · {folder / 'BENCHMARKS.md'}")
    if "failed" in verdicts:
        sys.exit(1)


def run_script(name: str) -> dict[str, Any]:
    """Run one script in a process of its own; return what it published, or a row that says why."""
    path = measure.result_path(name)
    storage.remove(path)
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
    command += ["--threads", str(THREADS), *(["--quick"] if QUICK else [])]
    try:
        code: int | None = subprocess.run(command, timeout=60 * LIMIT_MINUTES).returncode
    except subprocess.TimeoutExpired:
        code = None
    if code == 0:
        return storage.read_json(path, RERUN)
    why = f"exit code {code}" if code is not None else f"longer than {LIMIT_MINUTES} minutes"
    print(f"{name} did not finish: {why}", flush=True)
    nothing = measure.claim(name, measure.spread([math.nan]), ("–", ""))
    row = nothing | {"wall": None, "verdict": "failed"}
    setting = f"Did not finish: {why}."
    return {"setting": setting, "rows": [row], "seconds": 0, "ceilings": {}, "tables": {}}


if __name__ == "__main__":
    settings.run(globals())
