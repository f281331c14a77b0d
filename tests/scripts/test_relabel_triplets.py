"""Promises of relabel_triplets.py: judged shards from pairs, kills survived, errors with a cure."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from miniature import Language, make_teacher, make_wordpiece_tokenizer
from script_runner import run, start

from small_modernbert.data import triplets
from small_modernbert.data.keys import words_key
from small_modernbert.runs import storage

SCRIPT = "relabel_triplets.py"
PAIRS, EXCHANGED, SHARD_ROWS = 140, 12, 20
FLAGS = (
    *("--recipe", "toy", "--dev-rows", "20", "--rows-per-shard", str(SHARD_ROWS)),
    *("--negatives-per-anchor", "2", "--mine-depth", "20"),
)


class World:
    """Pairs with planted mistakes, a bi-encoder that knows the topics, and a cross-encoder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.language = Language(0, topics=12, words_per_topic=12)
        self.teacher = make_teacher(
            folder / "teacher", self.language.words, self.language.topics, max_length=64
        )
        self.pairs = folder / "pairs.parquet"
        passages = [self.language.passage() for _ in range(PAIRS)]
        self.rows: list[dict[str, Any]] = []
        for number, passage in enumerate(passages):
            # The anchor takes its passage's words, so that a bag of words can tell.
            anchor = " ".join(passage.words[:7])
            row = {"anchor": f"is it {anchor}", "positive": passage.text, "negative": None}
            if number < EXCHANGED:
                # The label of the first rows is the wrong way round.
                other = next(
                    one for one in passages[EXCHANGED:] if not {*one.words} & {*passage.words}
                )
                row |= {"positive": other.text, "negative": passage.text}
            self.rows.append({**row, "source": "odd" if number % 2 else "even"})
        pq.write_table(pa.Table.from_pylist(self.rows), self.pairs)

    def cross_encoder(self) -> Path:
        """Save a tiny random cross-encoder."""
        from transformers import BertConfig, BertForSequenceClassification

        folder = make_wordpiece_tokenizer(self.folder / "judge", self.language.words, 64)
        config = BertConfig(
            vocab_size=len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines()),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            num_labels=1,
            initializer_range=0.5,
        )
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
        return folder

    def command(self, *more: str) -> list[str]:
        """Return the command of a run whose judge is the teacher, which also mines."""
        return [
            *(SCRIPT, "--pairs", str(self.pairs), "--judge", str(self.teacher), "--miner", ""),
            *FLAGS,
            *more,
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Make the inputs once."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stage of an uninterrupted run."""
    runs = tmp_path_factory.mktemp("runs")
    run(world.command(), runs).check()
    return runs / "toy" / "relabel_triplets"


def rows_of(stage: Path, split: str) -> list[dict[str, Any]]:
    """Return the judged rows of a split."""
    return list(triplets.open_triplets(stage / "final").rows(split))


def keys_of(rows: list[dict[str, Any]]) -> set[int]:
    """Return the keys of all texts of some rows."""
    texts = [text for row in rows for text in (row["anchor"], row["positive"], *row["negatives"])]
    return set(map(words_key, texts))


def test_exchanged_labels_are_put_right(world: World, finished: Path) -> None:
    """Planted bad negatives become the positives that they are; nearly all other rows stay."""
    judged = {row["anchor"]: row for split in triplets.SPLITS for row in rows_of(finished, split)}
    planted = world.rows[:EXCHANGED]
    right = [
        row for row in planted if judged.get(row["anchor"], {}).get("positive") == row["negative"]
    ]
    wrong = [
        row for row in planted if judged.get(row["anchor"], {}).get("positive") == row["positive"]
    ]
    assert len(right) > 0.7 * EXCHANGED and not wrong
    assert len(judged) > 0.7 * PAIRS
    for row in judged.values():
        assert row["positive_score"] > max(row["negative_scores"])
        assert 1 <= len(row["negatives"]) <= 2


def test_splits_share_no_text(finished: Path) -> None:
    """No anchor, positive or negative stands on both sides, mined ones included."""
    sides = [keys_of(rows_of(finished, split)) for split in triplets.SPLITS]
    assert all(len(side) > 20 for side in sides)
    assert not sides[0] & sides[1]


def test_record_says_what_became_of_every_row(finished: Path) -> None:
    """run.json, triplets.json and examples.md agree: judge, counts by source, examples."""
    record = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    index = json.loads((finished / "final" / triplets.LAYOUT.index).read_text(encoding="utf-8"))
    assert record["status"] == "finished"
    assert (index["judge"], index["scale"]) == ("teacher", "cosine")
    counts = record["rows"]["judged"]
    assert set(counts) == {"odd", "even"} == set(record["rows"]["read"])
    written = sum(row.get("kept", 0) + row.get("swapped", 0) for row in counts.values())
    assert written == sum(index["rows"].values()) == sum(record["rows"][s] for s in triplets.SPLITS)
    outcomes = ("kept", "swapped", "dropped", "inconsistent", "no negative left")
    assert sum(row.get(name, 0) for row in counts.values() for name in outcomes) == PAIRS
    agreed = sum(row.get("judge agreed", 0) for row in counts.values())
    assert record["metrics"]["judge_agreement"] == pytest.approx(agreed / EXCHANGED)
    text = (finished / "final" / "examples.md").read_text(encoding="utf-8")
    assert "## Kept" in text and "## Swapped" in text
    assert not (finished / "scratch").exists()
    log = (finished / "log.txt").read_text(encoding="utf-8")
    assert "| inconsistent |" in log and f"{PAIRS:,} rows judged by teacher" in log


def test_killed_run_ends_equal(world: World, finished: Path, tmp_path: Path) -> None:
    """Killed while it gathers, encodes and judges, it goes on and writes the very same files."""
    stage = tmp_path / "toy" / "relabel_triplets"
    moments = (
        "scratch/pairs/train/*.parquet",
        "scratch/train_pool.npy",
        "final.partial/train/*-00002.*",
    )
    for pattern in moments:
        running = start(world.command(), tmp_path)
        ended = running.kill_when(lambda pattern=pattern: any(stage.glob(pattern)))
        assert ended.exit_code == -9, f"it ended before {pattern}: {ended}"
    shard = triplets.shard_path(stage / "final.partial", "train", 0)
    kept = shard.stat().st_mtime_ns
    run(world.command(), tmp_path).check()
    assert triplets.shard_path(stage / "final", "train", 0).stat().st_mtime_ns == kept
    assert storage.digest_folder(stage / "final") == storage.digest_folder(finished / "final")


@pytest.mark.parametrize("scale", ["sigmoid", "logit"])
def test_cross_encoder_judges_and_a_bi_encoder_mines(
    world: World, tmp_path: Path, scale: str
) -> None:
    """Any CrossEncoder can judge; what it finds wrong goes, and the kind of its scores is kept."""
    judge = world.cross_encoder()
    flags = ("--judge", str(judge), "--miner", str(world.teacher), "--on-wrong", "drop")
    flags += ("--scores", scale)
    run(world.command(*flags, "--max-triplets", "60"), tmp_path).check()
    stage = tmp_path / "toy" / "relabel_triplets"
    found = triplets.open_triplets(stage / "final")
    assert (found.judge, found.scale) == ("judge", scale)
    rows = rows_of(stage, "train") + rows_of(stage, "dev")
    assert 20 < len(rows) <= 60
    assert all(row["positive_score"] > max(row["negative_scores"]) for row in rows)
    lowest = min(min(row["negative_scores"]) for row in rows)
    assert lowest < 0 if scale == "logit" else 0 <= lowest < 1
    counts = json.loads((stage / "run.json").read_text(encoding="utf-8"))["rows"]["judged"]
    # A random judge refuses about half of what is mined.
    assert sum(row.get("mined wrong", 0) for row in counts.values()) > 20


def test_finished_stage_is_kept(world: World, finished: Path) -> None:
    """The same command again changes nothing; other settings are refused by name."""
    runs = finished.parent.parent
    before = storage.digest_folder(finished / "final")
    assert "finished before" in run(world.command(), runs).check().output
    other = run(world.command("--margin", "0.2"), runs)
    assert other.exit_code == 1 and "MARGIN: 0.05 -> 0.2" in other.errors
    assert storage.digest_folder(finished / "final") == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--margin", "1"], "--margin 1.0 is not in [0, 1)"),
        (["--swap-gap", "2"], "--swap-gap 2.0 is not in [0, 1]"),
        (["--negatives-per-anchor", "0"], "--negatives-per-anchor 0 is too small; give at least 1"),
        (["--pairs", "no-such-name"], "no such pairs: no-such-name; "),
        (["--pairs", "no-such.parquet"], "PAIRS: no-such.parquet is not there; run: python get_"),
        (["--judge", "assets/models/none"], "assets/models/none is not there; run: python get_"),
        (["--sources", "none"], "no row is of the source none; --sources takes some of: even, odd"),
    ],
)
def test_mistakes_end_in_one_line(
    world: World, tmp_path: Path, flags: list[str], said: str
) -> None:
    """A setting or input that cannot be is refused with what to do."""
    ended = run(world.command(*flags), tmp_path)
    assert ended.exit_code == 1
    assert ended.errors.count("\n") == 1 and said in ended.errors


def test_missing_column_is_refused_with_file_and_column(world: World, tmp_path: Path) -> None:
    """Before any model is loaded."""
    path = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"anchor": ["a text"], "text": ["another"]}), path)
    ended = run(world.command("--pairs", str(path)), tmp_path)
    assert ended.exit_code == 1
    assert "bare.parquet has no column 'positive'; it has: anchor, text" in ended.errors
    assert not (tmp_path / "toy").exists()


def test_cross_encoder_cannot_mine(world: World, tmp_path: Path) -> None:
    """A cross-encoder with no miner beside it is refused with the flag that names one."""
    ended = run(world.command("--judge", str(world.cross_encoder())), tmp_path)
    assert ended.exit_code == 1
    assert "is a cross-encoder, which cannot mine; name a bi-encoder with --miner" in ended.errors
