"""Promises of architecture.py: the student's shape and what follows from it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from transformers import ModernBertForMaskedLM, ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.models import architecture
from small_modernbert.models.architecture import PRESETS, Shape, configure, vocabulary_size
from small_modernbert.models.students import Student, load_student, load_tokenizer
from small_modernbert.runs.errors import UserError


@pytest.mark.parametrize(
    ("name", "layers", "width", "units", "heads"),
    [
        ("small-v1", 6, 256, 1024, 4),
        ("small-v1-384", 6, 384, 576, 6),
        ("small-v2", 12, 384, 768, 6),
        ("small-v2-8k", 12, 384, 768, 6),
        ("small-v2-wide", 12, 384, 1536, 12),
        ("offline", 4, 256, 384, 8),
    ],
)
def test_presets(name: str, layers: int, width: int, units: int, heads: int) -> None:
    """Every preset has the depth, width and units of its source, and heads that follow."""
    shape = PRESETS[name]
    assert (shape.num_hidden_layers, shape.hidden_size, shape.geglu_units) == (layers, width, units)
    assert shape.num_attention_heads == heads
    assert len(PRESETS) == 6


def test_heads_must_fill_the_width() -> None:
    """A width that heads cannot fill is refused with the flags that cure it."""
    for shape in (Shape(2, 100), Shape(2, 33, head_dim=11)):
        with pytest.raises(UserError, match="--head-dim"):
            _ = shape.num_attention_heads


def test_choose_changes_what_is_given() -> None:
    """A change of 0 keeps the preset's value; another width derives its own GeGLU units."""
    assert architecture.choose("small-v2", hidden_size=0, head_dim=0) == PRESETS["small-v2"]
    wider = architecture.choose("offline", hidden_size=512)
    assert (wider.geglu_units, wider.num_attention_heads) == (768, 16)
    assert architecture.choose("offline", hidden_size=512, intermediate_size=100).geglu_units == 100
    with pytest.raises(UserError, match="small-v2-wide"):
        architecture.choose("small-v3")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_configuration_fits_the_tokenizer(
    kind: str, wordpiece_folder: Path, bpe_folder: Path
) -> None:
    """Special tokens have the tokenizer's ids, in BERT's and in ModernBERT's style."""
    tokenizer = load_tokenizer({"wordpiece": wordpiece_folder, "bpe": bpe_folder}[kind])
    config = architecture.configure(PRESETS["offline"], tokenizer)
    ids = tokenizer("the a")["input_ids"]
    assert config.cls_token_id == config.bos_token_id == ids[0]
    assert config.sep_token_id == config.eos_token_id == ids[-1]
    assert config.pad_token_id == tokenizer.convert_tokens_to_ids("[PAD]")
    assert len({config.cls_token_id, config.sep_token_id, config.pad_token_id}) == 3
    assert config.vocab_size % 64 == 0
    assert 0 <= config.vocab_size - len(tokenizer) < 64
    assert max(tokenizer.get_vocab().values()) < config.vocab_size


def test_layer_pattern_window_and_thetas(tokenizer: PreTrainedTokenizerFast) -> None:
    """Every third layer attends globally with its own theta; the window's half is the reach."""
    shape = Shape(7, 64, local_attention=32, global_rope_theta=5e4, local_rope_theta=2e3)
    config = architecture.configure(shape, tokenizer)
    globally = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    assert globally == [0, 3, 6]
    assert config.rope_parameters["full_attention"]["rope_theta"] == 5e4
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 2e3
    with torch.device("meta"):
        layers = ModernBertModel(config).layers
    # transformers' layers hold the reach plus one.
    assert [layer.attn.sliding_window for layer in layers[:3]] == [None, 17, 17]
    line = architecture.describe(config)
    for fact in ("7 x 64 / 128", "1 heads of 64", "3 global and 4 local", "window 32", "50,000"):
        assert fact in line


def test_missing_special_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """A tokenizer without [MASK] is refused by name, with what to choose instead."""
    bare = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    with pytest.raises(UserError, match="has no mask_token; .*--tokenizer"):
        architecture.configure(PRESETS["offline"], bare)


@pytest.mark.parametrize("name", list(PRESETS))
def test_parameter_table(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """The table's parts follow from the shape and sum to the model's count."""
    shape = PRESETS[name]
    config = architecture.configure(shape, tokenizer)
    with torch.device("meta"):
        model = ModernBertModel(config)
    rows = dict(architecture.parameter_rows(model))
    width, units = shape.hidden_size, shape.geglu_units
    layer = 4 * width**2 + 3 * width * units + 2 * width  # Wqkv, Wo; Wi, Wo; two norms
    assert rows["embeddings"] == config.vocab_size * width + width
    assert rows["layer 0"] == layer - width  # no norm before the first attention
    assert rows["layer 1"] == layer
    assert rows["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert rows["total"] == sum(count for part, count in rows.items() if part != "total")
    table = architecture.parameter_rows(model)
    assert architecture.embedding_parameters(table) == rows["embeddings"]


@pytest.mark.parametrize(("name", "millions"), [("small-v2", 37), ("small-v2-wide", 48)])
def test_published_sizes(name: str, millions: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """With ModernBERT's vocabulary the reference shapes have the sizes that are quoted for them."""
    config = architecture.configure(PRESETS[name], tokenizer)
    config.vocab_size = 50_368
    with torch.device("meta"):
        total = architecture.parameter_rows(ModernBertModel(config))[-1][1]
    assert round(total / 1e6) == millions


def test_tied_decoder_counts_once(tokenizer: PreTrainedTokenizerFast) -> None:
    """The language-modelling head adds its own tensors only: the decoder is the embedding."""
    config = architecture.configure(Shape(2, 64, 64), tokenizer)
    bare = dict(architecture.parameter_rows(ModernBertModel(config)))
    with_head = dict(architecture.parameter_rows(ModernBertForMaskedLM(config)))
    assert with_head["total"] - bare["total"] == 64 * 64 + 64 + config.vocab_size


def test_initial_deviations(tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights start Megatron-style: 0.02, over sqrt(2 L) where a matrix writes to the stream.

    The normals are cut at two deviations, which narrows what is measured by a known factor.
    """
    torch.manual_seed(0)
    model = ModernBertModel(architecture.configure(Shape(8, 128, 192), tokenizer))
    normal = NormalDist()
    inside = 2 * normal.cdf(2) - 1
    narrowed = math.sqrt(1 - 2 * 2 * normal.pdf(2) / inside)
    readers = [w for layer in model.layers for w in (layer.attn.Wqkv.weight, layer.mlp.Wi.weight)]
    writers = [w for layer in model.layers for w in (layer.attn.Wo.weight, layer.mlp.Wo.weight)]
    for weights, deviation in (
        ([model.embeddings.tok_embeddings.weight], 0.02),
        (readers, 0.02),
        (writers, 0.02 / math.sqrt(2 * 8)),
    ):
        for weight in (parameter.detach() for parameter in weights):
            assert float(weight.std()) == pytest.approx(deviation * narrowed, rel=0.02)
            assert abs(float(weight.mean())) < 0.03 * deviation
            assert float(weight.abs().max()) <= 2 * deviation
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name


def test_same_seed_same_weights(make_student: Callable[..., ModernBertModel]) -> None:
    """Equal seeds give equal weights bit for bit, other seeds other weights."""
    one, two, other = (make_student(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["layers.0.mlp.Wi.weight"], other["layers.0.mlp.Wi.weight"])


def test_vocabulary_with_holes_fits(wordpiece_folder: Path, tmp_path: Path) -> None:
    """Ids beyond the number of entries have an embedding: the table ends at the largest id."""
    shutil.copytree(wordpiece_folder, tmp_path / "holes")
    path = tmp_path / "holes" / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["model"]["vocab"]["zebra"] = 900
    path.write_text(json.dumps(stored), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "holes")
    assert vocabulary_size(tokenizer) == 901 > len(tokenizer)
    config = configure(Shape(num_hidden_layers=1, hidden_size=32, head_dim=8), tokenizer)
    assert config.vocab_size == 960
    Student(ModernBertModel(config), tokenizer, 32).save(tmp_path / "student")
    student = load_student(tmp_path / "student")
    ids = student.backend.encode("zebra").ids
    assert 900 in ids
    assert np.isfinite(student.encoder().encode([np.asarray(ids)])).all()


@pytest.mark.parametrize(
    ("token", "masked_lm", "message"),
    [("mask_token", True, "no mask_token"), ("pad_token", False, "no pad_token")],
)
def test_special_tokens_are_demanded_where_they_are_needed(
    make_student: Callable[..., ModernBertModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    token: str,
    masked_lm: bool,
    message: str,
) -> None:
    """Without [MASK] no masked-language modelling, without [PAD] no batches: said when it loads."""
    Student(make_student(), tokenizer, 32).save(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / name
        stored = json.loads(path.read_text(encoding="utf-8"))
        del stored[token]
        path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UserError, match=f"{message}: name one in its tokenizer_config.json"):
        load_student(tmp_path, masked_lm=masked_lm)
    if token == "mask_token":
        load_student(tmp_path)
