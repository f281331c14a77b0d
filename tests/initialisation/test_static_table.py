"""Promises of static_table.py and vocabulary.py: a blank student that already is a static model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from model2vec import StaticModel
from sentence_transformers import SentenceTransformer
from transformers import ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.data.token_store import TokenStore, tokenise
from small_modernbert.initialisation import static_table, vocabulary
from small_modernbert.models.loading import load_backend
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.students import Student, load_tokenizer
from small_modernbert.models.teachers import load_teacher

WIDTH = 32
Make = Callable[..., ModernBertModel]


@pytest.fixture
def table(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return a table with rows of very different lengths; special tokens have none."""
    random = np.random.default_rng(0)
    rows = random.normal(0.3, 1, (len(tokenizer), WIDTH))
    rows *= random.lognormal(0, 1, (len(tokenizer), 1))
    rows[tokenizer.all_special_ids] = 0
    return rows.astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to unit length."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_balanced_rows_pass_layer_norm(table: np.ndarray) -> None:
    """Every balanced row has mean 0 and variance 1, and keeps its content."""
    content = static_table.scale_to_fit(table)
    rows = static_table.balance(content)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(rows.var(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        rows[:, : -static_table.BALANCE], content[:, : -static_table.BALANCE], atol=1e-6
    )


def test_scaling_keeps_directions_and_nearly_all_proportions(table: np.ndarray) -> None:
    """Rows keep their directions; all but a few outliers share one factor."""
    content = static_table.scale_to_fit(table)[:, : -static_table.BALANCE]
    before = table[:, : -static_table.BALANCE].astype(np.float64)
    assert not content[~before.any(axis=1)].any()
    there = before.any(axis=1)
    factors = np.linalg.norm(content[there], axis=1) / np.linalg.norm(before[there], axis=1)
    np.testing.assert_allclose(content[there], before[there] * factors[:, None], atol=1e-9)
    common = np.median(factors)
    assert (np.abs(factors / common - 1) > 1e-6).mean() < 0.02
    assert factors.max() <= common * (1 + 1e-9)


def test_empty_table_is_no_division_by_zero() -> None:
    """A table of zeros stays zeros and can be balanced."""
    content = static_table.scale_to_fit(np.zeros((4, 8), dtype=np.float32))
    np.testing.assert_allclose(static_table.balance(content).var(axis=1), 1, atol=1e-6)


def test_static_start_equals_the_table(
    tmp_path: Path,
    make_student: Make,
    tokenizer: PreTrainedTokenizerFast,
    table: np.ndarray,
    texts: list[str],
) -> None:
    """A student started at scale 0 encodes as the mean of its table's rows, and as model2vec.

    The same for our encoder, the saved sentence-transformers folder and the saved static twin.
    """
    student, content = make_student(), static_table.scale_to_fit(table)
    static_table.start_static(student, content, 0.0)
    Student(student, tokenizer, 64).save(tmp_path / "student")
    vocabulary.save_static(tmp_path / "twin", content, tokenizer)
    backend = load_backend(tmp_path / "student", 64)
    sequences = list(tokenise(texts, backend))
    wanted = unit(np.stack([content[ids].mean(axis=0) for ids in sequences]))
    ours = PackedEncoder(student).encode(sequences)
    theirs = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(texts)
    twin = StaticModel.from_pretrained(tmp_path / "twin").encode(texts, max_length=None)
    short = np.array([len(ids) < 64 for ids in sequences])
    for found in (ours, theirs):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        np.testing.assert_allclose((found * wanted).sum(axis=1), 1, atol=1e-6)
    # The twin would cut long texts by their characters, so they are left out.
    assert short.sum() > 30
    np.testing.assert_allclose(unit(twin)[short], wanted[short], atol=1e-5)


def test_silent_layers_can_learn(make_student: Make, table: np.ndarray) -> None:
    """At scale 0 the layers write nothing, yet the matrices that write get a gradient."""
    student = make_student()
    static_table.start_static(student, static_table.scale_to_fit(table), 0.0)
    hidden = student(torch.tensor([[2, 90, 120, 130, 3]])).last_hidden_state
    hidden[..., :3].sum().backward()
    for layer in student.layers:
        for writer in (layer.attn.Wo.weight, layer.mlp.Wo.weight):
            assert not writer.any()
            assert float(writer.grad.abs().max()) > 1e-4


def test_residual_scale(make_student: Make, table: np.ndarray) -> None:
    """Another scale shrinks what the layers write by just that factor."""
    student, blank = make_student(), make_student()
    static_table.start_static(student, static_table.scale_to_fit(table), 0.25)
    for mine, before in zip(student.layers, blank.layers, strict=True):
        torch.testing.assert_close(mine.attn.Wo.weight, before.attn.Wo.weight * 0.25)
        torch.testing.assert_close(mine.mlp.Wo.weight, before.mlp.Wo.weight * 0.25)
        assert torch.equal(mine.attn.Wqkv.weight, before.attn.Wqkv.weight)


def test_padded_vocabulary_is_balanced(make_student: Make, table: np.ndarray) -> None:
    """Entries that pad the vocabulary are content-free rows that pass LayerNorm too."""
    student = make_student()
    static_table.start_static(student, static_table.scale_to_fit(table), 0.0)
    rows = student.embeddings.tok_embeddings.weight.detach().double().numpy()
    assert len(rows) > len(table)
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(rows.var(axis=1), rows.var(axis=1).mean(), rtol=1e-5)
    assert not rows[len(table) :, : -static_table.BALANCE].any()


def test_fit_raises_the_cosine(tokenizer: PreTrainedTokenizerFast) -> None:
    """Fitting turns the table towards the labels, keeps special rows at zero, and is repeatable."""
    random = np.random.default_rng(0)
    vocabulary_size, special = len(tokenizer), np.array(sorted(tokenizer.all_special_ids))
    hidden = random.normal(0, 1, (vocabulary_size, 16))
    hidden[special] = 0
    sequences = [
        np.concatenate([[2], random.integers(5, vocabulary_size, random.integers(3, 20)), [3]])
        for _ in range(400)
    ]
    ids = np.concatenate(sequences).astype(np.int32)
    tokens = TokenStore(ids, np.cumsum([0, *map(len, sequences)]))
    labels = unit(np.stack([hidden[one].mean(axis=0) for one in sequences])).astype(np.float16)
    start = (hidden + random.normal(0, 2, hidden.shape)).astype(np.float32)
    start[special] = 0

    def cosine(table: np.ndarray) -> float:
        found = unit(np.stack([table[one].mean(axis=0) for one in sequences]))
        return float((found * labels).sum(axis=1).mean())

    steps: list[int] = []

    def fit() -> np.ndarray:
        return static_table.fit_table(
            start.copy(), tokens, labels, epochs=20, learning_rate=0.1, special=special, seed=0,
            advance=steps.append,
        )  # fmt: skip

    fitted = fit()
    assert sum(steps) == 20 * 4  # 400 texts, 128 at a time
    assert cosine(start) < 0.6
    assert cosine(fitted) > cosine(start) + 0.3
    assert not fitted[special].any()
    assert fitted.dtype == np.float32
    assert np.array_equal(fitted, fit())


def test_fitted_map_mends_tokens_that_no_text_holds() -> None:
    """Labels are a rotation of the table's sums: the map finds it, for unseen tokens as well."""
    random = np.random.default_rng(0)
    width, vocabulary = 12, 60
    table = random.normal(size=(vocabulary, width)).astype(np.float32)
    rotation = np.linalg.qr(random.normal(size=(width, width)))[0].astype(np.float32)
    special = np.array([0, 1])
    texts = [random.integers(2, 50, size=6).astype(np.int32) for _ in range(600)]
    tokens = TokenStore(np.concatenate(texts), np.arange(601) * 6)
    sums = np.stack([table[text].sum(axis=0) for text in texts]) @ rotation
    labels = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float16)
    weights = np.full(vocabulary, 0.5)
    fitted = static_table.fit_map(
        table, weights, tokens, labels, epochs=40, learning_rate=0.05, special=special, seed=0
    )
    assert not fitted[special].any()
    wanted = table[50:] @ rotation  # ids from 50 on stand in no text
    cosines = (fitted[50:] * wanted).sum(axis=1)
    cosines /= np.linalg.norm(fitted[50:], axis=1) * np.linalg.norm(wanted, axis=1)
    assert cosines.min() > 0.98
    plain = table * weights[:, None]
    plain[special] = 0
    lengths = [np.linalg.norm(rows, axis=1).mean() for rows in (fitted, plain)]
    np.testing.assert_allclose(*lengths, rtol=1e-4)


def test_zipf_weights_fall_with_frequency() -> None:
    """Rare tokens weigh nearly 1, frequent ones far less, unseen ones are finite."""
    weights = static_table.zipf_weights(np.array([0, 10, 100_000, 900_000]))
    assert np.all(np.diff(weights) < 0)
    assert weights[0] > 0.9
    assert weights[-1] < 1e-3
    shares = (np.array([0, 10, 100_000, 900_000]) + 1) / 1_000_014
    np.testing.assert_allclose(weights, 1e-4 / (1e-4 + shares))


def test_teacher_table_is_the_teacher_of_each_entry(
    teacher_folder: Path, tokenizer: PreTrainedTokenizerFast, bpe_folder: Path
) -> None:
    """A row is the teacher's embedding of its entry, whether or not the vocabulary is its own."""
    teacher = load_teacher(teacher_folder)
    own = vocabulary.teacher_table(teacher, tokenizer)
    assert own.shape == (len(tokenizer), 48)
    words = ["the", "which", "with"]
    rows = tokenizer.convert_tokens_to_ids(words)
    np.testing.assert_allclose(own[rows], teacher.encode(words), atol=1e-5)
    bpe = load_tokenizer(bpe_folder)
    other = vocabulary.teacher_table(teacher, bpe)
    entries = [entry for entry in bpe.get_vocab() if entry.startswith("Ġ") and len(entry) > 3][:5]
    assert len(entries) == 5
    np.testing.assert_allclose(
        other[bpe.convert_tokens_to_ids(entries)],
        teacher.encode([entry[1:] for entry in entries]),
        atol=1e-5,
    )


def test_match_by_spelling_and_role(tokenizer: PreTrainedTokenizerFast, bpe_folder: Path) -> None:
    """Tokens of two vocabularies match by spelling, special tokens by role, the rest not at all."""
    bpe = load_tokenizer(bpe_folder)
    rows = vocabulary.match(bpe, tokenizer, 512)
    assert len(rows) == 512
    assert (rows[len(bpe) :] == -1).all()
    assert rows[bpe.convert_tokens_to_ids("a")] == tokenizer.convert_tokens_to_ids("a")
    assert rows[bpe.convert_tokens_to_ids("Q")] == -1  # the other one is lower-case
    for role in ("pad", "cls", "sep", "mask", "unk"):
        name = f"{role}_token_id"
        assert rows[getattr(bpe, name)] == getattr(tokenizer, name)
    same = vocabulary.match(tokenizer, tokenizer, len(tokenizer))
    assert same.tolist() == list(range(len(tokenizer)))
