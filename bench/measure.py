"""Contenders in turn, each in a process of its own: seconds, memory, ratios, and a table of them.

A contender prepares (imports, models, inputs) and then works one round after the other, by turns
with the others, so that a machine whose speed drifts drifts under all of them. Ratios are taken
inside a round; their median is what counts. Round 0 is a warm-up and is not counted.
"""

import dataclasses
import math
import multiprocessing
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from document import markdown_of_script

from small_modernbert.runs import references, report, storage

SAMPLE_SECONDS = 0.05  # between two looks at the memory


@dataclasses.dataclass(frozen=True)
class Work:
    """What a round did.

    Attributes:
        amount: in the unit that the rate is in: real tokens, texts or rows.
        seconds: that count; 0 = all that the round took.
        flops: useful floating-point operations, see `peak`.
        figures: anything else that a round measures.
        peak_mib: largest resident size of the process and its children, filled in by the round; on
            a GPU, its allocations.
    """

    amount: float
    seconds: float = 0.0
    flops: float = 0.0
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_mib: float = 0.0


Round = Callable[[int], Work]
Rounds = list[Work]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
        name: unique among those that are run together.
        prepare: a module-level function; called in the contender's own process with `arguments`, it
            returns the work of a round as a function of the round's number.
        arguments: what can cross to another process.
    """

    name: str
    prepare: Callable[..., Round]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(contenders: Sequence[Contender], rounds: int, threads: int) -> dict[str, Rounds]:
    """Let the contenders work in turn; return each one's counted rounds.

    Args:
        contenders: in the order of their turns.
        rounds: counted ones, after the warm-up.
        threads: of each, and processors to run on; 0 = all there are.
    """
    done: dict[str, Rounds] = {contender.name: [] for contender in contenders}
    # Spawned, not forked: they must not inherit this process's memory or its thread pools.
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, spawn, _limit, (threads,)))
            for _ in contenders
        ]
        both = list(zip(contenders, pools, strict=True))
        # Together: most of it is importing, and nothing is measured yet.
        for ready in [pool.submit(_prepare, contender) for contender, pool in both]:
            ready.result()
        for number in range(rounds + 1):
            for contender, pool in both:
                work = pool.submit(_round, number).result()
                if number:
                    done[contender.name].append(work)
                what = f"round {number} of {rounds}" if number else "warm-up"
                print(f"{what}: {contender.name} {work.seconds:.2f} s", flush=True)
    return done


def processors() -> list[int]:
    """Return the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


# In a contender's own process.
_contender: dict[str, Round] = {}


def _limit(threads: int) -> None:
    threads = threads or len(processors())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors()[:threads])
    # Read by torch, numpy, pyarrow and tokenizers when they are imported, which is later.
    os.environ.update(OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
    os.environ["HF_HUB_OFFLINE"] = "1"


def _prepare(contender: Contender) -> None:
    _contender["work"] = contender.prepare(**contender.arguments)


def _round(number: int) -> Work:
    memory = _Memory()
    begun = time.perf_counter()
    with memory:
        work = _contender["work"](number)
        synchronise()
        took = time.perf_counter() - begun
    return dataclasses.replace(
        work,
        seconds=work.seconds or took,
        peak_mib=memory.peak_mib,
    )


def cpu_seconds() -> float:
    """Return user and system seconds of this process and of its ended children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def synchronise() -> None:
    """Wait for the GPU, if torch uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _Memory:
    """Looks at the resident size of this process and its children, now and then."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        torch = sys.modules.get("torch")
        self._cuda = torch.cuda if torch is not None and torch.cuda.is_initialized() else None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._cuda:
            self.peak_mib = self._cuda.max_memory_allocated() / (1 << 20)

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.wait(SAMPLE_SECONDS):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak_mib = max(self.peak_mib, total / (1 << 20))


# What a run says.


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest of the rounds' values."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def rate(rounds: Rounds) -> float:
    """Return the median amount a second."""
    return statistics.median(work.amount / work.seconds for work in rounds)


def peak_mib(rounds: Rounds) -> float:
    """Return the largest resident size of the rounds."""
    return max(work.peak_mib for work in rounds)


def ratio(ours: Rounds, peer: Rounds) -> dict[str, float]:
    """Return how many times as much work a second ours does as the peer, round by round."""
    return spread(
        [
            (mine.amount / mine.seconds) / (other.amount / other.seconds)
            for mine, other in zip(ours, peer, strict=True)
        ]
    )


def share(rounds: Rounds, ceiling: float) -> dict[str, float]:
    """Return the useful operations a second over a ceiling of them, round by round."""
    return spread([work.flops / work.seconds / ceiling for work in rounds])


def check(
    what: str, value: float, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """Return a condition beside a figure: equal vectors, less memory."""
    return {"what": what, "value": value, "least": least, "most": most}


def claim(
    what: str,
    figure: dict[str, float],
    peer: tuple[str, str],
    *,
    least: float | None = None,
    most: float | None = None,
    rounds: tuple[Rounds, Rounds] | None = None,
    ceilings: dict[str, float] | None = None,
    checks: Sequence[dict[str, Any]] = (),
    reason: str = "",
) -> dict[str, Any]:
    """Return a row: a figure against its bound, and the verdict.

    Args:
        what: is claimed, with its unit.
        figure: a `spread`.
        peer: in a few words, and what it runs, as its own documentation writes it.
        least: bound of the figure's median; with no bound the figure is reported only.
        most: bound from above.
        rounds: ours and the peer's, for rates and memory.
        ceilings: operations a second by format, for ours' share of them.
        checks: what else must hold.
        reason: why the bound is missed, from a profile; shown where it is.
    """
    held = [within(each["value"], each["least"], each["most"]) for each in checks]
    met = within(figure["median"], least, most) and all(held)
    promised = least is not None or most is not None or checks
    return {
        "claim": what,
        "peer": peer[0],
        "wording": peer[1],
        "wall": figure,
        "least": least,
        "most": most,
        "rates": rounds and [rate(side) for side in rounds],
        "memory_mib": rounds and [peak_mib(side) for side in rounds],
        "shares": {
            name: share(rounds[0], limit)["median"] for name, limit in (ceilings or {}).items()
        }
        if rounds
        else {},
        "checks": list(checks),
        "reason": reason,
        "verdict": ("met" if met else "not met") if promised else "reported",
    }


def versus(
    what: str,
    done: dict[str, Rounds],
    sides: tuple[str, str],
    peer: tuple[str, str],
    **bounds: Any,  # noqa: ANN401  of `claim`
) -> dict[str, Any]:
    """Return the row of two contenders that worked in turn; `sides` are their names, ours first."""
    ours, other = (done[name] for name in sides)
    return claim(what, ratio(ours, other), peer, rounds=(ours, other), **bounds)


def of_peak(what: str, rounds: Rounds, ceilings: dict[str, float], reason: str) -> dict[str, Any]:
    """Return the row that holds a contender against the machine's bf16 matrix-product rate."""
    figure = share(rounds, ceilings["bf16"])
    what = f"{what}, share of the bf16 matrix-product rate"
    return claim(what, figure, ("the machine", ""), least=0.6, reason=reason)


def within(value: float, least: float | None, most: float | None) -> bool:
    """Say whether a value is inside its bounds; NaN never is."""
    if math.isnan(value):
        return False
    return (least is None or value >= least) and (most is None or value <= most)


def publish(
    script: str,
    claims: Sequence[dict[str, Any]],
    *,
    setting: str,
    begun: float,
    ceilings: dict[str, float] | None = None,
    tables: dict[str, tuple[list[str], list[list[Any]]]] | None = None,
) -> None:
    """Print a script's claims and tables, and write them to runs/bench/<script>.json.

    Args:
        script: file name of the script; its stem names the file.
        claims: see `claim`.
        setting: model, data and sizes in one line.
        begun: `time.monotonic()` at the start.
        ceilings: operations a second by format.
        tables: title -> headers and rows, for what is no ratio.
    """
    name, seconds = Path(script).stem, time.monotonic() - begun
    result = {
        "setting": setting,
        "seconds": round(seconds),
        "ceilings": ceilings or {},
        "rows": list(claims),
        "tables": {
            title: {"headers": headers, "rows": cells}
            for title, (headers, cells) in (tables or {}).items()
        },
    }
    print(markdown_of_script(name, result))
    storage.write_json(result_path(name), result)
    print(f"{name}: {report.minutes(seconds)} · {result_path(name)}")


def result_path(name: str) -> Path:
    """Return where a script leaves its claims."""
    return references.runs_folder() / "bench" / f"{name}.json"
