"""Promises of the other recipes: every flag exists, every input was made before, the stages fit.

The recipes are run with a stub for `python` that writes down its arguments. All commands, at both
sizes, are held against the scripts' constants; those of the small sizes also run, on a miniature.
"""

import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from miniature import make_miniature_assets
from script_runner import load_script, record_recipe, run
from test_offline_recipe import stage_of

from small_modernbert.initialisation.folding import choose_layers
from small_modernbert.runs import references, settings, storage
from small_modernbert.runs.references import ROOT

WIDTH = 32
SYSTEMS = ("small_v1", "small_v2", "small_v2_guide")
FINAL = {
    "offline": "offline/sts_fine_tuning",
    "small-v1": "small_v1_small/sts_fine_tuning",
    "small-v2": "small_v2_small/sts_fine_tuning",
    "small-v2-guide": "small_v2_guide_small/post_train_distilled_model",
    "model2vec": "model2vec/distil_model2vec",
}
# Appended to a script's flags, the last one counts: the miniature's teacher is 48 wide.
SHORT = ["--max-steps", "6", "--precision", "fp32", "--evaluate-every", "3"]
SMALLER = {
    "build_and_save_small_modernbert.py": [
        *("--num-layers", "3", "--hidden-size", str(WIDTH), "--intermediate-size", "48"),
        *("--head-dim", "8", "--max-tokens", "128"),
    ],
    "mlm/create_dataset.py": ["--max-texts", "600", "--held-out-rows", "100"],
    "mlm/pre_train.py": ["--sequence-tokens", "128"],  # what the miniature's student takes
    "mlm/init_model_mlm.py": ["--num-layers", "1"],  # the miniature's teacher has two
    "relabel_triplets.py": ["--max-triplets", "120", "--dev-rows", "24", "--pool", "200"],
    "sts_fine_tuning.py": ["--mine-pairs", "100", "--held-out-pairs", "50"],
    "distil_model2vec.py": ["--pca-dims", "16"],
}
SMALLER |= {
    name: [*SMALLER.get(name, []), *SHORT]
    for name in (
        "train_small_modernbert.py",
        "mlm/pre_train.py",
        "distil_modernbert.py",
        "post_train_distilled_model.py",
        "sts_fine_tuning.py",
    )
}
SMALLER["distil_modernbert.py"] = [*SHORT, "--max-tokens", "128"]


def load(command: list[str]) -> ModuleType:
    """Return the script of a command with its constants as the command sets them."""
    script = load_script(command[0].removesuffix(".py"))
    settings.override(script.__dict__, command[1:])
    return script


def inputs_of(script: ModuleType, made: list[str]) -> set[str]:
    """Return the stages that a script's settings name as inputs, given those that are there.

    A list of students is ways to one: the first that is there counts.
    """
    # Only a static start reads labels, and layers of a donor want no blank student.
    start = getattr(script, "INIT", "static")
    unread = {"LABELS", "TEACHER"} if start != "static" else set()
    unread |= {"STUDENT"} if start == "layers" else set()
    constants = settings.effective(vars(script))
    if isinstance(students := constants.get("STUDENT"), list):
        constants["STUDENT"] = next((each for each in students if each in made), students[0])
    given = constants.items()
    values = [value for name, value in given if name not in unread]
    words = [one for value in values for one in (value if isinstance(value, list) else [value])]
    found = set()
    for word in words:
        stage = (
            references.split_stage(word.partition("=")[2] or word)
            if isinstance(word, str)
            else None
        )
        if stage is not None:
            found.add(stage[0] + (f"@{stage[1]}" if stage[1] else ""))
    return found


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("small_v2", ["--overwrite", "--size", "small"]),
        ("offline", ["--overwrite", "--size", "smoke", "--assets", "elsewhere"]),
    ],
)
def test_flags_of_a_recipe_may_stand_anywhere(
    recipe: str, flags: list[str], tmp_path: Path
) -> None:
    """What is a recipe's own goes to no script, whatever stands before it."""
    for command in record_recipe(recipe, tmp_path, *flags):
        assert "--size" not in command and "--assets" not in command
        assert "report.py" in command or "--overwrite" in command
        assert command[command.index("--recipe") + 1] in ("small_v2_small", "smoke")


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_input_was_made_before(system: str, size: str, tmp_path: Path) -> None:
    """Each flag is a script's, each stage has a folder of its own, and reads what came before."""
    commands = record_recipe(system, tmp_path, "--size", size)
    made: list[str] = []
    for command in commands:
        script = load(command)
        assert system + ("_small" if size == "small" else "") == script.RECIPE
        assert inputs_of(script, made) <= set(made), (command, made)
        made.append(stage_of(command))
    assert len(set(made)) == len(made)
    assert made[-1] == "benchmark_hotpotqa"
    trained = {
        "small_v1": "train_small_modernbert",
        "small_v2": "mlm/pre_train",
        "small_v2_guide": "mlm/init_model_mlm",
    }
    assert {trained[system], "distil_modernbert"} < set(made)


@pytest.mark.parametrize("system", SYSTEMS)
def test_small_size_selects_on_boolq_dev_alone(system: str, tmp_path: Path) -> None:
    """No stage but the table knows SciQ or BoolQ; the kept model is the best on boolq-dev."""
    *others, table = record_recipe(system, tmp_path, "--size", "small", "--assets", "elsewhere")
    for script in map(load, others):
        assert getattr(script, "VALIDATION_SETS", ["boolq-dev"]) == ["boolq-dev"]
        if script.__name__ != "pre_train":
            assert getattr(script, "SELECT_BY", "retrieval_ndcg@10") == "retrieval_ndcg@10"
    found = load(table)
    assert found.RETRIEVAL == ["sciq", "boolq"] and not found.MAX_QUERIES
    assert found.TEACHER == "elsewhere/models/all-MiniLM-L6-v2" and found.BM25
    assert found.RETRIEVAL_FOLDER == "elsewhere/retrieval"


def test_systems_are_those_of_their_sources(tmp_path: Path) -> None:
    """What tells the systems apart stands in their commands."""
    scripts: dict[str, dict[str, ModuleType]] = {
        system: {stage_of(c): load(c) for c in record_recipe(system, tmp_path / system)}
        for system in SYSTEMS
    }
    first, second, guide = (scripts[system] for system in SYSTEMS)
    contrast = first["train_small_modernbert"]
    assert contrast.PAIRS == ["all-nli"] and contrast.ROWS == 50_000
    assert (contrast.ROWS_PER_BATCH, contrast.LEARNING_RATE, contrast.WARMUP) == (32, 2e-5, 0.1)
    assert (contrast.DECAY, contrast.DECAY_SHAPE) == (0.9, "linear")
    assert contrast.SELECT_BY == "sts-dev_spearman"
    assert first["distil_modernbert"].OBJECTIVE == "kl"
    assert first["post_train_distilled_model"].OBJECTIVE == "kl"
    assert second["distil_modernbert"].OBJECTIVE == "mse"
    assert second["distil_modernbert"].VALIDATION_SETS == ["NanoMSMARCO", "NanoHotpotQA"]
    assert second["mlm/pre_train"].MASKING == 0.3
    assert second["mlm/init_model_mlm"].LAYER_SELECTION == "first"
    start = guide["mlm/init_model_mlm"]
    assert (start.INIT, start.NUM_LAYERS, start.LAYER_SPACING) == ("layers", 6, "uniform")
    assert choose_layers("uniform", start.NUM_LAYERS, 22) == [0, 4, 8, 12, 16, 20]
    assert not start.FFN_UNITS and "mlm/pre_train" not in guide
    assert guide["create_distil_dataset"].STUDENT == "mlm/init_model_mlm"
    margins = guide["post_train_distilled_model"]
    assert margins.OBJECTIVE == "margin_mse" and margins.DIMENSIONS == [768, 512, 256, 128]
    assert 3 <= margins.EPOCHS <= 5 and 64 <= margins.ROWS_PER_BATCH <= 128
    assert margins.LEARNING_RATE == 2e-5 and margins.PRECISION == "bf16"
    assert guide["relabel_triplets"].JUDGE == "BAAI/bge-reranker-base"


def test_all_of_them_end_in_one_table(tmp_path: Path) -> None:
    """recipes/all.sh runs the five, and its table holds the last model of each."""
    *before, table = record_recipe("all", tmp_path, "--overwrite")
    assert {load(command).RECIPE for command in before} == {
        *(final.partition("/")[0] for final in FINAL.values()),
    }
    made = {f"{load(command).RECIPE}/{stage_of(command)}" for command in before}
    found = load(table)
    assert found.RECIPE == "all_recipes" and found.OVERWRITE
    assert dict(entry.split("=") for entry in found.MODELS) == {
        label: f"{tmp_path}/runs/{stage}/final" for label, stage in FINAL.items()
    }
    assert set(FINAL.values()) < made
    assert found.TEACHER and found.BM25 and found.RETRIEVAL == ["sciq", "boolq"]
    refused = subprocess.run(
        ["bash", str(ROOT / "recipes" / "all.sh"), "--size", "small"], capture_output=True
    )
    assert refused.returncode == 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all commands of the small sizes on a miniature; return its runs/."""
    folder = tmp_path_factory.mktemp("small")
    miniature = make_miniature_assets(folder / "assets")
    for system in (*SYSTEMS, "model2vec"):
        flags = ("--size", "small", "--assets", str(miniature))
        for command in record_recipe(system, folder / system, *flags):
            smaller = SMALLER.get(command[0], [])
            if "--dimensions" in command and system == "small_v2_guide":
                smaller = [*smaller, "--dimensions", "48", "16"]
            run([*command, *smaller], folder / "runs").check()
    return folder / "runs"


def record_of(runs: Path, system: str, stage: str) -> dict[str, Any]:
    """Return a stage's run.json."""
    return json.loads((runs / f"{system}_small" / stage / "run.json").read_text(encoding="utf-8"))


def test_each_recipe_ends_in_its_table(whole: Path) -> None:
    """Teacher, BM25 and every step of the system are rows of one table."""
    steps = {
        "small_v1": {"sts", "scores", "ranking", "contrastive", "reduced teacher"},
        "small_v2": {"sts", "distilled", "reduced teacher", "sts > reduced teacher"},
        "small_v2_guide": {"margins", "distilled", "reduced teacher", "margins > reduced teacher"},
        "model2vec": {"static"},
    }
    steps["small_v1"].add("sts > reduced teacher")
    for system, labels in steps.items():
        final = whole / f"{system}_small" / "benchmark_hotpotqa" / "final"
        rows = storage.read_json(final / "results.json", "")["rows"]
        seen = {row["label"] for row in rows if not row["label"].endswith(" + BM25")}
        assert seen == {"teacher", "BM25", *labels}, system
        assert all(0 < row["quality"] <= 1 for row in rows)


def test_vectors_are_shared_by_the_tables(whole: Path) -> None:
    """The teacher of all tables was encoded once; the kept vectors hold no speed."""
    kept = list((whole / "vectors").iterdir())
    wide = [one for one in kept if json_width(one / "sciq.documents.npy") == 48]
    # The teacher: a text set with BoolQ, one without, since model2vec's small size has SciQ alone.
    # The guide's student, before and after, and its teacher, which nothing has reduced.
    assert len(wide) == 2 + 3
    assert not list((whole / "vectors").rglob("speed.json"))
    assert not (whole / "small_v1_small" / "benchmark_hotpotqa" / "scratch").exists()


def json_width(path: Path) -> int:
    """Return the width of stored vectors."""
    import numpy as np

    return int(np.load(path, mmap_mode="r").shape[1])


def test_no_stage_ends_below_its_start(whole: Path) -> None:
    """Selected on boolq-dev, the model that came in among the candidates."""
    stages_of = {
        "small_v1": ("train_small_modernbert", "distil_modernbert", "post_train_distilled_model"),
        "small_v2": ("distil_modernbert",),
        "small_v2_guide": ("distil_modernbert", "post_train_distilled_model"),
    }
    for system, names in stages_of.items():
        for name in names:
            metrics = record_of(whole, system, name)["metrics"]
            before, after = (metrics[when]["retrieval_ndcg@10"] for when in ("before", "after"))
            assert after >= before, (system, name)
    watched = record_of(whole, "small_v1", "train_small_modernbert")["metrics"]["after"]
    assert {"triplet_accuracy", "mrpc_average_precision", "boolq-dev_ndcg@10"} <= watched.keys()


def test_the_guide_keeps_the_width_of_its_donor(whole: Path) -> None:
    """Its layers are the donor's own, its labels the teacher's, unprojected; v2's are carved."""
    settled = {
        system: record_of(whole, system, "mlm/init_model_mlm")["settings"]["INIT"]
        for system in ("small_v2", "small_v2_guide")
    }
    assert settled == {"small_v2": "guide", "small_v2_guide": "layers"}
    labels = whole / "small_v2_guide_small" / "create_distil_dataset" / "final"
    assert storage.read_json(labels / "labels.json", "")["dimension"] == 48
    assert not (labels / "projection.safetensors").exists()
