"""Promise of the training scripts: what a student had before is what it had as it came in."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import Language
from script_runner import load_script
from sentence_transformers import SentenceTransformer
from training_world import TrainingWorld, record_of
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data import labels, triplets
from small_modernbert.evaluation import metrics, search
from small_modernbert.models import students
from small_modernbert.models.prompts import Prompts
from small_modernbert.runs import settings

WIDTH = 32
STUDENT = {"num_hidden_layers": 2, "hidden_size": WIDTH}
PROMPTS = Prompts(query="what is ", document="it is ", text="so ")
FLAGS = (
    *("--epochs", "1", "--max-steps", "1", "--rows-per-batch", "16", "--precision", "fp32"),
    *("--evaluate-every", "0", "--no-train-with-prompts", "--max-tokens", "40"),
)


class World(TrainingWorld):
    """A student with prompts, pairs, judged triplets and labels."""

    def __init__(
        self, folder: Path, model: ModernBertModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__(folder, Language(0, topics=6, words_per_topic=10), model, tokenizer)
        student = students.load_student(folder / "student")
        student.prompts = PROMPTS
        student.save(folder / "student")
        rows = []
        for _ in range(60):
            passage, other = self.language.passage(), self.language.passage()
            rows.append((self.language.question(passage), passage.text, other.text))
        names = ("anchor", "positive", "negative")
        pairs = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(
            pa.table({**pairs, "source": ["made"] * len(rows)}), folder / "pairs.parquet"
        )
        for split, some in {"train": rows[20:], "dev": rows[:20]}.items():
            judged = [
                {
                    **{"anchor": anchor, "positive": positive, "negatives": [negative]},
                    **{
                        "positive_score": 0.9,
                        "negative_scores": [len(negative) / 1e3],
                        "source": "made",
                    },
                }
                for anchor, positive, negative in some
            ]
            triplets.write_shard(triplets.shard_path(folder / "triplets", split, 0), judged, {})
        facts = {"judge": "made", "scale": "cosine"}
        triplets.write_index(folder / "triplets", {"train": 1, "dev": 1}, facts)
        vectors = np.random.default_rng(0).normal(size=(len(rows), WIDTH))
        for split, part in {"train": slice(20, None), "held_out": slice(20)}.items():
            path = labels.shard_path(folder / "labels", split, 0)
            labels.write_shard(path, pairs["positive"][part], vectors[part])
        labels.write_index(folder / "labels", WIDTH, {"train": 1, "held_out": 1})

    def flags_of(self, script: str) -> list[str]:
        """Return the flags of a script's run: one step, without prompts."""
        stored, sts = ["--labels", str(self.folder / "labels")], str(self.folder / "mrpc.parquet")
        own = {
            "train_small_modernbert": [
                *("--pairs", str(self.folder / "pairs.parquet"), "--sts", sts),
                *("--dev", "", "--dev-rows", "20", "--select-by", "triplet_accuracy"),
            ],
            "distil_modernbert": [*stored, "--select-by", "held_out_cosine"],
            "post_train_distilled_model": [
                *("--triplets", str(self.folder / "triplets"), "--sts", sts),
                *("--dimensions", str(WIDTH), "16", "--select-by", "triplet_accuracy"),
            ],
            "sts_fine_tuning": [
                *(*stored, "--pairs", "mined", "--mine-pairs", "30", "--held-out-pairs", "10"),
                *("--sentence-pairs", sts, "--max-retrieval-drop", "-1"),
            ],
        }
        return [
            *("--recipe", "toy", "--student", str(self.folder / "student")),
            *("--retrieval-folder", str(self.folder / "retrieval")),
            *("--validation-sets", "boolq-dev", *FLAGS, *own[script]),
        ]


@pytest.mark.parametrize(
    "script",
    [
        "train_small_modernbert",
        "distil_modernbert",
        "post_train_distilled_model",
        "sts_fine_tuning",
    ],
)
def test_before_is_the_model_that_came_in(world: World, runs: Path, script: str) -> None:
    """Trained without its prompts and shorter, a student is compared with itself as it was.

    What STS fine-tuning keeps because retrieval fell is that model, and has its figures.
    """
    settings.run(load_script(script).__dict__, world.flags_of(script))
    record = record_of(runs / script)
    model = SentenceTransformer(str(world.folder / "student"), device="cpu")
    rows = search.rank(
        world.exam,
        model.encode_query(world.exam.queries, normalize_embeddings=True),
        model.encode_document(world.exam.documents, normalize_embeddings=True),
    ).rows
    wanted = metrics.ranking_metrics(rows, world.exam)["ndcg@10"]
    before = record["metrics"]["before"]
    assert before["boolq-dev_ndcg@10"] == pytest.approx(wanted, abs=1e-6)
    lines = (runs / script / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert first["step"] == 0
    assert first["boolq-dev_ndcg@10"] != pytest.approx(wanted, abs=1e-6)
    held_out = {"triplet_accuracy", "held_out_cosine", "teacher_agreement_spearman"} & first.keys()
    assert held_out and held_out <= before.keys()
    if script == "sts_fine_tuning":
        assert record["metrics"]["after"] == before
