"""Promises of post_train_distilled_model.py: the judge's margins, at every dimension."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import Language
from safetensors.torch import load_file
from script_runner import load_script, refusal
from sentence_transformers import SentenceTransformer
from training_world import TrainingWorld, record_of
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import triplets
from small_modernbert.data.keys import words_of
from small_modernbert.runs import settings, storage
from small_modernbert.training import loop

WIDTH = 32
STUDENT = {"num_hidden_layers": 2, "hidden_size": WIDTH, "deviation": 0.05}
TRAIN, DEV, BARE = 200, 40, 12
FLAGS = (
    *("--epochs", "2", "--learning-rate", "3e-3", "--rows-per-batch", "16", "--precision", "fp32"),
    *("--dimensions", "32", "16", "8", "--checkpoint-every", "5", "--evaluate-every", "8"),
    *("--select-by", "judge_spearman"),
)


class World(TrainingWorld):
    """A student, triplets judged by their words' topics, a validation set and labelled pairs."""

    flags_of_all = FLAGS

    def __init__(
        self, folder: Path, model: ModernBertModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__(folder, Language(0, topics=12, words_per_topic=10), model, tokenizer)
        generator = np.random.default_rng(0)
        self.vectors = {word: np.zeros(24) for word in self.language.words}
        for topic in self.language.topics:
            shared = generator.normal(size=24)
            self.vectors |= {word: shared + 0.3 * generator.normal(size=24) for word in topic}
        rows = [self.row(2 + i % 3) for i in range(TRAIN + DEV)] + [self.row(0)] * BARE
        shards = {"train": rows[:TRAIN] + rows[TRAIN + DEV :], "dev": rows[TRAIN : TRAIN + DEV]}
        self.texts = [row["anchor"] for row in shards["train"]]
        for split, some in shards.items():
            path = triplets.shard_path(folder / "triplets", split, 0)
            triplets.write_shard(path, some, {})
        facts = {"judge": "words", "scale": "cosine"}
        triplets.write_index(folder / "triplets", dict.fromkeys(shards, 1), facts)

    def judge(self, one: str, two: str) -> float:
        """Return the cosine of two texts' sums of word vectors, from 0."""
        sides = [sum(self.vectors[word] for word in words_of(text)) for text in (one, two)]
        cosine = sides[0] @ sides[1] / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1])
        return float(np.clip(cosine, 0, 1))

    def row(self, negatives: int) -> dict[str, Any]:
        """Return a judged row."""
        passage = self.language.passage()
        anchor, positive = self.language.question(passage), self.language.sentence(passage.words)
        others = [self.language.sentence(self.language.passage().words) for _ in range(negatives)]
        return {
            "anchor": anchor,
            "positive": positive,
            "negatives": others,
            "positive_score": self.judge(anchor, positive),
            "negative_scores": [self.judge(anchor, other) for other in others],
            "source": "toy",
        }

    def flags(self, *more: str) -> list[str]:
        """Return the flags of a run."""
        return super().flags("--triplets", str(self.folder / "triplets"), *more)


def run(world: World, *flags: str) -> None:
    """Run the script."""
    settings.run(load_script("post_train_distilled_model").__dict__, world.flags(*flags))


def test_margins_at_every_dimension(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run agrees better with its judge, at each dimension; table and plot lie by the model."""
    run(world)
    stage = runs / "post_train_distilled_model"
    record = record_of(stage)
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    assert after["judge_spearman"] > before["judge_spearman"] + 0.1
    assert record["facts"]["prompts_trained_with"] is False
    assert record["facts"]["judge"] == {
        **{"name": "words", "scale": "cosine"},
        **{"margins": "scores", "margin_scale": 1.0},
    }
    assert record["rows"]["without_negatives"] == BARE
    assert record["rows"]["train"] == TRAIN
    table = storage.read_json(stage / "final" / "dimensions.json", "")
    assert list(table["before"]) == list(table["after"]) == ["32", "16", "8"]
    for dimension, figures in table["after"].items():
        assert figures["judge_spearman"] > table["before"][dimension]["judge_spearman"]
        assert {"triplet_accuracy", "retrieval_ndcg@10", "mrpc_average_precision"} <= figures.keys()
    assert table["after"]["32"].items() <= after.items()
    assert table["after"]["8"]["judge_spearman"] == after["judge_spearman/8"]
    written = (stage / "final" / "dimensions.md").read_text(encoding="utf-8")
    assert written.count("\n| ") == 4  # header, and one line a dimension
    assert f"{table['after']['8']['retrieval_ndcg@10']:.4f}" in written
    assert (stage / "final" / "dimensions.png").read_bytes().startswith(b"\x89PNG")
    assert "| dimension" in capsys.readouterr().out


def test_truncate_dim_works_on_load(world: World, runs: Path) -> None:
    """The saved folder gives the beginnings of its vectors, which rank as dimensions.json says."""
    run(world, "--max-steps", "4")
    final = runs / "post_train_distilled_model" / "final"
    texts = world.texts[:6]
    whole = SentenceTransformer(str(final), device="cpu").encode(texts)
    short = SentenceTransformer(str(final), device="cpu", truncate_dim=8)
    vectors = short.encode(texts, normalize_embeddings=True)
    assert vectors.shape == (6, 8)
    wanted = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    judged = list(triplets.open_triplets(world.folder / "triplets").rows("dev"))
    right = []
    for row in judged:
        anchor, positive, *negatives = short.encode(
            [row["anchor"], row["positive"], *row["negatives"]], normalize_embeddings=True
        )
        right += [anchor @ positive > anchor @ negative for negative in negatives]
    figures = storage.read_json(final / "dimensions.json", "")["after"]["8"]
    assert figures["triplet_accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


def test_training_short_vectors_makes_them_better(world: World, runs: Path) -> None:
    """Cut to 4 of 32 numbers, a student trained at 4 too is nearer to the judge than another."""
    flags = ("--select-by", "", "--evaluate-every", "0")
    run(world, *flags, "--dimensions", "32", "4")
    run(world, *flags, "--variant", "plain", "--dimensions")
    nested, plain = (
        runs / f"post_train_distilled_model{variant}" / "final" for variant in ("", "@plain")
    )
    assert list(storage.read_json(plain / "dimensions.json", "")["after"]) == ["32"]
    assert margin_error(world, nested, 4) < 0.8 * margin_error(world, plain, 4)


def margin_error(world: World, final: Path, dimension: int) -> float:
    """Return the mean squared difference of a saved model's margins to the judge's, on dev rows."""
    model = SentenceTransformer(str(final), device="cpu", truncate_dim=dimension)
    errors = []
    for row in triplets.open_triplets(world.folder / "triplets").rows("dev"):
        anchor, positive, *negatives = model.encode(
            [row["anchor"], row["positive"], *row["negatives"]], normalize_embeddings=True
        )
        for negative, score in zip(negatives, row["negative_scores"], strict=True):
            wanted = row["positive_score"] - score
            errors.append((anchor @ positive - anchor @ negative - wanted) ** 2)
    return float(np.mean(errors))


@pytest.mark.parametrize("objective", ["mnrl", "kl"])
def test_other_objectives(world: World, runs: Path, objective: str) -> None:
    """Each objective learns; multiple negatives also uses the rows without a negative."""
    run(world, "--objective", objective, "--select-by", "triplet_accuracy", "--negatives", "2")
    record = record_of(runs / "post_train_distilled_model")
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    assert after["triplet_accuracy"] > before["triplet_accuracy"]
    bare = 0 if objective == "mnrl" else BARE
    assert record["rows"]["without_negatives"] == bare
    assert record["rows"]["negatives"] == 2 * TRAIN
    assert record["rows"]["train"] == TRAIN + BARE - bare


def test_a_killed_run_ends_as_an_uninterrupted_one(
    world: World, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after a checkpoint and run again: the same weights, the same table."""
    run(world, "--variant", "whole")
    save = loop.save_checkpoint

    def save_and_die(*arguments: Any) -> None:  # noqa: ANN401  passed on as they come
        save(*arguments)
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_die)
        with pytest.raises(SystemError):
            run(world)
    stage = runs / "post_train_distilled_model"
    assert not (stage / "final").exists()
    run(world)
    whole, again = (
        runs / f"post_train_distilled_model{variant}" / "final" for variant in ("@whole", "")
    )
    one, two = (load_file(final / "model.safetensors") for final in (whole, again))
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    assert (whole / "dimensions.json").read_bytes() == (again / "dimensions.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--student", "distil_modernbert"), "run: python distil_modernbert.py --recipe toy"),
        (("--triplets", "relabel_triplets"), "run: python relabel_triplets.py --recipe toy"),
        (("--sts", "nothing.parquet"), "run: python get_offline_assets.py"),
        (("--retrieval-folder", "nowhere"), "run: python get_offline_assets.py"),
        (("--dimensions", "384", "16"), "--dimensions 32 16"),
        (("--triplets", "tests"), "run: python relabel_triplets.py"),
    ],
)
def test_missing_inputs_name_the_cure(
    world: World, runs: Path, capsys: pytest.CaptureFixture[str], change: tuple[str], message: str
) -> None:
    """What is not there, or does not suit, ends in one line that says what to do, and exit 1."""
    assert message in refusal("post_train_distilled_model", world.flags(*change), capsys)
