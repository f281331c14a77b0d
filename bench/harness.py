"""Contenders in turn, each in a process of its own, on the same threads: time, memory, ratios.

A contender is a function that prepares (imports, builds its model, reads its inputs) and returns
the work of one round. The parent lets the contenders work one after the other, round by round, so
that a machine whose speed drifts drifts under all of them; ratios are taken inside a round and
their median over the rounds is what is reported. Round 0 is a warm-up and is not counted.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import re
import resource
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from small_modernbert.runs import stages

TAIL_CHARACTERS = 3_000  # of a failed contender's output


@dataclasses.dataclass(frozen=True)
class Work:
    """What one round did.

    Attributes:
        amount: in the unit that the rate is in: real tokens, texts or rows.
        tokens: real tokens.
        processed: tokens with the padding among them; 0 = not known.
        flops: useful floating-point operations, see `ceiling`.
        figures: anything else that a round measures.
    """

    amount: float
    tokens: float = 0.0
    processed: float = 0.0
    flops: float = 0.0
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


class Clock:
    """Wall and CPU seconds of a round; a contender may start it later and stop it earlier."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._running = False

    def start(self) -> None:
        """Count from here on; what came before is forgotten."""
        _wait_for_gpu()
        self._begin = (time.perf_counter(), _cpu_seconds())
        self._running = True

    def stop(self) -> None:
        """Count to here; stopping a stopped clock does nothing."""
        if self._running:
            _wait_for_gpu()
            self.seconds = time.perf_counter() - self._begin[0]
            self.cpu_seconds = _cpu_seconds() - self._begin[1]
            self._running = False


Round = Callable[[int, Clock], Work]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
        name: unique among those that are run together.
        prepare: a module-level function; called in the contender's own process with `arguments`,
            it returns the work of a round as a function of the round's number and its clock.
        arguments: what can cross to another process.
    """

    name: str
    prepare: Callable[..., Round]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One counted round: seconds of the clock, and the work done in them."""

    seconds: float
    cpu_seconds: float
    work: Work
    peak_mib: float = 0.0


@dataclasses.dataclass(frozen=True)
class Result:
    """All counted rounds of a contender.

    Attributes:
        name: the contender's.
        samples: one a round.
        ready_mib: resident memory once it was prepared.
    """

    name: str
    samples: tuple[Sample, ...]
    ready_mib: float = 0.0

    @property
    def peak_mib(self) -> float:
        """Largest resident memory of the process in a counted round; on a GPU, its allocations."""
        return max(sample.peak_mib for sample in self.samples)

    @property
    def rate(self) -> float:
        """Median amount a wall second."""
        return statistics.median(sample.work.amount / sample.seconds for sample in self.samples)

    @property
    def padding(self) -> float | None:
        """Real tokens over processed ones; None where they are not known."""
        processed = sum(sample.work.processed for sample in self.samples)
        return sum(sample.work.tokens for sample in self.samples) / processed if processed else None


@dataclasses.dataclass(frozen=True)
class Spread:
    """A figure of every round: its median, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of the rounds' values."""
        return cls(statistics.median(values), min(values), max(values))


def compare(ours: Result, peer: Result, by: Literal["seconds", "cpu_seconds"]) -> Spread:
    """Return how many times as much work a second ours does as the peer, round by round."""
    return Spread.of(
        [
            (mine.work.amount / getattr(mine, by)) / (other.work.amount / getattr(other, by))
            for mine, other in zip(ours.samples, peer.samples, strict=True)
        ]
    )


def share(result: Result, ceiling: float) -> Spread:
    """Return the useful operations a second over `ceiling` of them, round by round."""
    return Spread.of([one.work.flops / one.seconds / ceiling for one in result.samples])


def processors() -> list[int]:
    """Return the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run(contenders: Sequence[Contender], rounds: int, threads: int) -> dict[str, Result]:
    """Let the contenders work in turn; return each one's counted rounds.

    Args:
        contenders: in the order in which they take their turns.
        rounds: counted ones, after the warm-up.
        threads: of torch, tokenizers and pyarrow, and processors to run on; 0 = all there are.

    Raises:
        RuntimeError: a contender failed; the message has its traceback or its last words.
    """
    threads = threads or len(processors())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(_Worker(one, threads, folder / f"{number}.log"))
            for number, one in enumerate(contenders)
        ]
        # Together: most of it is importing, and nothing is measured yet.
        ready = [worker.receive() for worker in workers]
        samples: dict[str, list[Sample]] = {one.name: [] for one in contenders}
        for number in range(rounds + 1):
            for worker in workers:
                sample = worker.ask(number)
                if number:
                    samples[worker.name].append(sample)
                what = f"round {number} of {rounds}" if number else "warm-up"
                print(f"{what}: {worker.name} {sample.seconds:.2f} s", flush=True)
    return {
        worker.name: Result(worker.name, tuple(samples[worker.name]), mib)
        for worker, mib in zip(workers, ready, strict=True)
    }


class _Worker:
    """A contender's process, as its parent sees it."""

    def __init__(self, contender: Contender, threads: int, log: Path) -> None:
        self.name, self.log = contender.name, log
        # Spawned, not forked: it must not inherit the parent's memory or its thread pools.
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        # No daemon: a contender may have processes of its own.
        self.process = context.Process(target=_serve, args=(end, contender, threads, log))
        self.process.start()
        end.close()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(10)
        self.process.kill()
        self.process.join()

    def receive(self) -> Any:  # noqa: ANN401  what `_serve` sends
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            words = self.log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:]
            raise RuntimeError(
                f"{self.name} ended with exit code {self.process.exitcode}: {words}"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name} failed: {answer}")
        return answer

    def ask(self, number: int) -> Sample:
        self.pipe.send(number)
        return self.receive()


def _serve(pipe: Connection, contender: Contender, threads: int, log: Path) -> None:
    """Prepare, then answer each round's number with its sample, until None comes."""
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors()[:threads])
    # Read by torch, numpy, pyarrow and tokenizers when they are imported, which is later.
    os.environ.update(OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        work = contender.prepare(**contender.arguments)
        pipe.send(_memory_mib("VmRSS"))
        while (number := pipe.recv()) is not None:
            _forget_peak()
            clock = Clock()
            with _Children() as children:
                clock.start()
                done = work(number, clock)
                clock.stop()
            peak = _memory_mib("VmHWM") + children.peak_mib
            pipe.send(Sample(clock.seconds, clock.cpu_seconds, done, peak))
    except EOFError:  # the parent has gone
        return
    except BaseException:  # noqa: BLE001  the parent raises it
        pipe.send(traceback.format_exc()[-TAIL_CHARACTERS:])


def _cpu_seconds() -> float:
    """Return user and system seconds of this process and of its ended children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _gpu() -> Any:  # noqa: ANN401  the module torch.cuda, or None where it is not in use
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _wait_for_gpu() -> None:
    if cuda := _gpu():
        cuda.synchronize()


def _forget_peak() -> None:
    """Let the next peak count from what is resident now; see proc(5), clear_refs."""
    if cuda := _gpu():
        cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not allowed in every container: the peak then is older
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _memory_mib(field: Literal["VmRSS", "VmHWM"]) -> float:
    if cuda := _gpu():
        found = cuda.max_memory_allocated() if field == "VmHWM" else cuda.memory_allocated()
        return found / (1 << 20)
    status = Path("/proc/self/status")
    if not status.exists():
        return float(stages.peak_memory_mib())
    return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text(encoding="ascii"))[1]) / 1024


class _Children:
    """Watches the resident size of this process's children, all together. A context manager.

    The kernel only tells the largest of those that have ended, and counts a fork's copy as its own.
    """

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Children":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        while not self._done.wait(0.1):
            total = 0.0
            for listing in Path("/proc/self/task").glob("*/children"):
                with contextlib.suppress(OSError, ValueError):
                    for pid in listing.read_text(encoding="ascii").split():
                        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
                        total += int(pages) * page
            self.peak_mib = max(self.peak_mib, total)
