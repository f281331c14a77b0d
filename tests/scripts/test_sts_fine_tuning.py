"""Promises of sts_fine_tuning.py: honest figures, retrieval guarded, kills survived."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import Language
from safetensors.torch import load_file
from script_runner import load_script, refusal
from training_world import TrainingWorld, record_of
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import labels
from small_modernbert.data.keys import words_of
from small_modernbert.models import students
from small_modernbert.runs import settings, storage
from small_modernbert.runs.references import ROOT
from small_modernbert.training import loop

WIDTH = 32
STUDENT = {"num_hidden_layers": 2, "hidden_size": WIDTH}
TRAIN, HELD_OUT = 160, 60
# Few and large steps: enough to see the tiny student learn.
FLAGS = (
    *("--epochs", "3", "--learning-rate", "3e-3", "--rows-per-batch", "16", "--precision", "fp32"),
    *("--mine-pairs", "120", "--held-out-pairs", "60", "--checkpoint-every", "5"),
    *("--evaluate-every", "8"),
)


class World(TrainingWorld):
    """A student, labels by a teacher that counts words, a validation set and labelled pairs."""

    flags_of_all, pairs_flag = FLAGS, "--sentence-pairs"

    def __init__(
        self, folder: Path, model: ModernBertModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        language = Language(0, topics=6, words_per_topic=10)
        texts = [language.passage().text for _ in range(TRAIN + HELD_OUT)]
        texts = [text if i % 2 else text.partition(".")[0] for i, text in enumerate(texts)]
        super().__init__(folder, language, model, tokenizer)
        generator = np.random.default_rng(0)
        self.vectors = {word: generator.normal(size=WIDTH) for word in language.words}
        parts = {"train": texts[:TRAIN], "held_out": texts[TRAIN:]}
        for split, part in parts.items():
            path = labels.shard_path(folder / "labels", split, 0)
            labels.write_shard(path, part, np.stack([self.teach(text) for text in part]))
        labels.write_index(folder / "labels", WIDTH, dict.fromkeys(parts, 1))

    def teach(self, text: str) -> np.ndarray:
        """Return the toy teacher's unit vector of a text: the sum of its words'."""
        vector = sum(self.vectors[word] for word in words_of(text))
        return vector / np.linalg.norm(vector)

    def flags(self, *more: str) -> list[str]:
        """Return the flags of a mined run."""
        mined = ("--pairs", "mined", "--labels", str(self.folder / "labels"))
        return super().flags(*mined, *more)


def read_texts(path: Path) -> set[str]:
    """Return both sides of the pairs in a file."""
    table = pq.read_table(path, page_checksum_verification=True)
    return {*table["sentence1"].to_pylist(), *table["sentence2"].to_pylist()}


def test_mined_pairs_from_start_to_end(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mined run agrees better with its teacher, calls it that, and keeps held-out texts apart."""
    settings.run(load_script("sts_fine_tuning").__dict__, world.flags("--max-retrieval-drop", "1"))
    stage = runs / "sts_fine_tuning"
    record = record_of(stage)
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    assert after["teacher_agreement_spearman"] > before["teacher_agreement_spearman"] + 0.1
    assert not [name for name in after if name.startswith("sts")]
    assert {"mrpc_average_precision", "boolq-dev_ndcg@10", "retrieval_ndcg@10"} <= after.keys()
    assert record["facts"]["result"] == "the fine-tuned model"
    assert record["facts"]["prompts_trained_with"] is False
    assert record["rows"]["scored_by"] == "teacher"
    trained, held_out = (
        read_texts(stage / "final" / "pairs" / split / "shard-00000.parquet")
        for split in ("train", "held_out")
    )
    assert trained and held_out and not trained & held_out
    row = pq.read_table(stage / "final" / "pairs" / "train" / "shard-00000.parquet").to_pylist()[0]
    wanted = world.teach(row["sentence1"]) @ world.teach(row["sentence2"])
    assert row["score"] == pytest.approx(wanted, abs=5e-3)
    students.load_student(stage / "final")
    assert (stage / "final" / "modules.json").exists()
    closing = capsys.readouterr().out.strip().splitlines()[-1]
    assert "teacher_agreement_spearman 0" in closing or "teacher_agreement_spearman -" in closing
    assert closing.endswith(str(stage / "final"))
    settings.run(load_script("sts_fine_tuning").__dict__, world.flags("--max-retrieval-drop", "1"))
    assert "finished before" in capsys.readouterr().out


def test_a_loss_in_retrieval_keeps_the_input(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where retrieval falls beyond the margin, final/ is the student that came in, and it is said.

    A margin of -1 makes any change a fall beyond it.
    """
    settings.run(load_script("sts_fine_tuning").__dict__, world.flags("--max-retrieval-drop", "-1"))
    stage = runs / "sts_fine_tuning"
    record = record_of(stage)
    assert record["status"] == "finished"
    assert record["facts"]["result"] == "kept the input model"
    assert "prompts_trained_with" not in record["facts"]
    assert "boolq-dev fell from" in record["facts"]["reason"]
    metrics = record["metrics"]
    assert metrics["after"] == metrics["before"]
    assert (
        metrics["fine_tuned"]["teacher_agreement_spearman"]
        > (metrics["before"]["teacher_agreement_spearman"])
    )
    for path in storage.list_files(world.folder / "student"):
        name = path.relative_to(world.folder / "student")
        assert (stage / "final" / name).read_bytes() == path.read_bytes()
    closing = capsys.readouterr().out.strip().splitlines()[-1]
    assert "kept the input model: nDCG@10 on boolq-dev fell from" in closing


def test_no_gain_keeps_the_input(world: World, runs: Path) -> None:
    """Training that only harms (a rate of 10) leaves the student that came in, and shows both."""
    settings.run(
        load_script("sts_fine_tuning").__dict__,
        world.flags("--learning-rate", "10", "--max-steps", "2"),
    )
    record = record_of(runs / "sts_fine_tuning")
    metrics, figure = record["metrics"], "teacher_agreement_spearman"
    assert metrics["after"] == metrics["before"]
    assert metrics["fine_tuned"][figure] < metrics["before"][figure]
    assert record["facts"]["result"] == "kept the input model"
    assert record["facts"]["reason"] == "no evaluated step raised teacher_agreement_spearman"


def test_pairs_that_people_scored_are_sts(world: World, runs: Path) -> None:
    """A file of graded pairs gives sts_spearman; its pairs with a text of MRPC are not used."""
    mrpc = pq.read_table(world.folder / "mrpc.parquet").to_pylist()[0]["sentence1"]
    draw = random.Random(0)
    texts = [world.language.sentence(draw.sample(world.language.words, 6)) for _ in range(160)]
    rows = [(texts[i], texts[i + 1]) for i in range(0, 160, 2)] + [(mrpc, "and that is this.")]
    scores = [5 * (1 + float(world.teach(one) @ world.teach(two))) / 2 for one, two in rows]
    path = world.folder / "graded.parquet"
    first, second = (list(side) for side in zip(*rows, strict=True))
    pq.write_table(pa.table({"sentence1": first, "sentence2": second, "score": scores}), path)
    flags = world.flags("--pairs", str(path), "--max-steps", "3", "--seed", "1")
    settings.run(load_script("sts_fine_tuning").__dict__, flags)
    record = record_of(runs / "sts_fine_tuning")
    assert "sts_spearman" in record["metrics"]["after"]
    assert "teacher_agreement_spearman" not in record["metrics"]["after"]
    assert record["rows"]["held_out"] == 16
    assert record["rows"]["dropped"]["same text as in mrpc"] >= 1
    assert not (runs / "sts_fine_tuning" / "final" / "pairs").exists()


def test_a_killed_run_ends_as_an_uninterrupted_one(
    world: World, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after a checkpoint and run again, the stage ends with the very same weights."""
    flags = world.flags("--max-retrieval-drop", "1")
    settings.run(load_script("sts_fine_tuning").__dict__, [*flags, "--variant", "whole"])
    save = loop.save_checkpoint

    def save_and_die(*arguments: Any) -> None:  # noqa: ANN401  passed on as they come
        save(*arguments)
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_die)
        with pytest.raises(SystemError):
            settings.run(load_script("sts_fine_tuning").__dict__, flags)
    stage = runs / "sts_fine_tuning"
    assert not (stage / "final").exists()
    assert [path.name for path in (stage / "checkpoints").glob("step-*")] == ["step-00000005"]
    settings.run(load_script("sts_fine_tuning").__dict__, flags)
    whole = load_file(runs / "sts_fine_tuning@whole" / "final" / "model.safetensors")
    again = load_file(stage / "final" / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all((whole[name] == again[name]).all() for name in whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--student", "distil_modernbert"), "run: python distil_modernbert.py --recipe toy"),
        (("--labels", "create_distil_dataset"), "run: python create_distil_dataset.py"),
        (("--pairs", "nothing.parquet"), "nothing.parquet is not there"),
        (("--sentence-pairs", "mrpc"), "run: python get_offline_assets.py"),
        (("--retrieval-folder", "nowhere"), "run: python get_offline_assets.py"),
    ],
)
def test_missing_inputs_name_the_cure(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str], change: tuple[str], message: str
) -> None:
    """An input that is not there ends in one line with the command that makes it, and exit 1."""
    assert message in refusal("sts_fine_tuning", world.flags(*change), capsys)
    assert not runs.exists()


def test_help_is_light(tmp_path: Path) -> None:
    """--help works from another folder, imports no heavy library, and explains every constant."""
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    script = ROOT / "sts_fine_tuning.py"
    program = f"import sys; sys.argv = [{str(script)!r}, '--help']\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    constants = settings.read_constants(script)
    assert all(constant.help for constant in constants)
    assert all(
        f"--{constant.name.lower().replace('_', '-')}" in done.stdout for constant in constants
    )
