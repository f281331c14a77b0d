"""Promises of the scripts' constants: without flags they feed each other; a run has its plan."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from script_runner import ROOT, load_script

from small_modernbert.runs import hub, references, settings, stages
from small_modernbert.training import loop
from small_modernbert.training.schedule import OPTIONAL, Plan

FIRST = ["build_and_save_small_modernbert"]
LABELS = ["mlm/create_dataset", "create_distil_dataset", "distil_modernbert"]
MLM = ["mlm/create_dataset", "mlm/init_model_mlm", "mlm/pre_train"]
JUDGED = ["relabel_triplets", "post_train_distilled_model"]
LAST = ["sts_fine_tuning", "benchmark_hotpotqa"]
TRACKS = {
    "first generation": [*FIRST, "train_small_modernbert", *LABELS, *JUDGED, *LAST],
    "first generation, without the optional stage": [
        *(*FIRST, "train_small_modernbert", *LABELS, *LAST)
    ],
    "second generation": [*FIRST, *MLM, *LABELS[1:], *LAST],
    "training guide": [*FIRST, *MLM, *LABELS[1:], *JUDGED, *LAST],
}
TRAINING = [
    "train_small_modernbert",
    "mlm/pre_train",
    "distil_modernbert",
    "post_train_distilled_model",
    "sts_fine_tuning",
]


class Opened(Exception):
    """A stage was opened; what it was given is in `inputs`."""

    def __init__(
        self, namespace: dict[str, Any], inputs: dict[str, Path | str] | None = None
    ) -> None:
        super().__init__(namespace["RECIPE"])
        self.inputs = inputs or {}


def open_stage(*given: Any, **named: Any) -> None:  # noqa: ANN401  a stage's
    """Stand in for a stage: end the script where it has found its inputs."""
    raise Opened(*given, **named)


@pytest.fixture
def no_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let scripts end where they would open their stage; return the empty runs folder."""
    monkeypatch.setattr(stages, "Stage", open_stage)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(hub, "fetch_file", lambda *asked, **named: tokenizer)
    return tmp_path / "runs"


def pretend(final: Path) -> None:
    """Make a stage look finished, to those who look for its folder."""
    (final / "reduced_teacher").mkdir(parents=True)
    shape = {"hidden_size": 384, "max_position_embeddings": 1024}
    (final / "config.json").write_text(json.dumps(shape), encoding="utf-8")


@pytest.mark.parametrize("recipe", [[], ["--recipe", "small_v1"]])
@pytest.mark.parametrize("track", TRACKS)
def test_scripts_feed_each_other(no_stages: Path, track: str, recipe: list[str]) -> None:
    """Each default input is what an earlier script of the track writes by default."""
    made: list[Path] = []
    for script in TRACKS[track]:
        namespace = load_script(script).__dict__
        settings.override(namespace, recipe)
        with pytest.raises(Opened) as opened:
            namespace["main"]()
        for name, place in opened.value.inputs.items():
            if isinstance(place, Path) and references.runs_folder() in place.parents:
                assert any(final in (place, *place.parents) for final in made), (script, name)
        final = no_stages / namespace["RECIPE"] / script / "final"
        pretend(final)
        made.append(final)
    assert len({final.relative_to(no_stages).parts[0] for final in made}) == 1


@pytest.mark.parametrize("track", TRACKS)
def test_what_comes_last_is_trained_on(no_stages: Path, track: str) -> None:
    """Where two stages give a student, the later one of the track is taken."""
    for script in TRACKS[track][: TRACKS[track].index("sts_fine_tuning")]:
        pretend(no_stages / "small_v2" / script / "final")
    wanted = TRACKS[track][TRACKS[track].index("sts_fine_tuning") - 1]
    with pytest.raises(Opened) as opened:
        load_script("sts_fine_tuning").main()
    assert opened.value.inputs["student"] == no_stages / "small_v2" / wanted / "final"


@pytest.mark.parametrize("script", TRAINING)
def test_a_training_has_every_constant_of_its_plan(script: str) -> None:
    """A script has a constant for each field of the plan but the optional ones; else it is told."""
    import torch

    constants = dict(load_script(script).__dict__)
    own = {} if "SELECT_BY" in constants else {"select_by": "held_out_loss"}  # the task decides
    optimizer, plan = loop.prepare(constants, torch.nn.Linear(2, 2), **own)
    for field in dataclasses.fields(Plan):
        if (name := field.name.upper()) in constants:
            assert getattr(plan, field.name) == constants[name]
        else:
            assert field.name in OPTIONAL | own.keys()
    assert optimizer.defaults["lr"] == constants["LEARNING_RATE"]
    del constants["WARMUP"], constants["OPTIMIZER"]
    with pytest.raises(TypeError, match="lacks the constants OPTIMIZER, WARMUP"):
        loop.prepare(constants, torch.nn.Linear(2, 2), **own)


def test_every_field_of_the_plan_is_some_scripts_constant() -> None:
    """No field is without a script that sets it, `lower_is_better` apart, which is the task's."""
    names = {
        constant.name
        for script in TRAINING
        for constant in settings.read_constants(ROOT / f"{script}.py")
    }
    fields = {field.name.upper() for field in dataclasses.fields(Plan)}
    assert fields - names == {"LOWER_IS_BETTER"}
