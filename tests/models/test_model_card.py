"""Promises of models/model_card.py, card_examples.py, origins.py and runs/ancestry.py."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.models import card_examples, model_card, origins, students
from small_modernbert.models.origins import Origin
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.students import Student
from small_modernbert.runs import ancestry, storage

Make = Callable[..., ModernBertModel]
TEACHER_CARD = "---\nlicense: mit\nlanguage: en\ndatasets:\n- own/pairs\n- snli\n---\n\n# T\n"


def put(runs: Path, script: str, inputs: dict[str, Path | str], **more: Any) -> dict:  # noqa: ANN401
    """Write the record of a finished stage; return it."""
    final = runs / script / "final"
    final.mkdir(parents=True)
    entries = {}
    for name, path in inputs.items():
        behind = ancestry.stage_of(path)
        digest = behind.record["output_digest"] if behind else "0"
        entries[name] = {"path": str(path), "digest": digest}
    record = {
        "format": 1,
        "script": script,
        "status": "finished",
        "settings": {"SEED": 42},
        "inputs": entries,
        "output_digest": f"digest of {script}",
        **more,
    }
    storage.write_json(final.parent / "run.json", record)
    return record


@pytest.fixture
def student(make_student: Make, tokenizer: PreTrainedTokenizerFast) -> Student:
    """Return a small student."""
    return Student(make_student(), tokenizer, 48)


@pytest.fixture
def record(tmp_path: Path) -> dict:
    """Return the record of a distillation with corpus, labels and a start behind it."""
    teacher, text = tmp_path / "a-teacher", tmp_path / "my" / "own.parquet"
    teacher.mkdir()
    text.parent.mkdir()
    text.write_bytes(b"")
    (teacher / "README.md").write_text(TEACHER_CARD, encoding="utf-8")
    runs = tmp_path / "made"
    counted = {"read": 9, "kept": 7, "stands in an evaluation set": 2}
    put(
        runs,
        "mlm/create_dataset",
        {"source offline": text, "source npr": "sentence-transformers/npr@newest"},
        rows={"notes": counted, "letters": counted | {"kept": 0}},
        facts={"kept_apart_from": ["NanoNQ"]},
    )
    corpus = runs / "mlm/create_dataset/final"
    put(
        runs,
        "create_distil_dataset",
        {"corpus": corpus, "teacher": teacher},
        settings={"SPAN_SHARE": 0.75, "QUERY_PROMPT": ""},
        rows={"train": 6, "held_out": 1},
        facts={"lengths": {"teacher_tokens": 32}},
    )
    put(runs, "build_and_save_small_modernbert", {"tokenizer": teacher})
    return put(
        runs,
        "distil_modernbert",
        {
            "student": runs / "build_and_save_small_modernbert/final",
            "labels": runs / "create_distil_dataset/final",
        },
        settings={
            "SEED": 7, "OBJECTIVE": "mse", "SELECT_BY": "retrieval_ndcg@10",
            "VALIDATION_SETS": ["squad"], "FREEZE_EMBEDDINGS": True,
        },
        rows={"train": 6},
        steps=12,
        tokens=3456,
        facts={"prompts_trained_with": False},
        metrics={
            "before": {"squad_ndcg@10": 0.5, "retrieval_ndcg@10": 0.5},
            "after": {"squad_ndcg@10": 0.62346, "retrieval_ndcg@10": 0.6, "held_out_cosine": 0.9},
            "best_step": 8,
        },
    )  # fmt: skip


def test_front_matter_is_the_hubs(record: dict, student: Student) -> None:
    """The hub's own reader finds licence, language, data sets, tags and results, and no path."""
    text = model_card.make(record, "made", student)
    data = ModelCard(text).data
    assert data.license == "other"  # npr's terms, and the user's own text
    assert data.language == "en"
    assert data.datasets == "sentence-transformers/npr"
    assert data.get("training_datasets") == [
        "sentence-transformers/npr", "notes", "own/pairs", "snli",
    ]  # fmt: skip
    assert data.base_model is None  # of a folder nobody knows where the hub has it
    assert {"sentence-transformers", "modernbert", "distillation"} <= set(data.tags)
    assert (data.pipeline_tag, data.library_name) == (
        "sentence-similarity",
        "sentence-transformers",
    )
    results = [
        (each.dataset_name, each.metric_type, each.metric_value) for each in data.eval_results
    ]
    assert results == [("squad", "cosine_ndcg@10", 0.6235)]
    assert str(Path(record["inputs"]["labels"]["path"]).parents[3]) not in text


def test_text_tells_how_it_was_made(record: dict, student: Student) -> None:
    """Every stage behind it stands there with its numbers; limits, choice and licences are said."""
    text = model_card.make(record, "made", student)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    stages = [line.split("|")[1].strip() for line in lines[1:5]]
    assert sorted(stages[:3]) == [
        "build_and_save_small_modernbert", "create_distil_dataset", "mlm/create_dataset",
    ]  # fmt: skip
    assert stages.index("mlm/create_dataset") < stages.index("create_distil_dataset")
    own = next(line for line in lines if "distil_modernbert" in line)
    assert "3,456" in own and "OBJECTIVE mse, FREEZE_EMBEDDINGS True" in own and "SEED 7" in own
    labelled = next(line for line in lines if "create_distil_dataset" in line)
    assert "SPAN_SHARE 0.75" in labelled
    for said in (
        "Texts of NanoNQ were kept out of the corpus: 4",
        "Its teacher read at most 32 tokens",
        "language: en",
        "trained without prompts",
        "step 8, the best by retrieval_ndcg@10",
        "- teacher a-teacher: mit",
        "- data own.parquet: not stated",
        "documents may be encoded once by the reduced teacher",
    ):
        assert said in text, said


def test_equal_records_make_equal_cards(record: dict, student: Student) -> None:
    """Nothing of the clock or the machine goes in: a rerun's folder is the same, card included."""
    wanted = model_card.make(record, "made", student)
    record |= {"seconds": 99.0, "git": {"commit": "x"}, "tokens_per_second": 5, "dtype_reason": "r"}
    assert model_card.make(record, "made", student) == wanted


def test_a_copy_of_a_stage_is_the_same_stage(
    record: dict, student: Student, tmp_path: Path
) -> None:
    """Where runs were copied, a stage that is met in both places is told once."""
    wanted = model_card.make(record, "made", student)
    corpus = tmp_path / "made" / "mlm" / "create_dataset"
    shutil.copytree(corpus, tmp_path / "elsewhere" / "mlm" / "create_dataset")
    entry = {"path": str(tmp_path / "elsewhere/mlm/create_dataset/final")}
    entry["digest"] = "digest of mlm/create_dataset"
    record["inputs"] = record["inputs"] | {"texts": entry}
    assert model_card.make(record, "made", student) == wanted


def test_a_stage_made_again_since_is_said(record: dict, student: Student) -> None:
    """Settings of another run than the one that was read do not pass for those of this model."""
    path = Path(record["inputs"]["labels"]["path"]).parent / "run.json"
    storage.write_json(path, storage.read_json(path, "") | {"output_digest": "another"})
    assert "create_distil_dataset (made again since)" in model_card.make(record, "made", student)


@pytest.mark.parametrize("damage", ["{", "[]", None])
def test_what_cannot_be_read_is_left_out(
    record: dict, student: Student, damage: str | None
) -> None:
    """A lost or broken record of an old stage keeps no card, and no training, from its end."""
    path = Path(record["inputs"]["labels"]["path"]).parent / "run.json"
    path.unlink()
    if damage is not None:
        path.write_text(damage, encoding="utf-8")
    text = model_card.make(record, "made", student)
    assert "| create_distil_dataset" not in text
    assert ModelCard(text).data.language is None


def test_later_training_leaves_the_teachers_space(record: dict, student: Student) -> None:
    """Queries over the teacher's documents are promised only while the vectors are the labels'."""
    inputs = {"student": {"path": record["inputs"]["labels"]["path"], "digest": "0"}}
    final = Path(inputs["student"]["path"]).parents[1] / "distil_modernbert/final"
    inputs["student"]["path"] = str(final)
    tuned = record | {"script": "sts_fine_tuning", "inputs": inputs, "settings": {}}
    assert "reduced teacher (`" not in model_card.make(tuned, "made", student)
    kept = tuned | {"facts": {"reason": "no step was better"}}
    assert "reduced teacher (`" in model_card.make(kept, "made", student)


def test_publisher_has_the_last_word(record: dict, student: Student) -> None:
    """A licence, a language and a name that are given go before what was found."""
    added = model_card.Added(title="me/small", licence="cc-by-4.0", language=["de"])
    text = model_card.make(record, "made", student, added)
    data = ModelCard(text).data
    assert (data.license, data.language, data.model_name) == ("cc-by-4.0", "de", "me/small")
    assert "# me/small\n" in text and "cc-by-4.0, as its publisher says" in text


@pytest.mark.parametrize(
    ("licences", "wanted"),
    [
        (["Apache-2.0", "apache-2.0"], "apache-2.0"),
        (["CC BY-SA 4.0"], "cc-by-sa-4.0"),
        (["mit", "apache-2.0"], "other"),
        (["mit", ""], "other"),
        (["MS MARCO terms: non-commercial research"], "other"),
        ([], "other"),
    ],
)
def test_licence_is_known_or_other(licences: list[str], wanted: str) -> None:
    """One licence that all state is the model's; anything else is "other", with its reason."""
    found = [Origin("data", f"set {number}", None, text) for number, text in enumerate(licences)]
    licence, reason = origins.licence_of(found)
    assert licence == wanted
    assert bool(reason) == (wanted == "other")


@pytest.mark.parametrize(
    "metadata",
    [
        "license: [mit\nlanguage: en",
        "license: !!python/object/apply:os.system ['touch x']",
        "- a\n- list",
        "license: mit\nlicense: mit: mit",
        "license: {a: 1}\nlanguage: 3\ndatasets: null\nmodel-index: 5",
        "\tlicense: mit",
    ],
)
def test_a_card_that_is_no_card_says_nothing(tmp_path: Path, metadata: str) -> None:
    """Whatever stands at the top of a teacher's README.md, a training does not end in it."""
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n", encoding="utf-8")
    found = origins.model("teacher", tmp_path)
    assert (found.licence, found.language, found.datasets) == ("", (), ())
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---")
    assert origins.model("teacher", tmp_path).licence == ""


def test_own_documents_have_no_licence_of_ours(tmp_path: Path) -> None:
    """A folder of somebody's documents makes the licence "other", whatever the teacher's is."""
    teacher, notes = tmp_path / "teacher", tmp_path / "deep" / "notes"
    teacher.mkdir()
    notes.mkdir(parents=True)
    (teacher / "README.md").write_text(TEACHER_CARD, encoding="utf-8")
    record = put(
        tmp_path / "runs", "prepare_documents", {"documents": notes, "general text 1": notes}
    )
    told = put(tmp_path / "runs", "create_distil_dataset", {"teacher": teacher})
    found = origins.collect([record, told])
    assert [(origin.role, origin.name) for origin in found] == [
        ("data", "notes"), ("teacher", "teacher"),
    ]  # fmt: skip
    assert origins.licence_of(found) == ("other", "no licence is stated by notes")


def run_examples(text: str, folder: Path) -> list[dict[str, Any]]:
    """Run each program of a text on a folder; return what each left behind."""
    made = []
    for program in re.findall(r"```python\n(.*?)```", text, re.S):
        names: dict[str, Any] = {}
        exec(program.replace(card_examples.FOLDER, str(folder)), names)
        made.append(names)
    return made


@pytest.mark.parametrize("case", ["plain", "cls, dense and prompts", "not normalised"])
def test_examples_run_and_agree(
    case: str, make_student: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The programs run as they stand, and transformers alone gives the same vectors."""
    torch.manual_seed(0)
    made = Student(make_student(), tokenizer, 48, "cls" if "cls" in case else "mean")
    if "dense" in case:
        made.head = torch.nn.Sequential(modules.Dense(32, 12, activation_function=torch.nn.Tanh()))
        made.prompts = Prompts(text="is the ", query="find the ", document="the ")
    made.normalised = case != "not normalised"
    made.save(tmp_path)
    text = card_examples.with_sentence_transformers(made) + card_examples.with_transformers(made)
    first, second = run_examples(text, tmp_path)
    if "prompts" in case:
        assert first["queries"].shape == (1, 12)
        given = SentenceTransformer(str(tmp_path), device="cpu")
        wanted = given.encode(["how do tides work", "The moon pulls at the oceans."])
    else:
        wanted = first["vectors"]
    np.testing.assert_allclose(second["vectors"], wanted, atol=1e-5)


def test_prompts_are_told(record: dict, student: Student) -> None:
    """A student that was trained behind prompts says which, and that it wants them."""
    student.prompts = Prompts(query="query: ")
    record["facts"] = {"prompts_trained_with": True}
    text = model_card.make(record, "made", student)
    assert "trained behind these prompts" in text and "- query: `'query: '`" in text
    assert "encode_query" in text


def test_stages_write_it(
    open_stage: Callable[..., Any], make_student: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A stage's final/ has the card, and still is a student's folder."""
    student = Student(make_student(), tokenizer, 48)
    with open_stage() as stage:
        student.save(stage.building)
        student.write_card(stage)
        stage.finish("made", student.check_reload)
    text = (stage.final / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n") and "modernbert of" in text
    assert students.load_student(stage.final).max_tokens == 48
