"""Promises of prompts.py: a text is prompted as the model's own encode functions would."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.models import inference, prompts, students
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.teachers import load_teacher, token_ids
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage

NAMED = {"query": "query: ", "document": "passage: ", "sts": "same? "}


@pytest.fixture
def prompted(teacher_folder: Path, tmp_path: Path) -> SentenceTransformer:
    """Return the tiny teacher with prompts, saved and loaded."""
    teacher = SentenceTransformer(
        str(teacher_folder), device="cpu", prompts=NAMED, default_prompt_name="sts"
    )
    teacher.save(str(tmp_path), create_model_card=False)
    return load_teacher(tmp_path)


@pytest.fixture
def plain_student(
    make_student: Callable[..., ModernBertModel], tokenizer: PreTrainedTokenizerFast
) -> students.Student:
    """Return a student without prompts."""
    return students.Student(make_student(), tokenizer, 64)


@pytest.mark.parametrize(
    ("named", "default", "wanted"),
    [
        ({}, None, Prompts("", "Q ", "D ")),  # E5, BGE: the folder says nothing, the card does
        ({"query": "", "document": ""}, None, Prompts("", "Q ", "D ")),  # as the library fills in
        ({"query": "q: "}, None, Prompts("", "q: ", "D ")),  # the folder's own comes first
        ({"query": "q: ", "document": "p: "}, "query", Prompts("q: ", "q: ", "p: ")),
        ({"any": "a: "}, "any", Prompts("a: ", "Q ", "D ")),  # the default is not for queries
    ],
)
def test_prompts_are_chosen(named: dict[str, str], default: str | None, wanted: Prompts) -> None:
    """The folder's prompts come first, the constants fill in, the default is for other texts."""
    assert prompts.choose_prompts(named, default, "Q ", "D ") == wanted


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_vectors_are_those_of_the_three_encode_functions(
    prompted: SentenceTransformer,
    texts: list[str],
    include: bool,
    packed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With its prompt, pooled or not, each role has the vectors of the model's own function."""
    prompted.set_pooling_include_prompt(include)
    if not packed:
        monkeypatch.setattr(inference.bert_forward, "supports", lambda model: False)
    engine, own = inference.load_engine(prompted, "fp32"), prompts.prompts_of(prompted)
    functions = {
        "text": prompted.encode,
        "query": prompted.encode_query,
        "document": prompted.encode_document,
    }
    vectors = {}
    for role, encode in functions.items():
        prompt = own.of(role)
        skipped = prompts.prompt_tokens(prompted, prompt)
        assert bool(skipped) != include
        ids = token_ids(prompted, texts, prompt)
        vectors[role] = engine.encode(ids, tokens_per_batch=200, prompt_tokens=skipped)
        np.testing.assert_allclose(vectors[role], encode(texts), atol=1e-4)
    assert np.abs(vectors["query"] - vectors["document"]).max() > 1e-3


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_a_prompt_that_encode_document_never_reads_is_not_used_and_said(
    teacher_folder: Path, texts: list[str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Documents are encoded as by encode_document, and the log says what would change it."""
    own = {"query": "q: ", name: f"{name}: "}
    model = SentenceTransformer(str(teacher_folder), device="cpu", prompts=own)
    with caplog.at_level(logging.WARNING):
        assert prompts.prompts_of(model) == prompts.choose_prompts(own, None) == Prompts("", "q: ")
    assert 'name it "document"' in caplog.text
    np.testing.assert_allclose(model.encode_document(texts), model.encode(texts), atol=1e-6)
    assert prompts.choose_prompts(own, None, document="given: ").document == "given: "


GIVEN = {"text": "", "query": "teacher's: ", "document": ""}


@pytest.mark.parametrize(
    ("wanted", "given", "kept"),
    [
        (True, GIVEN, Prompts(query="teacher's: ")),
        (True, None, Prompts(query="its own: ")),
        (True, dict.fromkeys(GIVEN, ""), Prompts(query="its own: ")),  # the teacher had none
        (False, GIVEN, Prompts()),  # not even those that it came with
    ],
)
def test_a_student_keeps_the_prompts_that_it_is_trained_behind(
    open_stage: Callable[..., Stage],
    plain_student: students.Student,
    wanted: bool,
    given: Mapping[str, str] | None,
    kept: Prompts,
) -> None:
    """The teacher's come before its own, a constant leaves all out, and the record says which."""
    plain_student.prompts = Prompts(query="its own: ")
    with open_stage() as stage:
        prompts.settle(stage, plain_student, wanted, given)
    assert plain_student.prompts == kept
    assert stage.record.facts == {"prompts": vars(kept), "prompts_trained_with": bool(kept)}


def test_prompts_left_out_of_the_pooling_are_not_trained_with(
    open_stage: Callable[..., Stage], plain_student: students.Student
) -> None:
    """A student with include_prompt: false is refused, and trained as the message says."""
    plain_student.prompts = Prompts(query="its own: ")
    plain_student.usage = replace(plain_student.usage, include_prompt=False)
    with open_stage() as stage:
        with pytest.raises(UserError, match="--no-train-with-prompts"):
            prompts.settle(stage, plain_student, True)
        prompts.settle(stage, plain_student, False)
    assert not plain_student.usage.prompts


@pytest.mark.parametrize(("normalised", "kept"), [(False, "cosine"), (True, "dot")])
def test_a_student_that_compared_by_the_dot_product_is_told_its_new_similarity(
    open_stage: Callable[..., Stage],
    plain_student: students.Student,
    normalised: bool,
    kept: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is trained by the cosine and says so; for unit vectors the two are one."""
    plain_student.usage = replace(plain_student.usage, similarity="dot")
    plain_student.normalised = normalised
    with open_stage() as stage:
        prompts.settle(stage, plain_student, True)
    assert plain_student.usage.similarity == kept
    assert ("compared by dot" in caplog.text) == (not normalised)
