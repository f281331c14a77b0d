"""Promises of prompts.py: a text is prompted as the model's own encode functions would."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from small_modernbert.models import inference, prompts
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.teachers import load_teacher, token_ids

NAMED = {"query": "query: ", "document": "passage: ", "sts": "same? "}


@pytest.fixture
def prompted(teacher_folder: Path, tmp_path: Path) -> SentenceTransformer:
    """Return the tiny teacher with prompts, saved and loaded."""
    teacher = SentenceTransformer(
        str(teacher_folder), device="cpu", prompts=NAMED, default_prompt_name="sts"
    )
    teacher.save(str(tmp_path), create_model_card=False)
    return load_teacher(tmp_path)


@pytest.mark.parametrize(
    ("named", "default", "wanted"),
    [
        ({}, None, Prompts("", "Q ", "D ")),  # E5, BGE: the folder says nothing, the card does
        ({"query": "", "document": ""}, None, Prompts("", "Q ", "D ")),  # as the library fills in
        ({"query": "q: "}, None, Prompts("", "q: ", "D ")),  # the folder's own comes first
        ({"query": "q: ", "passage": "p: "}, "query", Prompts("q: ", "q: ", "p: ")),
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
