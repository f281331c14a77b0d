r"""What failures and slow ranks cost: a simulation, from measured seconds and published rates.

Reads: docs/scale.json (make scale), the constants below and of bench/scale_model.py.
Writes: nothing; bench/scale_model.py puts its tables into docs/SCALE.md.

    python bench/failures.py

A run is attempts, each of which lasts until a rank dies: it begins, makes steps, writes a
checkpoint now and then while all ranks wait, and what it made since the last one is lost. Deaths
are independent and equally likely at any time (exponential), as is usual for whole clusters.
"""

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from small_modernbert.runs import settings

SEED: int = 0
RANKS: list[int] = [8, 64, 512]
DEATHS: int = 4_000  # simulated for a figure
PAUSES: list[int] = [10, 60, 600, 3_600]  # seconds between checkpoints
SLOWER: list[float] = [0.1, 0.5, 1.0]  # share by which one worker takes longer than the others
SPREAD: float = 0.03  # of a step's seconds on a healthy rank: assumed, log-normal
SHARDS_PER_WORKER: int = 100


class Failures(NamedTuple):
    """Where a run is.

    Attributes:
        hours: from one death of a GPU to its next.
        together: GPUs that die at once.
    """

    hours: float
    together: int

    def seconds(self, ranks: int) -> float:
        """Return the seconds between two deaths in a run of so many ranks."""
        return self.hours * 3600 * self.together / ranks


PLACES = {
    # Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days of 16,384
    "as Llama 3's cluster": Failures(54 * 24 * 16_384 / 419, 1),
    "machines taken away daily": Failures(24, 8),  # assumed, as of the cheapest offers
}


class Times(NamedTuple):
    """Seconds of a run.

    Attributes:
        step: of one step.
        checkpoint: of writing one, while all ranks wait.
        begin: from the launch to the first step.
        end: from the last step to the end.
        detect: from a death to the launch of the next attempt.
    """

    step: float
    checkpoint: float
    begin: float
    end: float
    detect: float


def seconds_of_run(steps: int, every: int, times: Times, deaths: Iterable[float]) -> float:
    """Return how long a run takes, until all steps are made.

    Args:
        steps: of the run.
        every: steps between two checkpoints.
        times: of its parts.
        deaths: seconds from each launch to the next death; where they end, nobody dies any more.
    """
    segment = every * times.step + times.checkpoint
    made, total = 0, 0.0

    def rest() -> float:
        left = steps - made
        return times.begin + left * times.step + -(-left // every) * times.checkpoint + times.end

    for uptime in deaths:
        if uptime >= rest():
            break
        whole = int(max(0.0, uptime - times.begin) // segment)
        made = min(made + whole * every, steps)
        total += uptime + times.detect
    return total + rest()


def exponential(mean: float, random: np.random.Generator) -> Iterator[float]:
    """Yield the seconds to each next death, for ever."""
    while True:
        yield from (mean * random.standard_exponential(4_096)).tolist()


def goodput(every: int, times: Times, mean: float, deaths: int = DEATHS) -> float:
    """Return the share of the time in which steps are made that count, in a long run.

    Args:
        every: steps between two checkpoints.
        times: of the run's parts.
        mean: seconds from one death to the next.
        deaths: about as many happen in the run; equal seeds, so intervals are compared fairly.
    """
    steps = max(every, int(deaths * mean / times.step))
    drawn = exponential(mean, np.random.default_rng(SEED))
    limit = 50.0 * deaths * mean  # where attempts are too short for a checkpoint, nothing is made
    return steps * times.step / seconds_of_run(steps, every, times, within(drawn, limit))


def within(deaths: Iterator[float], limit: float) -> Iterator[float]:
    """Yield deaths until the seconds they sum to exceed a limit; then a run may end in peace."""
    total = 0.0
    for uptime in deaths:
        total += uptime
        if total > limit:
            return
        yield uptime


def best_interval(times: Times, mean: float, deaths: int = DEATHS) -> float:
    """Return the seconds between checkpoints at which the simulated goodput is best.

    The simulated loss is fitted by a / t + b t + c, whose least is at sqrt(a / b): the curve is so
    flat there that the best of a few simulated points would be the luckiest one.
    """
    around = math.sqrt(2 * times.checkpoint * mean)
    steps = [max(1, round(around * factor / times.step)) for factor in np.geomspace(0.3, 3.3, 15)]
    seconds = np.array(steps) * times.step
    losses = np.array([1 / goodput(every, times, mean, deaths) - 1 for every in steps])
    terms = np.stack([1 / seconds, seconds, np.ones_like(seconds)], axis=1)
    a, b, _ = np.linalg.lstsq(terms, losses, rcond=None)[0]
    return math.sqrt(a / b)


def young(times: Times, mean: float) -> float:
    """Return the best seconds between checkpoints by Young (1974): sqrt(2 x checkpoint x mean)."""
    return math.sqrt(2 * times.checkpoint * mean)


def daly(times: Times, mean: float) -> float:
    """Return the best seconds between checkpoints by Daly (2006), equation 37."""
    share = times.checkpoint / (2 * mean)
    return young(times, mean) * (1 + math.sqrt(share) / 3 + share / 9) - times.checkpoint


def step_growth(ranks: int, slower: float, spread: float = SPREAD, steps: int = 2_000) -> float:
    """Return how much longer a step of many ranks takes than one of a healthy rank alone.

    Args:
        ranks: that wait for the slowest of them in every step.
        slower: by which share one of them is slower than the others.
        spread: of each one's seconds from step to step.
        steps: simulated.
    """
    random = np.random.default_rng(SEED)
    seconds = np.exp(random.normal(0.0, spread, (steps, ranks)))
    seconds[:, 0] *= 1 + slower
    return float(seconds.max(axis=1).mean() / math.exp(spread**2 / 2))


def labelling_growth(
    workers: int, shards: int, slower: float, *, dealt: bool, hours_to_death: float = math.inf,
    shard_seconds: float = 60.0, begin: float = 0.0,
) -> float:  # fmt: skip
    """Return how much longer labelling takes than on healthy workers with nothing to lose.

    A worker that dies loses the shard that it is at, and begins again; no other one notices.

    Args:
        workers: each on its own.
        shards: in all.
        slower: by which share one of the workers is slower than the others.
        dealt: whether each worker has its shards from the beginning; else it takes the next one.
        hours_to_death: of a worker.
        shard_seconds: of one shard.
        begin: seconds in which a worker starts.
    """
    random = np.random.default_rng(SEED)
    mean = hours_to_death * 3600

    def seconds_of(worker: int) -> float:
        needed = shard_seconds * (1 + slower if worker == 0 else 1)
        total = needed
        while math.isfinite(mean) and (uptime := mean * random.standard_exponential()) < needed:
            total += uptime + begin
        return total

    if dealt:
        own = [-(-(shards - worker) // workers) for worker in range(workers)]
        ends = [sum(seconds_of(worker) for _ in range(own[worker])) for worker in range(workers)]
    else:
        free = [(0.0, worker) for worker in range(workers)]
        for _ in range(shards):
            clock, worker = heapq.heappop(free)
            heapq.heappush(free, (clock + seconds_of(worker), worker))
        ends = [clock for clock, _ in free]
    return max(ends) / (shards * shard_seconds / workers)


def training_tables(times: Times) -> tuple[list[list[object]], list[list[object]]]:
    """Return rows of goodput by interval, and of best intervals beside the formulas'."""
    shares, best = [], []
    for name, place in PLACES.items():
        for ranks in RANKS:
            mean = place.seconds(ranks)
            simulated, formula = best_interval(times, mean), daly(times, mean)
            cells = [
                f"{goodput(max(1, round(pause / times.step)), times, mean):.2%}"
                for pause in (*PAUSES, simulated)
            ]
            shares.append([name, ranks, f"{mean / 3600:,.3g}", *cells])
            row = [f"{each:,.0f}" for each in (simulated, formula, young(times, mean))]
            best.append([name, ranks, *row, f"{simulated / formula:.2f}"])
    return shares, best


def straggler_table() -> list[list[object]]:
    """Return rows of what a slow worker costs training, labels dealt out, labels taken in turn."""
    rows = []
    for ranks in RANKS:
        for slower in SLOWER:
            shards = ranks * SHARDS_PER_WORKER
            growth = [
                step_growth(ranks, slower) / step_growth(ranks, 0.0),
                labelling_growth(ranks, shards, slower, dealt=True),
                labelling_growth(ranks, shards, slower, dealt=False),
            ]
            rows.append([ranks, f"{slower:.0%}", *(f"{each - 1:.1%}" for each in growth)])
    return rows


def main() -> None:
    """Print the tables, for steps and starts as docs/SCALE.md has them."""
    import scale_model

    print(scale_model.failures_section())


if __name__ == "__main__":
    settings.run(globals())
