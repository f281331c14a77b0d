"""Promises of bench/scale_model.py: proportions hold, what breaks first stands first."""

import importlib
import sys
from pathlib import Path

import pytest

from small_modernbert.runs import storage
from small_modernbert.runs.references import ROOT

sys.path.append(str(ROOT / "bench"))
scale_model = importlib.import_module("scale_model")


def test_what_breaks_first_is_told_first() -> None:
    """Limits are in the order of the data's growth; at half the memory a text, twice the texts."""
    (costs,) = scale_model.coordinators(2_000)
    told = scale_model.limits(costs)
    texts = [number for _, number, _ in told]
    assert texts == sorted(texts) and texts[0] > 1e6
    thrifty = {name: each._replace(bytes=each.bytes / 2) for name, each in costs.items()}
    less = {name: number for name, number, _ in scale_model.limits(thrifty)}
    for name, number, _ in told:
        assert less[name] == pytest.approx(number * (2 if name.endswith("memory") else 1)), name


def test_page_holds_predictions_beside_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Costs of a stage are in proportion to the texts; the page tells them, and its own errors."""
    hours = [scale_model.gpu_hours(texts) for texts in (10**6, 10**9)]
    for stage, few in hours[0].items():
        assert hours[1][stage] == pytest.approx(1_000 * few)
    measured = {
        "machine": {"name": "two cores", "cores": 2, "date": "2026-11-26"},
        "minutes": 9.0,
        "constants": {"checkpoint": 1.5, "checkpoint_bytes": 4.4e8},
        "checks": [{"what": "two ranks and one", "figure": "the same", "held": True}],
        "seconds": [["one of two ranks slow", 40.0, 41.0]],
    }
    storage.write_json(tmp_path / "docs/scale.json", measured)
    monkeypatch.setattr(scale_model, "ROOT", tmp_path)
    monkeypatch.setattr(scale_model, "TRIAL_TEXTS", 500)
    monkeypatch.setattr(scale_model, "TASK_SHARDS", 5_000)
    monkeypatch.setattr(scale_model.failures, "DEATHS", 40)
    monkeypatch.setattr(scale_model.failures, "RANKS", [8])
    scale_model.main()
    page = (tmp_path / "docs/SCALE.md").read_text(encoding="utf-8")
    assert page == capsys.readouterr().out[:-1]
    assert "| two ranks and one" in page and "one of two ranks slow: seconds" in page
    assert "What breaks first" in page and "`make run`, labels" in page and "{" not in page
