"""Promises of teacher_reading.py: a teacher's own vectors by role, and texts cut where it stops."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import Language
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from small_modernbert.labelling.teacher_reading import Reader
from small_modernbert.models.projection import principal_directions
from small_modernbert.models.prompts import ROLES, Prompts, prompts_of
from small_modernbert.models.teachers import load_teacher, reduce_teacher, save_teacher
from small_modernbert.runs.errors import UserError

NAMED = {"query": "query: ", "document": "passage: ", "sts": "same? "}
NOTHING = {"prompts": None, "default_prompt_name": None}


@pytest.fixture
def make_reader(teacher_folder: Path, tmp_path: Path) -> Callable[..., Reader]:
    """Return a function that saves a teacher with a Dense layer and prompts, and loads it."""

    def make(*, include_prompt: bool = True, prompted: bool = True, max_tokens: int = 0) -> Reader:
        base = SentenceTransformer(str(teacher_folder), device="cpu")
        torch.manual_seed(0)
        names = {"prompts": NAMED, "default_prompt_name": "sts"} if prompted else NOTHING
        modules = [base[0], base[1], Dense(48, 24), base[2]]
        teacher = SentenceTransformer(modules=modules, device="cpu", **names)
        teacher.set_pooling_include_prompt(include_prompt)
        teacher.save(str(tmp_path / "teacher"), create_model_card=False)
        loaded = load_teacher(tmp_path / "teacher")
        named = prompts_of(loaded, "ask: ", "tell: ")
        return Reader(loaded, named, max_tokens=max_tokens)

    return make


def own_vectors(teacher: SentenceTransformer, texts: list[str], roles: list[str]) -> np.ndarray:
    """Return what the teacher's own three functions give, text by text."""
    encode = {
        "text": teacher.encode,
        "query": teacher.encode_query,
        "document": teacher.encode_document,
    }
    return np.stack([encode[role](text) for text, role in zip(texts, roles, strict=True)])


@pytest.mark.parametrize("include_prompt", [True, False])
def test_each_role_has_the_vectors_of_its_own_function(
    make_reader: Callable[..., Reader], texts: list[str], include_prompt: bool, tmp_path: Path
) -> None:
    """Mixed roles, further modules, a prompt that is not pooled; the reduced teacher alike."""
    reader = make_reader(include_prompt=include_prompt)
    reader.check()
    roles = [ROLES[number % 3] for number in range(len(texts))]
    reading = reader.read(texts, roles)
    vectors = reader.encode(reading)
    np.testing.assert_allclose(vectors, own_vectors(reader.teacher, texts, roles), atol=1e-4)
    assert reading.texts == texts and reading.roles == roles and reading.tokens > len(texts)
    projection = principal_directions(torch.from_numpy(vectors), 16)
    save_teacher(reduce_teacher(reader.teacher, projection), tmp_path / "reduced")
    reduced = load_teacher(tmp_path / "reduced")
    wanted = vectors @ projection.directions.numpy().T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(own_vectors(reduced, texts, roles), wanted, atol=1e-4)
    assert {name: reduced.prompts[name] for name in NAMED} == NAMED


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", ["max", "weightedmean", "lasttoken", ("cls", "mean")])
def test_any_pooling_is_the_model_s_own(
    teacher_folder: Path, texts: list[str], pooling: str | tuple[str, ...], include_prompt: bool
) -> None:
    """What our packed pass does not know runs through the model's own modules, prompts too."""
    base = SentenceTransformer(str(teacher_folder), device="cpu")
    modules = [base[0], Pooling(48, pooling_mode=pooling, include_prompt=include_prompt)]
    teacher = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "query: "})
    reader = Reader(teacher.eval(), prompts_of(teacher))
    reader.check()
    roles = [ROLES[number % 3] for number in range(len(texts))]
    vectors = reader.encode(reader.read(texts, roles))
    np.testing.assert_allclose(vectors, own_vectors(teacher, texts, roles), atol=1e-4)


def test_constants_prompt_where_the_folder_names_none(
    make_reader: Callable[..., Reader], texts: list[str], tmp_path: Path
) -> None:
    """E5's way: the prompts given are used for labels, and the reduced teacher then has them."""
    reader = make_reader(prompted=False)
    reader.check()
    assert reader.prompts == Prompts("", "ask: ", "tell: ")
    vectors = reader.encode(reader.read(texts, ["query"] * len(texts)))
    wanted = reader.teacher.encode([f"ask: {text}" for text in texts])
    np.testing.assert_allclose(vectors, wanted, atol=1e-4)
    save_teacher(reduce_teacher(reader.teacher, None, reader.prompts), tmp_path / "reduced")
    reduced = load_teacher(tmp_path / "reduced")
    np.testing.assert_allclose(reduced.encode_query(texts), wanted, atol=1e-4)
    np.testing.assert_allclose(
        reduced.encode_document(texts[:3]),
        reader.teacher.encode([f"tell: {text}" for text in texts[:3]]),
        atol=1e-4,
    )


@pytest.mark.parametrize("role", ROLES)
def test_texts_are_cut_to_what_is_read(
    make_reader: Callable[..., Reader], texts: list[str], role: str
) -> None:
    """A cut text is a beginning of the text, fits the limit, and is what its label is of."""
    reader = make_reader(max_tokens=12)
    reading = reader.read(texts, [role] * len(texts))
    prompt = reader.prompts.of(role)
    whole = [len(ids) for ids in reader.teacher.tokenizer([prompt + t for t in texts])["input_ids"]]
    assert reading.cut == sum(length > 12 for length in whole) > 10
    for text, shorter, length in zip(texts, reading.texts, whole, strict=True):
        assert text.startswith(shorter) and shorter
        assert (shorter != text) == (length > 12)
    assert max(map(len, reading.ids)) == 12
    again = [reader.teacher.tokenizer(prompt + text)["input_ids"] for text in reading.texts]
    assert again == reading.ids
    found, wanted = reader.encode(reading), own_vectors(reader.teacher, reading.texts, [role] * 60)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_without_a_limit_texts_stay_and_are_counted(
    make_reader: Callable[..., Reader], language: Language
) -> None:
    """A text that the teacher truncates stays as it is, and is counted."""
    reader = make_reader()
    texts = [" ".join(language.words), "short", " ".join([language.words[0]] * 62)]
    reading = reader.read(texts, ["text"] * 3)
    # 64 tokens with special ones: the prompt of the third leaves it no room either.
    assert reading.texts == texts and reading.cut == 2
    assert [len(ids) for ids in reading.ids][0] == 64


def test_a_limit_that_leaves_nothing_is_refused(make_reader: Callable[..., Reader]) -> None:
    """Special tokens and prompt alone are no text."""
    with pytest.raises(UserError, match="leave nothing of the text .*--max-tokens"):
        make_reader(max_tokens=3).read(["a long enough text"], ["query"])


def test_an_unknown_role_is_refused(make_reader: Callable[..., Reader]) -> None:
    """A role that no prompt belongs to is named."""
    with pytest.raises(UserError, match="no such role of a text: 'title'"):
        make_reader().read(["a text"], ["title"])


def test_a_teacher_that_does_more_is_refused(
    make_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What encode does beyond tokenizer, prompts and modules is noticed, and not labelled over."""
    reader = make_reader()
    encode = reader.teacher.encode_query
    monkeypatch.setattr(
        reader.teacher,
        "encode_query",
        lambda texts, **given: encode([f"some template {text}" for text in texts], **given),
    )
    monkeypatch.setattr(reader.teacher.encode_query, "__name__", "encode_query", raising=False)
    with pytest.raises(UserError, match="not honoured here; take another one: --teacher"):
        reader.check()
