"""Tiny runs of our scripts for bench/scale.py: by several ranks, killed, slowed, compared.

A run is the script itself under torchrun, with gloo on this machine; `watched_rank.py` is between
them, and notes each batch.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inputs
import psutil
from failures import Times

from small_modernbert.runs import references, storage

RECIPE = "scale"
CORPUS, LABELS = "mlm/create_dataset", "create_distil_dataset"
PATIENCE = 600.0  # seconds that a trial may take
FLAGS = {
    "distil_modernbert": ["--rows-per-batch", "16", "--select-by", "", "--validation-sets"],
    "mlm/pre_train": ["--sequence-tokens", "128", "--sequences-per-batch", "4"],
}
TRAINING = ["--precision", "fp32", "--evaluate-every", "0", "--learning-rate", "1e-3"]


@dataclass(frozen=True)
class Place:
    """A folder with tiny inputs, and the runs of which all trials take their corpus and labels.

    Attributes:
        folder: of everything.
        texts: of the corpus.
    """

    folder: Path
    texts: int

    @property
    def student(self) -> Path:
        """Two layers of 64."""
        return self.folder / "student"

    @property
    def teacher(self) -> Path:
        """The same shape with other weights."""
        return self.folder / "teacher"

    def prepare(self) -> None:
        """Write texts, student and teacher, build a corpus, label it."""
        tokenizer = inputs.locate(inputs.TEACHER)
        shape = {"num_hidden_layers": 2, "hidden_size": 64}
        for seed, model in enumerate((self.student, self.teacher)):
            inputs.make_student(model, tokenizer, seed, "offline", **shape)
        source = inputs.locate(inputs.TEXT)
        texts = inputs.make_texts(source, self.texts, seed=0, longest=128)
        inputs.write_texts(self.folder / "texts.parquet", texts)
        for script in (CORPUS, LABELS):
            Trial(self, "inputs", script).run()

    def flags(self, script: str) -> list[str]:
        """Return what a script is given beside its defaults."""
        student = str(self.student)
        made = self.folder / "inputs" / RECIPE
        corpus = ["--corpus", str(made / CORPUS / "final")]
        return {
            CORPUS: [
                *("--sources", "offline", "--offline-text", str(self.folder / "texts.parquet")),
                *("--tokenizer", student, "--max-tokens", "128", "--held-out-rows", "20"),
            ],
            LABELS: [
                *(*corpus, "--teacher", str(self.teacher), "--student", student),
                *("--rows-per-shard", "64", "--precision", "fp32"),
            ],
            "mlm/pre_train": ["--student", student, *corpus],
            "distil_modernbert": [
                *("--student", student, "--labels", str(made / LABELS / "final")),
            ],
        }[script]


@dataclass
class Trial:
    """A script in a runs/ folder of its own.

    Attributes:
        place: of its inputs.
        name: of the folder.
        script: as in `mlm/pre_train`.
        more: flags of this trial.
        ranks: processes; 1 runs without torchrun.
        restarts: that torchrun may make.
        waits: seconds that each rank waits in each of its batches.
    """

    place: Place
    name: str
    script: str
    more: Sequence[str] = ()
    ranks: int = 1
    restarts: int = 0
    waits: Sequence[float] = ()
    process: subprocess.Popen = field(init=False, repr=False)

    @property
    def runs(self) -> Path:
        """Its RUNS."""
        return self.place.folder / self.name

    @property
    def final(self) -> Path:
        """What it has made."""
        return self.stage / "final"

    @property
    def stage(self) -> Path:
        """Where the script writes."""
        return self.runs / RECIPE / self.script

    def start(self) -> "Trial":
        """Start it."""
        (self.runs / "notes").mkdir(parents=True, exist_ok=True)
        command = [f"{self.script}.py", "--recipe", RECIPE, *self.place.flags(self.script)]
        training = self.script in FLAGS
        if training:
            command += [*FLAGS[self.script], *TRAINING]
            command.insert(0, str(Path(__file__).with_name("watched_rank.py")))
        if self.ranks > 1:
            command = [
                *("-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(self.ranks), "--max-restarts", str(self.restarts)),
                *command,
            ]
        environment = {**os.environ, "RUNS": str(self.runs), "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(references.ROOT), "HF_HUB_OFFLINE": "1"}
        if training:
            environment |= {"NOTES": str(self.runs / "notes")}
            environment |= {"WAITS": ",".join(map(str, self.waits))}
        self.begun = time.monotonic()
        with (self.runs / "said.txt").open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, *command, *self.more], cwd=references.ROOT, env=environment,
                stdout=said, stderr=said,
            )  # fmt: skip
        return self

    def wait(self) -> float:
        """Wait for its end; return its seconds.

        Raises:
            RuntimeError: it ended with another exit code than 0; with what it said last.
        """
        code = self.process.wait(PATIENCE)
        if code:
            said = (self.runs / "said.txt").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{self.name}: {self.script} ended with {code}\n{said[-2000:]}")
        return time.monotonic() - self.begun

    def run(self) -> "Trial":
        """Start it, and wait for its end."""
        self.start().wait()
        return self

    def kill(self, moment: Callable[[], bool], rank: int | None = None) -> None:
        """Kill it, or one of its ranks, as soon as a moment has come."""
        while not moment():
            if self.process.poll() is not None or time.monotonic() - self.begun > PATIENCE:
                raise RuntimeError(f"{self.name}: the moment to kill it did not come")
            time.sleep(0.002)
        os.kill(self.process.pid if rank is None else self.process_of(rank), signal.SIGKILL)
        if rank is None:
            self.process.wait()

    def restart(self, steps: int, kept: int) -> float:
        """Kill the leader after so many steps; return the seconds until the run makes steps again.

        Args:
            steps: that are made when it dies.
            kept: of them that a checkpoint holds; lines of the others are forgotten.
        """
        self.kill(self.has_made(steps), rank=0)
        begun = time.monotonic()
        for moment in (lambda: len(self.steps()) <= kept, self.has_made(kept + 1)):
            while not moment() and self.process.poll() is None:
                time.sleep(0.01)
        return time.monotonic() - begun - self.steps()[kept]["seconds"]

    def process_of(self, rank: int) -> int:
        """Return the process id of one of its ranks."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if child.environ().get("RANK") == str(rank):
                return child.pid
        raise RuntimeError(f"{self.name}: no rank {rank}")

    def steps(self) -> list[dict[str, Any]]:
        """Return the lines that metrics.jsonl has of steps; [] where it is not there yet."""
        path = self.stage / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1:] == "\n"]
        return [line for line in lines if "batches" in line]

    def has_made(self, steps: int) -> Callable[[], bool]:
        """Return the moment at which it has made so many steps."""
        return lambda: len(self.steps()) >= steps

    def batches(self) -> list[str]:
        """Return the digests of its batches, in the order of the run, whichever rank had them."""
        notes = [
            (self.runs / "notes" / f"rank-{rank}.txt").read_text(encoding="utf-8").split()
            for rank in range(self.ranks)
        ]
        places = [place for line in self.steps() for place in range(line["batches"])]
        return [notes[place % self.ranks].pop(0) for place in places]

    def times(self, seconds: float) -> Times:
        """Return the parts of a run that was not disturbed, and took so many seconds."""
        lines = self.steps()
        step = statistics.median(line["seconds"] for line in lines)
        begin = self.first_step - self.begun
        return Times(step, 0.0, begin, seconds - begin - step * len(lines), 0.0)

    def wait_for_first_step(self) -> "Trial":
        """Note when the first step began."""
        while not self.steps():
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        self.first_step = time.monotonic() - self.steps()[0]["seconds"]
        return self


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference between weights of the same name in two folders' models."""
    from safetensors.torch import load_file

    mine, theirs = (
        {name.removeprefix("model."): weights for name, weights in load_file(path).items()}
        for path in (one / "model.safetensors", other / "model.safetensors")
    )
    names = mine.keys() & theirs.keys()  # a blank student has no head for masked words yet
    return max(float((mine[name] - theirs[name]).abs().max()) for name in names)


def shard_digests(final: Path) -> dict[str, str]:
    """Return the sha256 of every shard of labels."""
    paths = sorted(final.rglob("shard-*.parquet"))
    return {str(path.relative_to(final)): storage.sha256_file(path) for path in paths}
