"""Stages on the miniature assets, each about a second: what faults are tried on."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miniature import TEACHER, make_miniature_assets
from script_runner import Finished, run

from small_modernbert.runs import storage

RECIPE = "mini"
BUILD, CORPUS, LABELS = (
    "build_and_save_small_modernbert",
    "mlm/create_dataset",
    "create_distil_dataset",
)
STATIC, GUIDE, DISTIL = "mlm/init_model_mlm@static", "mlm/init_model_mlm", "distil_modernbert"
JUDGE, MODEL2VEC = "relabel_triplets@killed", "distil_model2vec"
NEEDS = {
    BUILD: (),
    CORPUS: (),
    LABELS: (BUILD, CORPUS),
    STATIC: (BUILD, CORPUS, LABELS),
    GUIDE: (BUILD,),
    DISTIL: (BUILD, CORPUS, LABELS, STATIC),
    JUDGE: (),
    MODEL2VEC: (),
}


def commands(assets: Path) -> dict[str, list[str]]:
    """Return each stage's command."""
    teacher = str(assets / "models" / TEACHER)
    given = {
        BUILD: [
            *("--preset", "offline", "--tokenizer", teacher, "--num-layers", "3"),
            *("--hidden-size", "32", "--head-dim", "8", "--max-tokens", "128"),
        ],
        CORPUS: [
            *("--sources", "offline", "--offline-text", str(assets / "text" / "train.parquet")),
            *("--tokenizer", teacher, "--max-tokens", "64", "--max-texts", "200"),
            *("--held-out-rows", "20"),
        ],
        LABELS: [
            *("--teacher", teacher, "--pca-texts", "100", "--rows-per-shard", "64"),
            *("--precision", "fp32"),
        ],
        STATIC: ["--init", "static", "--map-epochs", "0", "--variant", "static"],
        GUIDE: ["--init", "guide", "--donor", teacher],
        DISTIL: [
            *("--student", "mlm/init_model_mlm@static", "--objective", "cosine"),
            *(
                "--rows-per-batch",
                "16",
                "--epochs",
                "2",
                "--max-steps",
                "12",
                "--precision",
                "fp32",
            ),
            *("--checkpoint-every", "4", "--evaluate-every", "6", "--held-out-rows", "20"),
            *("--select-by", "held_out_cosine", "--validation-sets"),
        ],
        JUDGE: [
            *("--variant", "killed", "--pairs", str(assets / "pairs" / "train.parquet")),
            *("--judge", teacher, "--miner", "", "--max-triplets", "100", "--dev-rows", "20"),
            *("--pool", "100", "--rows-per-shard", "32", "--max-lost-share", "1"),
        ],
        MODEL2VEC: ["--base-model-name", teacher, "--pca-dims", "16"],
    }
    return {
        name: [f"{name.partition('@')[0]}.py", *flags, "--recipe", RECIPE]
        for name, flags in given.items()
    }


@dataclass
class Pipeline:
    """Every stage that was asked for, run once without a fault.

    Attributes:
        assets: the miniature.
        whole: the runs/ folder in which they have finished.
    """

    assets: Path
    whole: Path
    commands: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        make_miniature_assets(self.assets)
        self.commands = commands(self.assets)
        for name in (GUIDE, DISTIL):
            self.make(name)

    def stage(self, runs: Path, name: str) -> Path:
        """Return a stage's folder."""
        return runs / RECIPE / name

    def make(self, name: str) -> None:
        """Run a stage, and what it needs, without a fault, unless that was done."""
        for stage in (*NEEDS[name], name):
            if not self.stage(self.whole, stage).exists():
                run(self.commands[stage], self.whole).check()

    def prepare(self, runs: Path, name: str) -> Path:
        """Put what a stage needs, finished, into a runs/ folder; return where the stage will be."""
        self.make(name)
        for other in NEEDS[name]:
            shutil.copytree(self.stage(self.whole, other), self.stage(runs, other))
        return self.stage(runs, name)

    def record(self, runs: Path, name: str) -> dict[str, Any]:
        """Return a stage's run.json."""
        return storage.read_json(self.stage(runs, name) / "run.json", "")

    def check_finished(self, runs: Path, name: str) -> None:
        """Assert that a stage has finished with the bytes of the undisturbed one, and no litter."""
        folder = self.stage(runs, name)
        record = self.record(runs, name)
        assert record["status"] == "finished"
        assert "error" not in record
        wanted = storage.digest_folder(self.stage(self.whole, name) / "final")
        assert storage.digest_folder(folder / "final") == wanted
        assert record["output_digest"] == wanted
        for pattern in ("*.partial", "*.old", ".*.partial"):
            assert not list(folder.glob(pattern)), pattern

    def go_on(self, runs: Path, name: str) -> Finished:
        """Run a stage's command again, to its end; its result must be the undisturbed one."""
        finished = run(self.commands[name], runs).check()
        self.check_finished(runs, name)
        return finished


def told(finished: Finished, exit_code: int = 1) -> str:
    """Return the one line that a script must have ended with; no traceback, no other error."""
    assert finished.exit_code == exit_code, finished
    assert "Traceback" not in finished.errors, finished.errors
    # Progress bars of libraries end with a carriage return.
    lines = [line.rpartition("\r")[2] for line in finished.errors.splitlines()]
    said = [line for line in lines if line.startswith(("error: ", "interrupted"))]
    assert len(said) == 1, finished.errors
    return said[0]


def shows(folder: Path, pattern: str, least: int = 1) -> Callable[[], bool]:
    """Return a moment: so many paths below a folder fit a pattern."""
    return lambda: sum(1 for _ in folder.glob(pattern)) >= least


def has_lines(path: Path, least: int) -> Callable[[], bool]:
    """Return a moment: a file has so many lines."""
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= least
