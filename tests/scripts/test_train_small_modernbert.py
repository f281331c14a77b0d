"""Promises of train_small_modernbert.py: a blank student learns, what is held out stays out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import Language
from safetensors.torch import load_file
from script_runner import load_script, refusal
from sentence_transformers import SentenceTransformer
from training_world import TrainingWorld, record_of
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data.keys import words_of
from small_modernbert.runs import settings, stages
from small_modernbert.training import loop

STUDENT = {"num_hidden_layers": 2, "deviation": 0.02}
ROWS = 240
FLAGS = (
    *("--epochs", "2", "--learning-rate", "3e-3", "--rows-per-batch", "16", "--precision", "fp32"),
    *("--dev", "", "--dev-rows", "40", "--checkpoint-every", "5", "--evaluate-every", "6"),
    *("--select-by", "triplet_accuracy"),
)


class World(TrainingWorld):
    """A blank student, pairs of two sources, a validation set and labelled sentence pairs."""

    flags_of_all = FLAGS

    def __init__(
        self, folder: Path, model: ModernBertModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        language = Language(0, topics=12, words_per_topic=10)
        super().__init__(folder, language, model, tokenizer)
        self.rows = []
        for i in range(ROWS):
            passage, other = language.passage(), language.passage()
            anchor, positive = language.question(passage), passage.text.partition(".")[0] + "."
            negative = other.text.partition(".")[0] + "." if i % 4 else None
            self.rows.append((anchor, positive, negative, "large" if i % 3 else "small"))
        # Two that stand in what is measured, in other case: they must not be trained on.
        self.rows.append((self.exam.queries[0].upper(), "a passage of its own", None, "large"))
        self.rows.append(("a question of its own", self.exam.documents[1].upper(), None, "large"))
        self.write("pairs.parquet", self.rows)

    def write(self, name: str, rows: list[tuple[str, str, str | None, str]]) -> Path:
        """Write pairs as get_offline_assets.py does."""
        columns = zip(*rows, strict=True)
        names = ("anchor", "positive", "negative", "source")
        table = pa.table({n: list(column) for n, column in zip(names, columns, strict=True)})
        pq.write_table(table, self.folder / name, write_page_checksum=True)
        return self.folder / name

    def flags(self, *more: str) -> list[str]:
        """Return the flags of a run."""
        return super().flags("--pairs", str(self.folder / "pairs.parquet"), *more)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let finished stages keep their scratch folder, to look into it."""
    monkeypatch.setattr(stages.Stage, "_tidy", lambda stage: None)


def run(world: World, *flags: str) -> None:
    """Run the script."""
    settings.run(load_script("train_small_modernbert").__dict__, world.flags(*flags))


def weights(stage: Path) -> dict[str, Any]:
    """Read a finished stage's weights."""
    return load_file(stage / "final" / "model.safetensors")


def cached_rows(stage: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows that a run wrote down."""
    return pq.read_table(stage / "scratch" / "rows" / split / "shard-00000.parquet").to_pylist()


def keys(rows: list[dict[str, Any]]) -> set[str]:
    """Return the normalised anchors and positives of rows."""
    return {" ".join(words_of(row[side])) for row in rows for side in ("anchor", "positive")}


def test_from_blank_to_trained(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run tells triplets apart better than at its start, logs each step, and loads elsewhere."""
    run(world)
    stage = runs / "train_small_modernbert"
    record = record_of(stage)
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    assert after["triplet_accuracy"] > before["triplet_accuracy"] + 0.1
    assert {"mrpc_average_precision", "boolq-dev_ndcg@10", "mean_cosine"} <= after.keys()
    lines = [
        json.loads(line)
        for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == record["steps"]
    assert all({"gradient_norm", "learning_rate"} <= line.keys() for line in steps)
    evaluated = {line["step"]: line["triplet_accuracy"] for line in lines if "loss" not in line}
    assert {0, 6, 12} <= evaluated.keys()
    # The kept model is the best of those, whichever step it was.
    assert after["triplet_accuracy"] == max(evaluated.values())
    model = SentenceTransformer(str(stage / "final"), device="cpu")
    assert np.linalg.norm(model.encode(["a passage"]), axis=1) == pytest.approx(1, abs=1e-5)
    assert "triplet_accuracy" in capsys.readouterr().out.strip().splitlines()[-1]


def test_what_is_measured_is_not_trained_on(world: World, runs: Path, kept: None) -> None:
    """No anchor or positive is on both sides; rows with evaluation texts go, and are counted."""
    run(world, "--max-steps", "1")
    stage = runs / "train_small_modernbert"
    train, dev = (cached_rows(stage, split) for split in ("train", "dev"))
    assert len(dev) == 40
    assert not keys(train) & keys(dev)
    rows = record_of(stage)["rows"]
    assert sum(rows["dropped"].values()) == 2
    assert rows["dropped"]["same text as in boolq-dev"] == 2
    assert rows["train"] == len(train) - 2 == ROWS - 40
    epoch = rows["epoch"]
    assert sum(epoch["trained"].values()) + sum(epoch["unplaced"].values()) == rows["train"]
    assert rows["read"]["large"]["read"] == 162


def test_a_number_of_rows(world: World, runs: Path, kept: None) -> None:
    """ROWS draws that many; round robin draws them evenly and takes the sources by turns."""
    run(world, "--max-steps", "1", "--rows", "60")
    assert len(cached_rows(runs / "train_small_modernbert", "train")) == 60
    flags = ("--rows", "60", "--mix", "round_robin", "--variant", "turns", "--max-steps", "1")
    run(world, *flags)
    drawn = record_of(runs / "train_small_modernbert@turns")["rows"]["epoch"]
    assert abs(drawn["rows"]["large"] - drawn["rows"]["small"]) <= 2
    assert abs(drawn["trained"]["large"] - drawn["trained"]["small"]) <= 2


def test_all_rows_and_sources_by_name(world: World, runs: Path, kept: None) -> None:
    """ROWS = 0 takes every row; SOURCES those of some sources, the others are counted."""
    run(world, "--max-steps", "1", "--rows", "0", "--sources", "small")
    stage = runs / "train_small_modernbert"
    train, dev = (cached_rows(stage, split) for split in ("train", "dev"))
    assert {row["source"] for row in train + dev} == {"small"}
    assert len(train) + len(dev) == ROWS // 3
    read = record_of(stage)["rows"]["read"]["large"]
    assert read["kept"] == 0 and read["dropped"] == {"not asked for": read["read"]}


def test_unknown_source_is_named(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that no row is of is refused with those that there are."""
    with pytest.raises(SystemExit):
        run(world, "--sources", "large", "huge")
    assert "no row is of the source huge; --sources takes some of: " in capsys.readouterr().err


def test_the_cached_loss_is_the_plain_one(world: World, runs: Path) -> None:
    """With a bound on the tokens in memory a run ends with the weights of one without."""
    short = ("--max-steps", "4", "--evaluate-every", "0", "--select-by", "")
    run(world, *short)
    run(world, *short, "--variant", "cached", "--cached-tokens", "100")
    plain = weights(runs / "train_small_modernbert")
    cached = weights(runs / "train_small_modernbert@cached")
    assert max(float((plain[one] - cached[one]).abs().max()) for one in plain) < 1e-3


def test_a_dev_split_of_its_own(world: World, runs: Path, kept: None) -> None:
    """Given dev pairs are the ones measured, and leave training if they stand there."""
    dev = world.write("dev.parquet", [row for row in world.rows if row[2]][:30])
    run(world, "--dev", str(dev), "--max-steps", "1")
    stage = runs / "train_small_modernbert"
    train, held_out = (cached_rows(stage, split) for split in ("train", "dev"))
    assert len(held_out) == record_of(stage)["rows"]["dev_with_negatives"] == 30
    assert len(train) == ROWS + 2 - 30


def test_sts_of_the_hub_is_watched(world: World, runs: Path, kept: None) -> None:
    """A dataset in the hub's layout gives sts-dev_spearman, and its sentences leave training."""
    folder = world.folder / "stsb" / "data"
    folder.mkdir(parents=True)
    first, second = zip(*(row[:2] for row in world.rows[:10]), strict=True)
    table = pa.table({"sentence1": first, "sentence2": second, "score": np.linspace(0, 1, 10)})
    pq.write_table(table, folder / "validation-00000-of-00001.parquet")
    flags = ("--sts", str(folder.parent), "--select-by", "sts-dev_spearman", "--max-steps", "8")
    run(world, *flags, "--evaluate-every", "2")
    record = record_of(runs / "train_small_modernbert")
    metrics = runs / "train_small_modernbert" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found = {line["step"]: line["sts-dev_spearman"] for line in lines if "loss" not in line}
    assert {0, 2, 4, 6, 8} <= found.keys()
    # The kept model is the best of them by this figure.
    best = record["metrics"]["best_step"]
    assert found[best] == max(found.values()) == record["metrics"]["after"]["sts-dev_spearman"]
    dev = {row["anchor"] for row in cached_rows(runs / "train_small_modernbert", "dev")}
    in_training = sum(anchor not in dev for anchor in first)
    assert record["rows"]["dropped"]["same text as in sts-dev"] == in_training > 0


def test_a_killed_run_ends_as_an_uninterrupted_one(
    world: World, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after a checkpoint and run again, the stage ends with the very same weights."""
    cached = ("--cached-tokens", "200")
    run(world, *cached, "--variant", "whole")
    save = loop.save_checkpoint

    def save_and_die(*arguments: Any) -> None:  # noqa: ANN401  passed on as they come
        save(*arguments)
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_die)
        with pytest.raises(SystemError):
            run(world, *cached)
    stage = runs / "train_small_modernbert"
    assert [path.name for path in (stage / "checkpoints").glob("step-*")] == ["step-00000005"]
    run(world, *cached)
    whole, again = weights(runs / "train_small_modernbert@whole"), weights(stage)
    assert whole.keys() == again.keys()
    assert all((whole[name] == again[name]).all() for name in whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("--student", "build_and_save_small_modernbert"),
            "run: python build_and_save_small_modernbert.py --recipe toy",
        ),
        (("--pairs", "nothing.parquet"), "nothing.parquet is not there"),
        (("--pairs", "no-such-name"), "no such pairs: no-such-name"),
        (("--sts", "nothing.parquet"), "run: python get_offline_assets.py"),
        (("--pairs", "all-nli"), "for a run without a hub: make run"),
        (("--dev", "all-nli"), "for a run without a hub: make run"),
        (("--sts", "sentence-transformers/stsb"), "for a run without a hub: make run"),
        (("--retrieval-folder", "nowhere"), "run: python get_offline_assets.py"),
        (("--select-by", "sts-dev_spearman"), "the evaluation gives: triplet_accuracy"),
    ],
)
def test_missing_inputs_name_the_cure(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str], change: tuple[str], message: str
) -> None:
    """What is not there ends in one line that says what to do, and exit 1."""
    assert message in refusal("train_small_modernbert", world.flags(*change), capsys)
