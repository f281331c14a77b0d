r"""See that a run is one and the same however many share it and whoever dies; and how fast it is.

Reads: assets/text/train.parquet and the tokenizer of assets/models (make assets).
Writes: docs/scale.json, and docs/SCALE.md from it; with --quick runs/bench/scale.json.

    python bench/scale.py
    python bench/scale.py --quick

Tiny models, real processes: torchrun with gloo, SIGKILL. Exits with 1 where what should be equal
is not; seconds are told, and held against the simulation of bench/failures.py, but a busy machine
fails nothing.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import document
import failures
import inputs
import measure
from rank_trials import (
    CORPUS,
    LABELS,
    RECIPE,
    Place,
    Trial,
    largest_difference,
    shard_digests,
)

from small_modernbert.runs import report, settings, storage
from small_modernbert.runs.references import ROOT

# Equality
RANKS: list[int] = [1, 2, 4]
WORKERS: list[int] = [1, 2, 8]
STEPS: int = 6  # of four batches
TOLERANCE: float = 1e-6  # between weights
TEXTS: int = 700
CORPUS_ROWS: int = 30_000  # of the offline text; fewer than 10,000 are done by one process

# Throughput
RATE_ROWS: list[int] = [40_000, 160_000]  # what starting costs is in both, and so in neither
RATE_ROUNDS: int = 3
RATE_NOISE: float = 0.15  # by which a worker's processor seconds a row may grow beside another

# Seconds: steps that mostly wait, so that the machine's other work does not change them
WAIT: float = 0.4  # of each rank in each batch
SLOWER: float = 0.4  # more than that, of one rank
TIMED_STEPS: int = 40
TIMED_EVERY: int = 16  # steps between checkpoints
KILLED_AT: list[int] = [14, 30]  # steps that are made when the leader dies

CHECKPOINT_VOCABULARY: int = 50_368  # ModernBERT's, with which small-v2 is made

# Run
QUICK: bool = False  # few ranks, workers and rows, nothing timed

TRAINED = {"distil_modernbert": "distillation", "mlm/pre_train": "MLM pre-training"}


class Check(NamedTuple):
    """One line of what was looked at.

    Attributes:
        what: in a few words.
        figure: what was measured.
        held: whether it is as it should be; None where nothing is promised.
        timed: whether other work on the machine could have changed that.
    """

    what: str
    figure: str
    held: bool | None
    timed: bool = False


def main() -> None:
    """Try everything, print a line each, write what was measured."""
    begun = time.monotonic()
    if QUICK:
        globals().update(RANKS=[1, 2], WORKERS=[1, 2], STEPS=2, TEXTS=250, CORPUS_ROWS=11_000)
    checks: list[Check] = []

    def tell(found: Iterator[Check]) -> None:
        for check in found:
            verdict = {True: "held", False: "NOT HELD", None: "told"}[check.held]
            minutes = report.minutes(time.monotonic() - begun)
            print(f"{check.what}: {check.figure} · {verdict} · {minutes}", flush=True)
            checks.append(check)

    seconds: list[list[Any]] = []
    constants: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), TEXTS)
        place.prepare()
        tell(equal_on_ranks(place))
        tell(killed_rank(place))
        tell(killed_labelling(place))
        tell(equal_on_workers(place))
        tell(labels_by_workers(place))
        if not QUICK:
            tell(rate_of_workers(place))
            tell(timed(place, seconds))
            constants = checkpoint_constants(Path(folder))
    result = {
        "machine": document.machine(len(measure.processors())),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "constants": constants,
        "checks": [check._asdict() for check in checks],
        "seconds": seconds,
    }
    storage.write_json(measure.result_path("scale") if QUICK else ROOT / "docs/scale.json", result)
    if not QUICK:
        import scale_model

        scale_model.main()
    if any(check.held is False and not check.timed for check in checks):
        sys.exit(1)


def equal_on_ranks(place: Place) -> Iterator[Check]:
    """Train on several numbers of ranks: the same batches, the same weights."""
    more = ["--accumulate", "4", "--max-steps", str(STEPS)]
    for script, name in TRAINED.items():
        single, *others = (
            Trial(place, f"{script.replace('/', '-')}-{ranks}", script, more, ranks).run()
            for ranks in RANKS
        )
        wanted = single.batches()
        moved = largest_difference(place.student, single.final)
        for other in others:
            apart = largest_difference(single.final, other.final)
            same = other.batches() == wanted
            figure = f"{len(wanted)} batches {'the same' if same else 'NOT the same'}, weights "
            figure += f"at most {apart:.1e} apart, where training moved them up to {moved:.1e}"
            yield Check(f"{name}, {other.ranks} ranks and 1", figure, same and apart <= TOLERANCE)


def killed_rank(place: Place) -> Iterator[Check]:
    """Kill the second of two ranks, then the first: torchrun's restart ends with equal weights."""
    more = ["--accumulate", "2", "--max-steps", str(2 * STEPS), "--checkpoint-every", "2"]
    script = "mlm/pre_train"
    whole = Trial(place, "whole", script, more).run()
    for rank in (1,) if QUICK else (1, 0):
        trial = Trial(place, f"killed-{rank}", script, more, 2, restarts=1, waits=[0.2, 0.2])
        trial.start().kill(trial.has_made(STEPS), rank)
        trial.wait()
        apart = largest_difference(whole.final, trial.final)
        figure = f"weights at most {apart:.1e} apart"
        what = f"{TRAINED[script]}, rank {rank} of 2 killed, --max-restarts 1"
        yield Check(what, figure, apart <= TOLERANCE)


def killed_labelling(place: Place) -> Iterator[Check]:
    """Kill a labelling worker amid its shards, and start it again: the same shards."""
    wanted = shard_digests(place.folder / "inputs" / RECIPE / LABELS / "final")
    trial = Trial(place, "labels-killed", LABELS).start()
    trial.kill(lambda: any(trial.stage.glob("final.partial/train/shard-00001.parquet")))
    left = len(shard_digests(trial.stage / "final.partial"))
    trial.run()
    same = shard_digests(trial.final) == wanted
    figure = f"{len(wanted)} shards, {left} of them from before the kill"
    yield Check("labelling, killed and started again", figure, same and 0 < left < len(wanted))


def equal_on_workers(place: Place) -> Iterator[Check]:
    """Build a corpus by several numbers of processes, ours and datatrove's: the same rows."""
    from small_modernbert.data import corpus, shards

    path, digests = write_rows(place, CORPUS_ROWS), {}
    for executor in ("plain", "local"):
        for workers in WORKERS:
            more = ["--offline-text", str(path), "--executor", executor]
            more += ["--workers", str(workers)]
            trial = Trial(place, f"corpus-{executor}-{workers}", CORPUS, more).run()
            rows = corpus.open_corpus(trial.final)
            digests[executor, workers] = shards.digest_rows(rows)[:16]
        first = digests["plain", WORKERS[0]]
        same = {digests[executor, workers] for workers in WORKERS} == {first}
        figure = f"{CORPUS_ROWS:,} rows read, digest of the sorted rows {first}"
        numbers = ", ".join(map(str, WORKERS))
        what = f"corpus by {numbers} workers, --executor {executor}"
        yield Check(what, figure if same else str(digests), same)


def labels_by_workers(place: Place) -> Iterator[Check]:
    """Label by tasks of one shard each, on several numbers of processes: the same shards."""
    wanted = shard_digests(place.folder / "inputs" / RECIPE / LABELS / "final")
    others = []
    for workers in WORKERS:
        more = ["--executor", "local", "--workers", str(workers), "--task-shards", "1"]
        trial = Trial(place, f"labels-{workers}", LABELS, more).run()
        others += [workers] if shard_digests(trial.final) != wanted else []
    numbers = ", ".join(map(str, WORKERS))
    figure = f"other shards by {others}" if others else f"{len(wanted)} shards, byte for byte"
    yield Check(f"labels by {numbers} workers, --executor local, and by none", figure, not others)


def write_rows(place: Place, rows: int) -> Path:
    """Write every so-many-th row of the offline text, whose sources lie one after the other."""
    import pyarrow.parquet as pq

    path = place.folder / f"rows-{rows}.parquet"
    whole = pq.read_table(inputs.locate(inputs.TEXT))
    stride = max(1, whole.num_rows // rows)
    pq.write_table(whole.take(list(range(0, whole.num_rows, stride))[:rows]), path)
    return path


def rate_of_workers(place: Place) -> Iterator[Check]:
    """Measure the processor seconds a row of corpus building, by one worker and by two."""
    few, many = (write_rows(place, rows) for rows in RATE_ROWS)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(RATE_ROUNDS):
        for workers in rates:
            used = []
            for path in (few, many):
                name = f"rate-{workers}-{path.stem}-{number}"
                more = ["--offline-text", str(path), "--workers", str(workers)]
                before = measure.cpu_seconds()
                Trial(place, name, CORPUS, [*more, "--no-deduplicate-near"]).run()
                used.append(measure.cpu_seconds() - before)
            rates[workers].append((RATE_ROWS[1] - RATE_ROWS[0]) / (used[1] - used[0]))
    single, both = (statistics.median(each) for each in rates.values())
    growth = statistics.median(map(lambda a, b: a / b, rates[1], rates[2]))
    figure = f"{single:,.0f} and {both:,.0f} rows a processor second: {growth:.2f} x the cost"
    held = growth <= 1 + RATE_NOISE
    yield Check("corpus by 1 and 2 workers, each one's rate", figure, held, timed=True)


def timed(place: Place, seconds: list[list[Any]]) -> Iterator[Check]:
    """Hold the simulation against runs of two ranks with a slow one, and with planted deaths.

    How long imports take depends on what else the machine does: starts are those of the run itself.
    """
    more = ["--accumulate", "2", "--max-steps", str(TIMED_STEPS), "--epochs", "9"]
    more += ["--checkpoint-every", str(TIMED_EVERY)]

    def trial(name: str, slower: float, restarts: int = 0) -> Trial:
        waits = [WAIT, WAIT + slower]
        started = Trial(place, name, "distil_modernbert", more, 2, restarts, waits).start()
        return started.wait_for_first_step()

    def compare(what: str, simulated: float, measured: float) -> Check:
        seconds.append([what, simulated, measured])
        ratio = simulated / measured
        figure = f"{simulated:.1f} s simulated, {measured:.1f} s measured: {ratio:.2f}"
        return Check(what, figure, abs(ratio - 1) <= 0.15, timed=True)

    base = trial("timed", 0.0)
    times = base.times(base.wait())
    slow = trial("slow", SLOWER)
    given = times._replace(step=times.step + SLOWER, begin=slow.first_step - slow.begun)
    simulated = failures.seconds_of_run(TIMED_STEPS, TIMED_EVERY, given, [])
    yield compare("one of two ranks slow", simulated, slow.wait())

    killed, starts, uptimes, kept = trial("killed", 0.0, restarts=len(KILLED_AT)), [], [], 0
    begin = killed.first_step - killed.begun
    for steps in KILLED_AT:
        uptimes.append(begin + (steps - kept) * times.step)
        kept = steps // TIMED_EVERY * TIMED_EVERY
        starts.append(killed.restart(steps, kept))
    given = times._replace(begin=begin, detect=statistics.mean(starts) - begin)
    simulated = failures.seconds_of_run(TIMED_STEPS, TIMED_EVERY, given, uptimes)
    yield compare("the first of two ranks killed twice", simulated, killed.wait())
    figure = (
        f"a start {times.begin:.1f} s, a death to the next step {given.begin + given.detect:.1f} s"
    )
    yield Check("two ranks on this machine", figure, None)


def checkpoint_constants(folder: Path) -> dict[str, float]:
    """Measure the checkpoint of a small-v2: bytes, and seconds until it is safely on the disk."""
    import torch

    from small_modernbert.models import students
    from small_modernbert.training import checkpoints, loop
    from small_modernbert.training.schedule import Progress

    tokenizer = inputs.locate(inputs.TEACHER)
    inputs.make_student(folder / "full", tokenizer, 0, "small-v2", CHECKPOINT_VOCABULARY)
    model = students.load_student(folder / "full").transformer
    optimizer = loop.make_optimizer("stable_adamw", model, learning_rate=0.0, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # gives it the state that a checkpoint holds
    seconds = []
    for step in range(1, 6):
        begun = time.monotonic()
        checkpoints.save_checkpoint(folder / "kept", model, optimizer, Progress(step=step))
        seconds.append(time.monotonic() - begun)
    newest = checkpoints.list_checkpoints(folder / "kept")[-1]
    size = sum(path.stat().st_size for path in storage.list_files(newest))
    return {"checkpoint": round(statistics.median(seconds), 3), "checkpoint_bytes": size}


if __name__ == "__main__":
    settings.run(globals())
