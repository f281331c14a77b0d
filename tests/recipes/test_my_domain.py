"""recipes/my_domain.sh on a miniature: a folder becomes a model, and a sentence on its worth."""

import json
from pathlib import Path

import pytest
from miniature import TEACHER, Language, make_miniature_assets, make_teacher
from script_runner import record_recipe, run

from small_modernbert.data import own_sets, parquet
from small_modernbert.data.evaluation_sets import load_retrieval_set
from small_modernbert.data.leaks import LeakFilter

SMALLER = {
    "prepare_documents.py": ["--max-tokens", "48", "--held-out-share", "0.3"],
    "create_distil_dataset.py": ["--dimension", "32", "--pca-texts", "200"],
    "distil_modernbert.py": ["--precision", "fp32", "--held-out-rows", "40"],
    "distil_model2vec.py": ["--pca-dims", "32"],
    "benchmark_hotpotqa.py": ["--speed-documents", "8", "--speed-queries", "8"],
}
LAYERS = 4  # of its teacher
FLAGS = ["--general-sets", "sciq", "--general-texts", "200"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return runs/mine after the whole recipe, over 40 made documents."""
    folder = tmp_path_factory.mktemp("mine")
    assets = make_miniature_assets(folder / "assets")
    words = Language()
    make_teacher(assets / "models" / TEACHER, words.words, words.topics, layers=LAYERS)
    notes, language = folder / "my notes", Language(5, topics=6, words_per_topic=10)
    notes.mkdir()
    for number in range(40):
        passage = language.passage()
        heading = language.question(passage).rstrip("?").capitalize()
        (notes / f"{number}.md").write_text(
            f"# {heading}\n\n{passage.text}\n\n{language.passage().text}\n", encoding="utf-8"
        )
    runs = folder / "stub" / "runs"
    flags = ["--assets", str(assets), *FLAGS]
    for command in record_recipe("my_domain", folder / "stub", str(notes), *flags):
        replaced = [word.replace("squad", "sciq") for word in command]
        if command[0] == "report.py":
            replaced += ["--texts", "0"]
        finished = run([*replaced, *SMALLER.get(command[0], [])], runs)
        assert finished.exit_code == 0, finished.output
    return runs / "mine"


def test_the_table_ends_in_an_answer(world: Path) -> None:
    """Every row is there, and the sentence says that so few queries tell nothing."""
    results = json.loads((world / "benchmark_hotpotqa/final/results.json").read_text())
    labels = {row["label"] for row in results["rows"]}
    assert {"teacher", "student", "start", "static twin", "BM25", "student + BM25"} <= labels
    assert any("Nobody can tell" in remark for remark in results["remarks"])
    assert any("Training" in remark for remark in results["remarks"])


def test_nothing_of_the_held_out_documents_trains(world: Path) -> None:
    """No text of the corpus stands in a set of one's own documents."""
    prepared = world / "prepare_documents" / "final"
    leaks = LeakFilter()
    for name in (own_sets.REPORTED, own_sets.VALIDATION):
        held = load_retrieval_set(prepared / "retrieval", name)
        assert held.queries
        leaks.add(name, [*held.queries, *held.documents])
    shards = [*(world / "mlm/create_dataset/final/train").glob("*.parquet")]
    texts = [
        text
        for shard in shards
        for text in parquet.read_columns(shard, {"text": "text"}, "")["text"]
    ]
    assert len(texts) > 100
    assert [text for text in texts if leaks.find(text)] == []


def test_its_search_finds_the_users_passages(world: Path) -> None:
    """try_it.py searches what the recipe names at its end."""
    passages = world / "prepare_documents" / "final" / "passages"
    text = parquet.read_columns(passages / "passages.parquet", {"text": "text"}, "")["text"][0]
    question = text.splitlines()[0]
    finished = run(
        ["try_it.py", "--recipe", "mine", "--passages", str(passages), "--question", question],
        world.parent,
    )
    assert finished.exit_code == 0, finished.output
    assert text.split()[-1] in finished.output


def test_the_student_has_the_ends_of_its_teacher(world: Path) -> None:
    """The first layer and the last two, five sixths of the units, whatever sizes it has."""
    stage = world / "mlm/init_model_mlm"
    assert json.loads((stage / "run.json").read_text())["facts"]["donor_layers"] == [0, 2, 3]
    config = json.loads((stage / "final" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (3, 160)


def test_the_teacher_is_the_miniatures(world: Path) -> None:
    """The recipe's assets can be moved: nothing of the repository's own was read."""
    record = json.loads((world / "create_distil_dataset/run.json").read_text())
    assert TEACHER in record["settings"]["TEACHER"]
