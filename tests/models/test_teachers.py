"""Promises of teachers.py: our batches give the teacher's own vectors, also reduced."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from small_modernbert.labelling import judges
from small_modernbert.models import encoders, inference, teachers
from small_modernbert.models.projection import principal_directions, project
from small_modernbert.models.vectors import normalise
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

WIDTH = 16


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> SentenceTransformer:
    """Return the tiny teacher, 48 wide, 64 tokens."""
    return teachers.load_teacher(teacher_folder)


def test_reduced_teacher_equals_projected_vectors(
    tmp_path: Path, teacher: SentenceTransformer, texts: list[str]
) -> None:
    """The reduced teacher, also saved and loaded, gives the labels: P x, at unit length."""
    vectors = inference.encode_texts(teacher, texts, tokens_per_batch=512)
    projection = principal_directions(torch.from_numpy(vectors), WIDTH)
    wanted = project(vectors, projection)
    naive = np.stack([projection.directions.numpy() @ one for one in vectors])
    naive /= np.linalg.norm(naive, axis=1, keepdims=True)
    np.testing.assert_allclose(wanted, naive, atol=1e-6)
    reduced = teachers.reduce_teacher(teacher, projection)
    reduced.save(str(tmp_path), create_model_card=False)
    loaded = teachers.load_teacher(tmp_path)
    for model in (reduced, loaded):
        np.testing.assert_allclose(model.encode(texts), wanted, atol=1e-5)
        np.testing.assert_allclose(
            inference.encode_texts(model, texts, tokens_per_batch=512), wanted, atol=1e-5
        )
    assert teacher.encode(texts[:1]).shape == (1, 48)  # the teacher itself is as it was


def test_normalise_keeps_zero_rows() -> None:
    """Rows get unit length; a zero row stays zero instead of turning into NaN."""
    found = normalise(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], atol=1e-7)


@pytest.mark.parametrize("damage", ["absent", "truncated"])
def test_unusable_teacher_is_a_user_error(
    tmp_path: Path, teacher: SentenceTransformer, damage: str
) -> None:
    """A folder that is no model, or a damaged one, is refused in one line that names it."""
    if damage == "truncated":
        teacher.save(str(tmp_path), create_model_card=False)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(UserError, match=str(tmp_path)) as refused:
        teachers.load_teacher(tmp_path)
    assert "\n" not in str(refused.value)


def test_saved_teacher_does_not_depend_on_what_it_encoded(
    teacher: SentenceTransformer, texts: list[str], tmp_path: Path
) -> None:
    """A teacher is saved as the same files before and after encoding, and works as before."""
    teachers.save_teacher(teacher, tmp_path / "before")
    vectors = inference.encode_texts(teacher, texts, tokens_per_batch=300)
    teachers.save_teacher(teacher, tmp_path / "after")
    assert storage.digest_folder(tmp_path / "before") == storage.digest_folder(tmp_path / "after")
    again = SentenceTransformer(str(tmp_path / "after"), local_files_only=True)
    np.testing.assert_allclose(again.encode(texts), vectors, atol=1e-5)


def test_a_teacher_in_half_precision_works_in_single(
    teacher_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    """What was saved in half precision is widened when it is loaded: as teacher, encoder, judge."""
    half = SentenceTransformer(str(teacher_folder), device="cpu").half()
    half.save(str(tmp_path), create_model_card=False)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {
        torch.float16
    }
    loaded = teachers.load_teacher(tmp_path)
    judge = judges.load_judge(tmp_path)
    for model in (loaded, encoders.load_encoder(tmp_path).model, judge.encoder.model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    wanted = half.float().encode(texts)
    found = inference.encode_texts(loaded, texts, tokens_per_batch=300)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(encoders.load_encoder(tmp_path).encode(texts), wanted, atol=1e-5)
