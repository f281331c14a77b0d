"""The training scripts themselves, killed and asked to stop in real processes, end as undisturbed.

Distillation is cut in test_processes.py, and STS fine-tuning in the recipe's own test.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import TEACHER
from safetensors.torch import load_file
from script_runner import run, start
from small_pipeline import BUILD, CORPUS, GUIDE, RECIPE, Pipeline, has_lines, told

Survived = Callable[..., None]
STEPS = ("--checkpoint-every", "4", "--evaluate-every", "5", "--precision", "fp32")
CONTRAST, JUDGE, SHARPEN = (
    "train_small_modernbert",
    "relabel_triplets",
    "post_train_distilled_model",
)
FLAGS = {
    "mlm/pre_train": [
        *("--sequence-tokens", "128", "--sequences-per-batch", "4", "--epochs", "3"),
        *("--accumulate", "2", "--accumulate-warmup", "0.5", "--max-steps", "14", *STEPS),
    ],
    CONTRAST: [
        *("--pairs", "{assets}/pairs/train.parquet", "--rows", "200", "--dev", "", "--sts", ""),
        *("--dev-rows", "40", "--rows-per-batch", "12", "--select-by", "triplet_accuracy"),
        *("--cached-tokens", "256", "--max-steps", "14", *STEPS),
    ],
    SHARPEN: [
        *("--student", BUILD, "--objective", "margin_mse", "--dimensions", "32", "16", "--sts", ""),
        *("--validation-sets", "--rows-per-batch", "8", "--max-steps", "14", *STEPS),
    ],
}
NEEDS = {"mlm/pre_train": [GUIDE, CORPUS], CONTRAST: [BUILD], SHARPEN: [BUILD, JUDGE]}
JUDGED = [
    *("--pairs", "{assets}/pairs/train.parquet", "--judge", f"{{assets}}/models/{TEACHER}"),
    *("--miner", "", "--max-triplets", "100", "--dev-rows", "20", "--pool", "100"),
    *("--max-lost-share", "1"),
]
pytestmark = pytest.mark.long


def command_of(pipeline: Pipeline, stage: str, flags: list[str]) -> list[str]:
    """Return a stage's command."""
    given = [flag.format(assets=pipeline.assets) for flag in flags]
    return [f"{stage}.py", "--recipe", RECIPE, *given]


def prepare(pipeline: Pipeline, runs: Path, stage: str) -> Path:
    """Put what a stage needs, finished, into a runs/ folder; return where the stage will be."""
    for name in NEEDS[stage]:
        made = pipeline.stage(pipeline.whole, name)
        if not made.exists():
            run(command_of(pipeline, name, JUDGED), pipeline.whole).check()
        shutil.copytree(made, pipeline.stage(runs, name))
    return pipeline.stage(runs, stage)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without the seconds."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in lines
    ]


@pytest.mark.parametrize("stage", FLAGS)
def test_script_killed(pipeline: Pipeline, tmp_path: Path, survived: Survived, stage: str) -> None:
    """Killed with -9 twice, then asked to stop: the same weights, the same loss curve."""
    command = command_of(pipeline, stage, FLAGS[stage])
    whole = prepare(pipeline, tmp_path / "whole", stage)
    run(command, tmp_path / "whole").check()
    cut = prepare(pipeline, tmp_path / "cut", stage)
    for least in (3, 8):
        running = start(command, tmp_path / "cut")
        assert running.kill_when(has_lines(cut / "metrics.jsonl", least)).exit_code == -9
    running = start(command, tmp_path / "cut")
    running.wait_until(has_lines(cut / "metrics.jsonl", 10))
    running.signal(signal.SIGTERM)
    assert "go on with" in told(running.wait(), 143)
    run(command, tmp_path / "cut").check()
    one, two = (load_file(folder / "final" / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert metrics(whole) == metrics(cut)
    fault = f"{stage} killed twice, then SIGTERM"
    survived(fault, stage, "same weights and metrics", "work since the checkpoint", exit_code=143)
