"""Promises of the second phase of mlm/pre_train.py: longer sequences, from the first phase's model.

ModernBERT (arXiv 2412.13663, section 2.2.2) went from 1,024 tokens to 8,192 with its own mixture,
rotary base, rate and decay; here it is 128 to 512.
"""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import Language, make_wordpiece_tokenizer
from script_runner import run

from small_modernbert.runs import storage

SHORT, LONG = 128, 512
FIRST = (
    *("--sequence-tokens", str(SHORT), "--sequences-per-batch", "8", "--accumulate", "1"),
    *("--epochs", "3", "--learning-rate", "3e-3", "--precision", "fp32", "--evaluate-every", "0"),
    *("--held-out-rows", "20"),
)
SECOND = (
    *("--variant", "long", "--student", "mlm/pre_train", "--sequence-tokens", str(LONG)),
    *("--sequences-per-batch", "2", "--global-rope-theta", "160000", "--learning-rate", "2e-3"),
    *("--warmup", "0", "--decay", "0.5", "--mixture", "books=2", "notes=0", "--epochs", "2"),
)


class Phases:
    """runs/ after both phases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "made"

    def record(self, name: str) -> dict[str, Any]:
        """Return a stage's run.json."""
        return json.loads((self.folder / name / "run.json").read_text(encoding="utf-8"))

    def config(self, name: str) -> dict[str, Any]:
        """Return the configuration that a stage's model was saved with."""
        return storage.read_json(self.folder / name / "final" / "config.json", "")

    def lines(self, name: str) -> list[dict[str, float]]:
        """Return the steps in a stage's metrics.jsonl."""
        text = (self.folder / name / "metrics.jsonl").read_text(encoding="utf-8")
        return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    """Run both on long books and short notes."""
    folder = tmp_path_factory.mktemp("phases")
    language = Language(0, topics=12, words_per_topic=10)
    make_wordpiece_tokenizer(folder / "tokenizer", language.words, max_length=LONG)
    books = [" ".join(language.passage().text for _ in range(6)) for _ in range(80)]
    notes = [language.passage().text for _ in range(80)]
    rows = {"text": books + notes, "source": ["books"] * 80 + ["notes"] * 80}
    pq.write_table(pa.table(rows), folder / "text.parquet")
    tokenizer = ("--tokenizer", str(folder / "tokenizer"))
    shape = (
        *("--preset", "offline", "--num-layers", "3", "--hidden-size", "32", "--head-dim", "8"),
        *("--max-tokens", str(SHORT), "--global-rope-theta", "10000"),
    )
    corpus = ("--sources", "offline", "--offline-text", str(folder / "text.parquet"))
    sizes = ("--max-tokens", str(LONG), "--held-out-rows", "40", "--no-deduplicate-near")
    for command in (
        ["build_and_save_small_modernbert.py", *shape, *tokenizer],
        ["mlm/create_dataset.py", *corpus, *sizes, *tokenizer],
        ["mlm/pre_train.py", *FIRST],
        ["mlm/pre_train.py", *FIRST, *SECOND],
    ):
        student = ["--student", "build_and_save_small_modernbert"]
        flags = student if command[0] == "mlm/pre_train.py" and "--variant" not in command else []
        run([*command, *flags, "--recipe", "made"], folder / "runs").check()
    return Phases(folder / "runs")


def test_it_starts_from_the_first_phase(phases: Phases) -> None:
    """The first phase's model is its input, and knows the language from the first step on."""
    first, second = phases.record("mlm/pre_train"), phases.record("mlm/pre_train@long")
    assert second["inputs"]["student"]["digest"] == first["output_digest"]
    blank = first["metrics"]["before"]["held_out_loss"]
    start = second["metrics"]["before"]["held_out_loss"]
    assert start < (blank + first["metrics"]["after"]["held_out_loss"]) / 2


def test_it_lowers_the_loss_on_long_sequences(phases: Phases) -> None:
    """Held-out texts longer than the first phase ever saw are predicted better than before."""
    metrics = phases.record("mlm/pre_train@long")["metrics"]
    before, after = (metrics[when]["held_out_loss"] for when in ("before", "after"))
    assert after < before - 0.05
    longest = max(
        line["tokens"] / 2 for line in phases.lines("mlm/pre_train@long")
    )  # two sequences a step
    assert longest > 2 * SHORT


def test_its_shape_is_its_own(phases: Phases) -> None:
    """The global rotary base is raised, the local one is not; 512 tokens fit."""
    short, long = phases.config("mlm/pre_train"), phases.config("mlm/pre_train@long")
    assert long["max_position_embeddings"] >= LONG > short["max_position_embeddings"]
    assert (short["global_rope_theta"], long["global_rope_theta"]) == (10_000, 160_000)
    assert short["local_rope_theta"] == long["local_rope_theta"] == 10_000


def test_its_schedule_and_mixture_are_its_own(phases: Phases) -> None:
    """Its rate starts on the plateau and falls as 1 - sqrt; a weight of 0 leaves a source out."""
    lines = phases.lines("mlm/pre_train@long")
    total = len(lines)
    cool = math.ceil(0.5 * total)
    wanted = [
        2e-3 * (1 - math.sqrt(max(step - (total - cool) + 1, 0) / (cool + 1)))
        for step in range(total)
    ]
    assert [line["learning_rate"] for line in lines] == pytest.approx(wanted)
    settings = phases.record("mlm/pre_train@long")["settings"]
    assert settings["MIXTURE"] == ["books=2", "notes=0"]
    plain = sum(line["tokens"] for line in phases.lines("mlm/pre_train")) / 3
    mixed = sum(line["tokens"] for line in lines) / 2
    # A pass has every book twice, longer than before, and no note.
    assert mixed > 1.5 * plain
