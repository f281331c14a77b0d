"""Promises of mteb_tasks.py and benchmark_mteb.py: mteb's own figures of our sets are ours."""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from script_runner import load_script, refusal

from small_modernbert.data.evaluation_sets import SentencePairs
from small_modernbert.data.retrieval_sets import RetrievalSet, assemble
from small_modernbert.evaluation import metrics, search
from small_modernbert.models import encoders
from small_modernbert.models.vectors import normalise
from small_modernbert.runs import settings
from small_modernbert.runs.errors import UserError

WIDTH = 6
needs_mteb = pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None,
    reason="mteb is not installed: pip install -r requirements-mteb.txt",
)


def vectors_of(texts: Sequence[str], role: str) -> np.ndarray:
    """Return unit vectors that are a function of text and role, `(texts, WIDTH)`."""
    seeds = [hashlib.sha256(f"{role} {text}".encode()).digest()[:8] for text in texts]
    rows = [np.random.default_rng(int.from_bytes(seed, "big")).normal(size=WIDTH) for seed in seeds]
    return normalise(np.array(rows, dtype=np.float32))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "object":
    """Return a model for mteb whose encoder is `vectors_of`."""
    from small_modernbert.evaluation import mteb_tasks

    made = SimpleNamespace(encode=lambda texts, description, role: vectors_of(texts, role))
    monkeypatch.setattr(encoders, "load_encoder", lambda *_: made)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    return mteb_tasks.Model("made", tmp_path / "model", "", "")


def make_questions() -> RetrievalSet:
    """Return graded judgements, some of documents that are not there, and a query in the corpus."""
    draw = np.random.default_rng(1)
    queries = {"_id": [f"{row}" for row in range(20)], "text": [f"why {row}" for row in range(20)]}
    corpus = {"_id": [f"{row}" for row in range(60)], "text": [f"since {row}" for row in range(60)]}
    corpus["text"][3] = "why 3"
    pairs = [(query, document) for query in range(20) for document in draw.choice(70, 4)]
    qrels = {
        "query-id": [f"{query}" for query, _ in pairs],
        "corpus-id": [f"{document}" if document != 3 else "5" for _, document in pairs],
        "score": [int(grade) for grade in draw.integers(1, 4, len(pairs))],
    }
    return assemble("made", queries, corpus, qrels, "here")


@needs_mteb
def test_retrieval_figures_are_those_of_mteb_and_trec_eval(model: "object", tmp_path: Path) -> None:
    """Of a set with grades, gaps and a query that stands in its corpus: nDCG@10 to 1e-6."""
    import pytrec_eval

    from small_modernbert.evaluation import mteb_tasks

    questions = make_questions()
    assert questions.counts["queries_in_the_corpus"] == 1
    assert questions.counts["judgements_of_missing_documents"]
    assert questions.counts["equal_ids"]
    sides = (
        vectors_of(questions.queries, "query"),
        vectors_of(list(questions.documents), "document"),
    )
    hits = search.rank(questions, *sides)
    ours = metrics.ranking_metrics(hits.rows, questions)

    task = mteb_tasks.from_retrieval_set(questions, "eng-Latn")
    mteb_tasks.load(task)
    theirs = mteb_tasks.evaluate(model, task, tmp_path).scores["test"][0]
    for name in ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map@100"):
        assert theirs[name.replace("@", "_at_")] == pytest.approx(ours[name], abs=1e-5), name
    assert theirs["ndcg_at_10"] == pytest.approx(
        round(ours["ndcg@10"], 5), abs=1e-6
    )  # as mteb rounds

    run = {
        query: {
            questions.document_ids[row]: float(-place) for place, row in enumerate(rows) if row >= 0
        }
        for query, rows in zip(questions.query_ids, hits.rows, strict=True)
    }
    qrels = {
        query: {document: int(grade) for document, grade in grades.items()}
        for query, grades in questions.relevant.items()
    }
    per_query = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    mean = np.mean([figures["ndcg_cut_10"] for figures in per_query.values()])
    assert ours["ndcg@10"] == pytest.approx(mean, abs=1e-6)


@needs_mteb
@pytest.mark.parametrize("graded", [True, False])
def test_pair_figures_are_those_of_mteb(graded: bool, model: "object", tmp_path: Path) -> None:
    """Spearman of scores, average precision of labels; pairs get the prompt of plain texts."""
    from small_modernbert.evaluation import mteb_tasks

    draw = np.random.default_rng(2)
    gold = [float(value) for value in draw.integers(0, 6 if graded else 2, 30)]
    texts = [f"text {row}" for row in range(60)]
    pairs = SentencePairs("made", texts[:30], texts[30:], gold, graded)
    sides = vectors_of(pairs.first, "text"), vectors_of(pairs.second, "text")
    ours = [*metrics.pair_figures(*sides, pairs).values()][-1]
    task = mteb_tasks.from_sentence_pairs(pairs, "eng-Latn")
    mteb_tasks.load(task)
    result = mteb_tasks.evaluate(model, task, tmp_path)
    assert result.get_score() == pytest.approx(ours, abs=1e-6)


@needs_mteb
def test_a_finished_task_is_not_run_again(model: "object", tmp_path: Path) -> None:
    """Its result is taken from disk, unless it is torn or of a set that has changed since."""
    from small_modernbert.evaluation import mteb_tasks

    task = mteb_tasks.from_retrieval_set(make_questions(), "eng-Latn")
    assert mteb_tasks.find_result(model, task, tmp_path) is None
    mteb_tasks.load(task)
    made = mteb_tasks.evaluate(model, task, tmp_path)
    stored = mteb_tasks.find_result(model, task, tmp_path)
    assert stored is not None
    assert stored.get_score() == made.get_score()
    (path,) = tmp_path.glob("results/small-modernbert__made/*/made.json")
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert mteb_tasks.find_result(model, task, tmp_path) is None
    assert not path.exists()


@needs_mteb
def test_the_script_from_a_folder_to_a_table(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets of a folder and of mteb stand in one list; what can't be had is told at the end."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "sets" / "made"
    (folder / "qrels").mkdir(parents=True)
    for name, word in (("queries", "why"), ("corpus", "since")):
        lines = [json.dumps({"_id": f"{row}", "text": f"{word} {row}"}) for row in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    judged = "".join(f"{row}\t{row}\t1\n" for row in range(12))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", "utf-8")
    script = load_script("benchmark_mteb")
    flags = ["--models", f"teacher={teacher_folder}", "--retrieval-folder", str(tmp_path / "sets")]
    with pytest.raises(SystemExit):
        settings.run(script.__dict__, [*flags, "--tasks", "made", "NanoSciFactRetrieval"])
    stage = tmp_path / "runs" / "small_v2" / "benchmark_mteb"
    assert (
        "1 of 2 tasks could not be run (NanoSciFactRetrieval)" in (stage / "run.json").read_text()
    )
    assert [*stage.glob("final.partial/results/*/*/made.json")]
    settings.run(script.__dict__, [*flags, "--tasks", "made", "--overwrite"])
    assert "| made | ndcg_at_10 |" in (stage / "final" / "results.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="'nothing' is no set of RETRIEVAL_FOLDER, no file, and no"):
        script.TASKS = ["nothing"]
        script.load_tasks({})


def test_without_mteb_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not among everybody's requirements."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    flags = ["--models", str(tmp_path)]
    said = refusal("benchmark_mteb", flags, capsys)
    assert "mteb is not installed; run: pip install -r requirements-mteb.txt" in said
