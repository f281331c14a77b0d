"""Promises of head.py: the map that is there is found, and a fitted student says what it says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.initialisation import head
from small_modernbert.models import students
from small_modernbert.models.packing import pack

Make = Callable[..., ModernBertModel]


def sequences(number: int) -> list[np.ndarray]:
    """Return token ids of texts of all lengths."""
    random = np.random.default_rng(1)
    return [random.integers(5, 60, size=2 + row % 17).astype(np.int32) for row in range(number)]


def test_a_hidden_affine_map_is_found(
    make_student: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Labels that are an affine map of the pooled vectors come back, in the order of the texts.

    What is saved with the layer gives them, too, read by sentence-transformers.
    """
    student = students.Student(make_student(), tokenizer, 48)
    texts, encoder = sequences(400), student.encoder()
    width = student.width
    with torch.inference_mode():
        pooled = torch.cat([encoder.pooled(pack([text])) for text in texts])
    torch.manual_seed(3)
    labels = (pooled @ torch.randn(width, 12) + torch.randn(12)).numpy()
    dense, cosine = head.fit_head(encoder, texts, labels.astype(np.float16))
    assert cosine > 0.99
    student.head = nn.Sequential(dense)
    assert student.width == 12
    vectors = student.encoder().encode(texts)
    wanted = labels / np.linalg.norm(labels, axis=1, keepdims=True)
    assert np.einsum("ij,ij->i", vectors, wanted).min() > 0.95
    student.save(tmp_path)
    reloaded = SentenceTransformer(str(tmp_path), device="cpu")
    words = ["the", "a an and", "of the is"]
    ours = student.encoder().encode_texts(words, student.backend)
    assert np.abs(reloaded.encode(words) - ours).max() < 1e-5


def test_too_few_texts_are_refused(make_student: Make, tokenizer: PreTrainedTokenizerFast) -> None:
    """Fewer texts than rows would fit anything: no such map is made."""
    student = students.Student(make_student(), tokenizer, 48)
    with pytest.raises(ValueError, match="texts and 9 labels"):
        head.fit_head(student.encoder(), sequences(9), np.zeros((9, 4), dtype=np.float32))
