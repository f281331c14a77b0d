"""Promises of dashboards.py: the numbers of metrics.jsonl elsewhere, once each, without secrets."""

import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest

from small_modernbert.runs import dashboards, settings
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT
from small_modernbert.runs.stages import Stage

Open = Callable[..., Stage]
TOKEN = "hf_" + "x" * 20


def step(number: int, loss: float) -> dict[str, Any]:
    """Return a line of a training step, as the loop writes it."""
    return {"step": number, "loss": loss, "tokens": 10, "batches": 1, "seconds": 0.1}


def report(stage: Stage, *lines: dict[str, Any]) -> Path:
    """Write lines to metrics.jsonl, then be interrupted; return the stage's folder."""
    with pytest.raises(KeyboardInterrupt), stage:
        for line in lines:
            stage.write_metrics(**line)
        raise KeyboardInterrupt
    return stage.folder


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Mock]:
    """Return a function that puts a stand-in in a library's place, and returns its `init`."""

    def install(name: str) -> Mock:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.init, module.Settings = Mock(), dict  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        return module.init

    return install


def test_a_resumed_run_has_one_point_a_step(open_stage: Open) -> None:
    """TensorBoard's curves go on after a break: what is made anew replaces what was there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted: dict[str, Any] = {"REPORT_TO": ["tensorboard"]}
    evaluation = {"step": 0, "sts-dev_spearman": 0.5}
    report(open_stage(**wanted), evaluation, step(1, 4.0), step(2, 3.0), step(3, 9.0))
    folder = report(open_stage(**wanted), step(3, 2.0), {"step": 4, "skipped": "why", "batches": 1})
    events = EventAccumulator(str(folder / dashboards.FOLDER)).Reload()
    losses = [(point.step, point.value) for point in events.Scalars("train/loss")]
    assert losses == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert [point.value for point in events.Scalars("validation/sts-dev_spearman")] == [0.5]
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "train/tokens", "train/seconds", "validation/sts-dev_spearman")
    }


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_run_is_taken_up_by_its_id(
    name: str, open_stage: Open, library: Callable[[str], Mock]
) -> None:
    """A resumed run goes on under its id, a redone one gets another; no secret goes along."""
    init = library(name)
    wanted: dict[str, Any] = {"REPORT_TO": [name], "NAMES": [TOKEN]}
    report(open_stage(**wanted), step(1, 4.0))
    report(open_stage(**wanted), step(2, 3.0))
    report(open_stage(**wanted, OVERWRITE=True), step(1, 4.0))
    first, resumed, redone = init.call_args_list
    assert first == resumed != redone
    assert first.kwargs["config"]["STEPS"] == 3
    assert TOKEN not in str(init.call_args_list)
    init.return_value.log.assert_called_with(
        {"train/loss": 4.0, "train/tokens": 10.0, "train/seconds": 0.1}, step=1
    )
    assert init.return_value.finish.call_count == 3


def test_a_dashboard_that_fails_ends_no_run(
    open_stage: Open, library: Callable[[str], Mock], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is let go, with a warning; metrics.jsonl has every line."""
    library("wandb").return_value.log.side_effect = OSError("gone\nfor good")
    folder = report(open_stage(REPORT_TO=["wandb"]), step(1, 4.0), step(2, 3.0))
    assert "wandb fails (gone): no more figures go there" in capsys.readouterr().out
    assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_one_that_does_not_start_says_so(open_stage: Open, library: Callable[[str], Mock]) -> None:
    """Without a key, say: before anything is trained; its folder is free afterwards."""
    library("wandb").side_effect = RuntimeError("no API key")
    with (
        pytest.raises(UserError, match="REPORT_TO: wandb does not start: no API key"),
        open_stage(REPORT_TO=["wandb"]),
    ):
        pass
    report(open_stage(), step(1, 4.0))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command that installs it; what is no dashboard is told from what is."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, cure in dashboards.CURES.items():
        with pytest.raises(UserError, match=re.escape(f"{name} is not installed; run: {cure}")):
            dashboards.check([name])
    with pytest.raises(UserError, match="'tensorbord' is none of tensorboard, trackio, wandb"):
        dashboards.check(["tensorbord"])


def test_every_training_stage_reports(open_stage: Open) -> None:
    """Each script that trains has the flag; no run differs by it, and nothing is made without."""
    scripts = [
        path
        for path in (*ROOT.glob("*.py"), *ROOT.glob("mlm/*.py"))
        if "loop.train(" in path.read_text(encoding="utf-8")
    ]
    assert len(scripts) == 5
    for script in scripts:
        assert "REPORT_TO" in [constant.name for constant in settings.read_constants(script)]
    assert "REPORT_TO" in settings.HOUSEKEEPING
    assert not (report(open_stage(), step(1, 4.0)) / dashboards.FOLDER).exists()
