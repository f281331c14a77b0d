"""Promises of inference.py: packed or padded, a teacher's own vectors come out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import ModernBertModel

from small_modernbert.models import inference, students
from small_modernbert.models.teachers import load_teacher, token_ids


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> SentenceTransformer:
    """Return the tiny BERT teacher, 48 wide, 64 tokens."""
    return load_teacher(teacher_folder)


@pytest.mark.parametrize("tokens_per_batch", [64, 300, 100_000])
@pytest.mark.parametrize("packed", [True, False])
def test_encode_equals_sentence_transformers(
    teacher: SentenceTransformer,
    texts: list[str],
    tokens_per_batch: int,
    packed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the batches, each text has the vector that the teacher itself gives, in order."""
    if not packed:
        monkeypatch.setattr(inference.bert_forward, "supports", lambda model: False)
    engine = inference.load_engine(teacher, "fp32")
    assert engine.packed == packed
    ids = token_ids(teacher, texts)
    lengths = [len(one) for one in ids]
    assert min(lengths) == 3
    assert max(lengths) == 64  # truncated, as the teacher truncates
    done: list[int] = []
    found = engine.encode(ids, tokens_per_batch=tokens_per_batch, advance=done.append)
    np.testing.assert_allclose(found, teacher.encode(texts, batch_size=7), atol=1e-5)
    assert found.dtype == np.float32
    assert sum(done) == len(texts)


def test_a_modernbert_teacher_is_packed(
    make_student: object, tokenizer: object, texts: list[str], tmp_path: Path
) -> None:
    """A ModernBERT teacher runs through our own pass and gives its own vectors."""
    model: ModernBertModel = make_student()
    students.Student(model, tokenizer, 48, "cls").save(tmp_path)
    teacher = load_teacher(tmp_path)
    engine = inference.load_engine(teacher, "fp32")
    assert engine.packed
    found = engine.encode(token_ids(teacher, texts), tokens_per_batch=200)
    np.testing.assert_allclose(found, teacher.encode(texts), atol=1e-5)


def test_budget_counts_padding(
    teacher: SentenceTransformer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A padded batch's size, rows times its longest text, never exceeds the budget."""
    shapes = []
    forward = SentenceTransformer.forward

    def watch(self: SentenceTransformer, features: dict, *rest: object) -> dict:
        shapes.append(tuple(features["input_ids"].shape))
        return forward(self, features, *rest)

    monkeypatch.setattr(SentenceTransformer, "forward", watch)
    monkeypatch.setattr(inference.bert_forward, "supports", lambda model: False)
    inference.encode_texts(teacher, texts, tokens_per_batch=256)
    assert sum(rows for rows, _ in shapes) == len(texts)
    assert all(rows * width <= 256 for rows, width in shapes), shapes


def test_no_texts_no_vectors(teacher: SentenceTransformer) -> None:
    """Nothing to encode is an empty array of the right width."""
    found = inference.load_engine(teacher, "fp32").encode([], tokens_per_batch=64)
    assert found.shape == (0, 48)


def test_half_precision_where_it_is_faithful(
    teacher: SentenceTransformer,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """bf16 is measured on real texts and taken where it is close; else fp32, and it says so."""
    ids = token_ids(teacher, texts)
    half = inference.load_engine(teacher, "bf16", ids)
    assert half.precision == "bf16"
    assert inference.FIDELITY <= half.fidelity < 1
    wanted = inference.load_engine(teacher, "fp32").encode(ids, tokens_per_batch=300)
    found = half.encode(ids, tokens_per_batch=300)
    assert not np.array_equal(found, wanted)
    cosines = torch.nn.functional.cosine_similarity(
        torch.from_numpy(found), torch.from_numpy(wanted)
    )
    assert float(cosines.mean()) >= inference.FIDELITY
    monkeypatch.setattr(inference, "FIDELITY", 1.0)
    exact = inference.load_engine(teacher, "bf16", ids)
    assert exact.precision == "fp32"
    assert "fp32 it is" in caplog.text
    np.testing.assert_array_equal(exact.encode(ids, tokens_per_batch=300), wanted)
