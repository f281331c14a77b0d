"""Promises of recipes/offline.sh, kept on a miniature: the stages fit together, and survive kills.

The recipe itself is run with a stub for `python` that writes down its arguments; those very
commands then run one after the other. Only sizes are changed (SMALLER): the teacher of the
miniature is 48 wide.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import TEACHER, make_miniature_assets
from script_runner import Finished, record_recipe, run, start

from small_modernbert.runs import storage
from small_modernbert.runs.references import ROOT

WIDTH = 32
RECIPE = "smoke"
# Appended to a script's flags: the last one counts. Both retrieval sets, as in the full size; fp32,
# because "auto" measures: two runs on a busy machine could measure differently.
SMALLER = {
    "benchmark_hotpotqa.py": ["--retrieval", "sciq", "boolq"],
    "build_and_save_small_modernbert.py": [
        *("--num-layers", "3", "--hidden-size", str(WIDTH), "--head-dim", "8"),
        *("--max-tokens", "128"),
    ],
    "create_distil_dataset.py": ["--rows-per-shard", "128"],
    "distil_modernbert.py": [
        *("--checkpoint-every", "4", "--rows-per-batch", "32", "--precision", "fp32"),
    ],
    # The teacher of the miniature has two layers.
    "mlm/init_model_mlm.py": ["--layers", "0", "1", "--ffn-units", "40"],
    "mlm/pre_train.py": [
        *("--sequence-tokens", "128", "--checkpoint-every", "2", "--precision", "fp32"),
    ],
    "sts_fine_tuning.py": ["--checkpoint-every", "2", "--precision", "fp32"],
}
# What is in a stage's folder at the moments when it is killed, one kill each. Every script is
# killed but export_model.py, which begins anew; stages that run one once more, in the same way, are
# not.
MOMENTS = {
    "build_and_save_small_modernbert": ["final.partial/model.safetensors"],
    "mlm/create_dataset": ["scratch/offline"],
    "create_distil_dataset": [
        "scratch/00003.npy",
        "final.partial/train/shard-00002.parquet",
    ],
    "mlm/init_model_mlm@layers": ["final.partial/model.safetensors"],
    "mlm/init_model_mlm@static": ["final.partial/static_twin/model.safetensors"],
    "mlm/init_model_mlm": ["final.partial/model.safetensors"],
    "distil_modernbert": ["checkpoints/best/best.json", "checkpoints/step-00000008"],
    "distil_modernbert@modernbert": ["checkpoints/step-00000004"],
    "distil_modernbert@random": ["checkpoints/step-00000012.partial"],
    "mlm/pre_train": ["checkpoints/step-00000002"],
    "sts_fine_tuning": ["final.partial/pairs", "checkpoints/step-00000004"],
    "benchmark_hotpotqa": ["scratch/vectors/*/sciq.documents.npy", "scratch/vectors/*/mrpc*.npy"],
}
UNHARMED = (
    "mlm/init_model_mlm@fast",
    "distil_modernbert@fast",
    "mlm/init_model_mlm@untrained",
    "distil_modernbert@guide",
    "export_model@int8",
    "benchmark_hotpotqa@controls",
)
STAGES = (*MOMENTS, *UNHARMED)
TRAINING = [name for name in STAGES if "distil_modernbert" in name or "fine" in name]
TRAINING.append("mlm/pre_train")
ROWS = {
    "teacher",
    "reduced teacher",
    "static twin",
    "BM25",
    "distilled",
    "distilled int8",
    "fast",
    "sts",
    "modernbert",
    "distilled > reduced teacher",
    "distilled + BM25",
    "teacher + BM25",
}
CONTROLS = {"modernbert", "guide+mlm", "random-start", "untrained-static"}


def stage_of(command: list[str]) -> str:
    """Return the name of a command's folder below runs/<recipe>/."""
    variant = command[command.index("--variant") + 1] if "--variant" in command else ""
    return command[0].removesuffix(".py") + (f"@{variant}" if variant else "")


class Runs:
    """One runs/ folder after the whole recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.killed: dict[str, int] = {}

    def stage(self, name: str) -> Path:
        """Return a stage's folder."""
        return self.folder / RECIPE / name

    def final(self, name: str) -> Path:
        """Return what a stage made."""
        return self.stage(name) / "final"

    def record(self, name: str) -> dict[str, Any]:
        """Return a stage's run.json."""
        return json.loads((self.stage(name) / "run.json").read_text(encoding="utf-8"))

    def metrics(self, name: str) -> list[dict[str, float]]:
        """Return a stage's metrics.jsonl without the times."""
        text = (self.stage(name) / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        return [{key: line[key] for key in line if key != "seconds"} for line in lines]

    def benchmark(self, name: str = "benchmark_hotpotqa") -> dict[str, dict[str, Any]]:
        """Return a benchmark's rows by label, without what depends on the clock or the folder."""
        text = (self.final(name) / "results.json").read_text(encoding="utf-8")
        timed = {"documents_per_second", "queries_per_second", "reference"}
        return {
            row["label"]: {key: row[key] for key in row if key not in timed}
            for row in json.loads(text)["rows"]
        }


def record_stages(folder: Path, *flags: str) -> list[list[str]]:
    """Return the commands of the recipe's stages; after them it shows the page of the run."""
    *stages, page = record_recipe("offline", folder, *flags)
    assert page[0] == "report.py"
    return stages


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the miniature of assets/."""
    return make_miniature_assets(tmp_path_factory.mktemp("recipe") / "assets")


@pytest.fixture(scope="module")
def commands(assets: Path) -> list[list[str]]:
    """Return the recipe's commands, on the miniature."""
    recorded = record_stages(
        *(assets.parent / "bin", "--size", RECIPE, "--assets", str(assets), "--controls")
    )
    return [[*command, *SMALLER.get(command[0], [])] for command in recorded]


@pytest.fixture(scope="module")
def whole(commands: list[list[str]], assets: Path) -> Runs:
    """Run every command to its end."""
    runs = Runs(assets.parent / "whole")
    for command in commands:
        run(command, runs.folder).check()
    return runs


@pytest.fixture(scope="module")
def killed(whole: Runs, commands: list[list[str]], assets: Path) -> Runs:
    """Redo the stages that are killed: run each command, kill it at its moments, run it again."""
    runs = Runs(assets.parent / "killed")
    shutil.copytree(whole.folder, runs.folder)
    storage.remove(runs.stage(".cache"))
    for command in commands:
        name = stage_of(command)
        if name in UNHARMED:
            continue
        storage.remove(runs.stage(name))
        for pattern in MOMENTS[name]:
            running = start(command, runs.folder)
            ended = running.kill_when(_shows(runs.stage(name), pattern))
            assert ended.exit_code == -9, f"{name} ended before {pattern}: {ended}"
            runs.killed[name] = runs.killed.get(name, 0) + 1
        run(command, runs.folder).check()
    return runs


def _shows(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(folder.glob(pattern))


def test_every_flag_reaches_every_stage(tmp_path: Path) -> None:
    """What stands after the recipe's own flags goes to each command; sizes differ, stages don't.

    The controls come after everything else, and only when they are asked for.
    """
    plain = record_stages(tmp_path / "a")
    redone = record_stages(tmp_path / "b", "--overwrite", "--seed", "7")
    assert redone == [[*command, "--overwrite", "--seed", "7"] for command in plain]
    small = record_stages(tmp_path / "c", "--size", "smoke")
    large = record_stages(tmp_path / "e", "--size", "afternoon")
    for other in (small, large):
        assert [stage_of(command) for command in other] == [stage_of(command) for command in plain]
    assert len({stage_of(command) for command in plain}) == len(plain)
    controlled = record_stages(tmp_path / "d", "--controls")
    assert controlled[: len(plain)] == plain and len(controlled) == len(plain) + 6
    assert {command[command.index("--recipe") + 1] for command in plain} == {"offline"}
    assert {command[command.index("--recipe") + 1] for command in small} == {RECIPE}
    assert {command[command.index("--recipe") + 1] for command in large} == {"afternoon"}


def test_unknown_size_exits_with_2() -> None:
    """A typo in the recipe's own flag is refused before anything runs."""
    command = ["bash", str(ROOT / "recipes" / "offline.sh"), "--size", "huge"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "huge" in ended.stderr


def test_every_stage_finishes(whole: Runs, commands: list[list[str]]) -> None:
    """Each command leaves a finished stage in a folder of its own, and nothing half-made."""
    names = [stage_of(command) for command in commands]
    assert set(names) == set(STAGES)
    for name in names:
        record = whole.record(name)
        assert record["status"] == "finished"
        assert record["output_digest"] == storage.digest_folder(whole.final(name)), name
        assert not whole.stage(name).joinpath("final.partial").exists()
        assert record["seconds"] > 0
        assert record["peak_memory_mib"] > 0


def test_lineage_is_closed(whole: Runs) -> None:
    """Every input that a stage made is remembered by the digest in that stage's own run.json."""
    seen = 0
    for name in STAGES:
        for given in whole.record(name)["inputs"].values():
            path = Path(given["path"])
            if path.name != "final" or not path.is_relative_to(whole.folder):
                continue
            producer = path.parent.relative_to(whole.folder / RECIPE).as_posix()
            assert given["digest"] == whole.record(producer)["output_digest"], (name, producer)
            seen += 1
    assert seen >= len(STAGES)


def test_benchmark_has_every_row(whole: Runs) -> None:
    """Teacher, its reduction, the static twin, BM25, every student, and what joins two of them."""
    rows = whole.benchmark()
    assert set(rows) == ROWS
    for label, row in rows.items():
        assert 0 < row["quality"] <= 1, label
        assert set(row["retrieval"]) == {"sciq", "boolq"}
        figures = [value for each in row["retrieval"].values() for value in each.values()]
        assert np.isfinite(figures).all(), label
    quality = {label: row["quality"] for label, row in rows.items()}
    assert rows["teacher"]["share_of_teacher"] == 1
    assert quality["distilled"] > 0.9 * quality["teacher"]
    assert quality["distilled int8"] > 0.97 * quality["distilled"]
    assert rows["distilled int8"]["size_bytes"] < 0.6 * rows["distilled"]["size_bytes"]
    controls = whole.benchmark("benchmark_hotpotqa@controls")
    assert controls.keys() >= CONTROLS
    assert rows["modernbert"] == controls["modernbert"]
    assert rows["modernbert"]["quality"] > controls["random-start"]["quality"] + 0.1


def test_twins_have_folders_of_their_own(whole: Runs) -> None:
    """One script run three times in a recipe leaves three models."""
    twins = ("modernbert", "guide", "random")
    names = [f"distil_modernbert@{twin}" for twin in twins]
    assert (
        len({storage.sha256_file(whole.final(name) / "model.safetensors") for name in names}) == 3
    )
    assert len({*map(str, (whole.record(name)["settings"]["STUDENT"] for name in names))}) == 3


@pytest.mark.parametrize("name", ["distil_modernbert@modernbert", "distil_modernbert@random"])
def test_student_learns(whole: Runs, name: str) -> None:
    """The loss falls, and the cosine to the teacher on texts never trained on rises."""
    metrics = whole.metrics(name)
    losses = [line["loss"] for line in metrics if "loss" in line]
    cosines = [line["held_out_cosine"] for line in metrics if "held_out_cosine" in line]
    assert len(losses) == whole.record(name)["steps"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert cosines[-1] > cosines[0]
    chosen = whole.record(name)["settings"]["SELECT_BY"]
    before, after = (whole.record(name)["metrics"][when] for when in ("before", "after"))
    assert after[chosen] >= before[chosen]


def test_result_loads_elsewhere(whole: Runs, assets: Path) -> None:
    """Every trained model is a SentenceTransformer folder of unit vectors, as wide as the student.

    The distilled one gives nearly the vectors of the reduced teacher.
    """
    from sentence_transformers import SentenceTransformer

    texts = ["this bada has a dune for the nilo of pavo", "is it?", "They are not here. " * 99]
    vectors = {}
    for name in TRAINING:
        if name == "mlm/pre_train":
            continue
        model = SentenceTransformer(str(whole.final(name)), local_files_only=True)
        vectors[name] = model.encode(texts)
        assert vectors[name].shape == (3, WIDTH)
        assert np.linalg.norm(vectors[name], axis=1) == pytest.approx(1, abs=1e-5)
    reduced = whole.final("create_distil_dataset") / "reduced_teacher"
    teacher = SentenceTransformer(str(reduced), local_files_only=True)
    questions = (assets / "retrieval" / "queries").rglob("boolq-dev*.parquet")
    import pyarrow.parquet as pq

    asked = pq.read_table(next(iter(questions))).column("text").to_pylist()
    student = SentenceTransformer(str(whole.final("distil_modernbert")), local_files_only=True)
    cosines = (student.encode(asked) * teacher.encode(asked)).sum(axis=1)
    assert cosines.mean() > 0.9


def test_the_page_shows_the_run(whole: Runs) -> None:
    """Every stage stands on it, with curves, texts and the neighbours of the user's texts."""
    asked = whole.folder / "asked.txt"
    asked.write_text("what is it for\nwho has it\nwhere was it\n", encoding="utf-8")
    more = ["--texts", "60", "--own-texts", str(asked)]
    shown = run(["report.py", "--recipe", RECIPE, *more], whole.folder).check()
    page = whole.folder / RECIPE / "report.html"
    assert str(page) in shown.output
    html = page.read_text(encoding="utf-8").replace("<wbr>", "")
    for name in MOMENTS:
        assert f"<h3>{name}</h3>" in html
    for title in ("Quality, speed, size", "Training", "Text", "The space", "What is near to what"):
        assert f"<h2>{title}</h2>" in html
    assert "Your texts (3), among held-out ones" in html


def test_rerun_redoes_nothing(whole: Runs, commands: list[list[str]]) -> None:
    """The second run of each command says that it kept what was there, quickly, and keeps it."""

    def state() -> dict[str, tuple[int, str]]:
        return {
            str(path): (path.stat().st_mtime_ns, storage.sha256_file(path))
            for name in STAGES
            for path in storage.list_files(whole.final(name))
        }

    before = state()
    for command in commands:
        again = run(command, whole.folder).check()
        assert f"{stage_of(command)}: finished before, kept as it is" in again.output
        assert again.seconds < 10
    assert state() == before


@pytest.mark.parametrize(
    ("stage", "flags", "change"),
    [
        ("distil_modernbert", ["--learning-rate", "3e-3"], "LEARNING_RATE: 0.001 -> 0.003"),
        ("mlm/create_dataset", ["--seed", "7"], "SEED: 42 -> 7"),
        ("benchmark_hotpotqa", ["--no-bm25"], "BM25: True -> False"),
    ],
)
def test_changed_setting_is_refused(
    whole: Runs, commands: list[list[str]], stage: str, flags: list[str], change: str
) -> None:
    """Another setting under a finished stage is named, with both ways out, and touches nothing."""
    command = next(command for command in commands if stage_of(command) == stage)

    def state() -> dict[Path, str]:
        # The lock holds the number of the process that took it last.
        files = storage.list_files(whole.stage(stage))
        return {path: storage.sha256_file(path) for path in files if path.name != "lock"}

    before = state()
    refused = run([*command, *flags], whole.folder)
    assert refused.exit_code == 1
    assert change in refused.errors
    assert "--overwrite" in refused.errors
    assert "--variant" in refused.errors
    assert refused.errors.count("\n") == 1
    assert state() == before


def test_changed_input_is_refused_and_overwrite_redoes(
    whole: Runs, commands: list[list[str]], tmp_path: Path
) -> None:
    """Redone with --overwrite, a stage equals itself; with another seed, its readers notice."""
    runs = Runs(tmp_path / "runs")
    names = ("build_and_save_small_modernbert", "create_distil_dataset")
    for name in (*names, "mlm/init_model_mlm@static", "mlm/create_dataset"):
        shutil.copytree(whole.stage(name), runs.stage(name))
    by_stage = {stage_of(command): command for command in commands}
    build = by_stage["build_and_save_small_modernbert"]
    start_static = by_stage["mlm/init_model_mlm@static"]

    def digest(name: str) -> str:
        return runs.record(name)["output_digest"]

    before = digest(names[0])
    run([*build, "--overwrite"], runs.folder).check()
    assert digest(names[0]) == before
    run([*build, "--overwrite", "--seed", "7"], runs.folder).check()
    assert digest(names[0]) != before
    refused = run(start_static, runs.folder)
    assert refused.exit_code == 1
    assert "input student" in refused.errors
    assert "is not the one used before" in refused.errors
    redone: Finished = run([*start_static, "--overwrite"], runs.folder).check()
    assert "finished before" not in redone.output
    given = runs.record("mlm/init_model_mlm@static")["inputs"]["student"]["digest"]
    assert given == digest(names[0])


def test_every_stage_was_killed(killed: Runs) -> None:
    """Every script of the recipe was ended by SIGKILL part-way, at each of its moments."""
    assert killed.killed == {name: len(moments) for name, moments in MOMENTS.items()}
    scripts, harmed = ({name.partition("@")[0] for name in names} for names in (STAGES, MOMENTS))
    assert scripts == harmed | {"export_model"}


@pytest.mark.parametrize("name", [name for name in TRAINING if name in MOMENTS])
def test_killed_training_ends_with_the_same_weights(whole: Runs, killed: Runs, name: str) -> None:
    """Killed and run again, a training ends bit-equal: the result, and every step's figures."""
    file = "model.safetensors"
    assert (killed.final(name) / file).read_bytes() == (whole.final(name) / file).read_bytes()
    assert killed.metrics(name) == whole.metrics(name)


@pytest.mark.parametrize("name", [name for name in MOMENTS if "benchmark" not in name])
def test_killed_stage_makes_the_same_files(whole: Runs, killed: Runs, name: str) -> None:
    """Killed and run again, a stage ends with every file of the uninterrupted run: shards too."""

    def files(runs: Runs) -> dict[str, str]:
        final = runs.final(name)
        return {
            path.relative_to(final).as_posix(): storage.sha256_file(path)
            for path in storage.list_files(final)
        }

    assert files(killed) == files(whole)


def test_killed_benchmark_has_the_same_figures(whole: Runs, killed: Runs) -> None:
    """Killed and run again, the benchmark reports the same quality, row by row."""
    assert killed.benchmark() == whole.benchmark()
    assert not killed.stage("benchmark_hotpotqa").joinpath("vectors").exists()


def test_teacher_of_the_miniature_is_wider_than_the_student(assets: Path) -> None:
    """The projection is really used: labels are narrower than the teacher's vectors."""
    config = storage.read_json(assets / "models" / TEACHER / "config.json", "make it again")
    assert config["hidden_size"] > WIDTH
