"""Promises of bench/failures.py: what is simulated is what happens, and what the formulas say."""

import importlib
import sys

import pytest

from small_modernbert.runs.references import ROOT

sys.path.append(str(ROOT / "bench"))
failures = importlib.import_module("failures")
TIMES = failures.Times(step=2.0, checkpoint=1.0, begin=10.0, end=5.0, detect=3.0)


@pytest.mark.parametrize(
    ("deaths", "seconds"),
    [
        # Begin, ten steps, three checkpoints (the last step has one), end.
        ([], 10 + 20 + 3 + 5),
        # Dies in its sixth step: four are kept, two checkpoints and six steps are left.
        ([10 + 8 + 1 + 3.0], 22 + 3 + 10 + 12 + 2 + 5),
        # Dies before its first step, then while the first checkpoint is written: nothing is kept.
        ([4.0, 10 + 8 + 0.5], 4 + 3 + 18.5 + 3 + 38),
        # Would have died after its end.
        ([1_000.0], 38),
    ],
)
def test_a_run_by_hand(deaths: list[float], seconds: float) -> None:
    """Seconds of attempts: what is lost is made again, what a checkpoint holds is not."""
    assert failures.seconds_of_run(10, 4, TIMES, deaths) == pytest.approx(seconds)


@pytest.mark.parametrize("mean", [2_000.0, 100_000.0])
def test_the_best_interval_is_that_of_the_formulas(mean: float) -> None:
    """Within 15 % of Daly's, and checkpoints far more often, or far more seldom, are worse."""
    best = failures.best_interval(TIMES, mean, deaths=1_000)
    assert best == pytest.approx(failures.daly(TIMES, mean), rel=0.15)
    good = failures.goodput(round(best / 2.0), TIMES, mean, 1_000)
    for factor in (0.1, 10.0):
        assert failures.goodput(round(best * factor / 2.0), TIMES, mean, 1_000) < good


def test_deaths_too_frequent_for_a_checkpoint_end_the_simulation() -> None:
    """Where no attempt lasts until a checkpoint, nothing is made, and that is told in time."""
    assert failures.goodput(1_000, TIMES, mean=30.0, deaths=50) < 0.05


def test_equal_seeds_give_equal_figures() -> None:
    """Two runs simulate the same deaths."""
    assert failures.goodput(5, TIMES, 900.0, 200) == failures.goodput(5, TIMES, 900.0, 200)


def test_a_slow_worker_holds_up_all_ranks_but_not_labels_taken_in_turn() -> None:
    """Ranks wait for it in each step, dealt shards at the end; a shard at a time costs little."""
    assert failures.step_growth(8, 0.5, spread=0.0) == pytest.approx(1.5)
    assert failures.step_growth(64, 0.0) > failures.step_growth(8, 0.0) > 1.0
    dealt = failures.labelling_growth(8, 800, 0.5, dealt=True)
    taken = failures.labelling_growth(8, 800, 0.5, dealt=False)
    assert dealt == pytest.approx(1.5)
    # Seven and two thirds of eight workers' work, and half of a shard at the end.
    assert taken == pytest.approx(8 / (7 + 1 / 1.5), abs=0.02)


def test_a_death_costs_labelling_the_shard_it_falls_on() -> None:
    """Longer shards lose more; with one an hour and a start of 36 s, shards of 1 s lose 1 %."""
    each = {"dealt": False, "hours_to_death": 1.0}
    short, long = (
        failures.labelling_growth(1, shards, 0.0, shard_seconds=seconds, begin=36.0, **each)
        for shards, seconds in ((100_000, 1.0), (1_000, 100.0))
    )
    assert short == pytest.approx(1.01, abs=0.003)
    assert long > 1.015
