"""Promises of students.py: what is saved loads everywhere, as what it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, ModernBertModel, PreTrainedTokenizerFast

from small_modernbert.models import students
from small_modernbert.models.attention import use_packed_attention
from small_modernbert.models.loading import load_backend
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.runs.errors import UserError

Make = Callable[..., ModernBertModel]
MAX_TOKENS = 48  # fewer than the positions, so that the folder's limit is what counts


@pytest.fixture
def folder(tmp_path: Path, make_student: Make, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Return the folder of a saved student."""
    path = tmp_path / "student"
    students.save_sentence_transformer(path, make_student(), tokenizer, max_tokens=MAX_TOKENS)
    return path


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_gives_the_same_embeddings(
    tmp_path: Path,
    make_student: Make,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    pooling: str,
) -> None:
    """A saved student loads in sentence-transformers and encodes as our packed encoder does."""
    encoder = PackedEncoder(make_student(), pooling, tokens_per_batch=256)
    students.save_sentence_transformer(
        tmp_path, encoder.model, tokenizer, max_tokens=MAX_TOKENS, pooling=pooling, card="# Card"
    )
    ours = encoder.encode_texts(texts, load_backend(tmp_path, MAX_TOKENS))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    theirs = loaded.encode(texts, batch_size=8)
    assert loaded.max_seq_length == MAX_TOKENS
    assert max(len(tokenizer(text)["input_ids"]) for text in texts) > MAX_TOKENS
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
    assert encoder.model.config._attn_implementation == "packed"  # saving left it as it was


def test_round_trip(folder: Path, make_student: Make) -> None:
    """Every tensor comes back bit for bit, in fp32, and the configuration with it."""
    model, loaded = make_student(), students.load_student(folder)
    assert type(loaded) is ModernBertModel
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == torch.float32
    for name in ("layer_types", "rope_parameters", "local_attention", "pad_token_id"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    assert students.read_max_tokens(folder, loaded.config) == MAX_TOKENS
    students.check_reload(folder, model)


def test_older_readers_can_load(folder: Path, make_student: Make) -> None:
    """The folder is in the form that older releases read: flat thetas, old paths, plain class."""

    def read(name: str) -> dict:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    config, ropes = read("config.json"), make_student().config.rope_parameters
    assert config["global_rope_theta"] == ropes["full_attention"]["rope_theta"]
    assert config["local_rope_theta"] == ropes["sliding_attention"]["rope_theta"]
    assert config["global_attn_every_n_layers"] == 3
    assert "packed" not in json.dumps(config)
    assert [module["type"] for module in read("modules.json")] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.Normalize",
    ]
    assert read("1_Pooling/config.json")["pooling_mode_mean_tokens"] is True
    tokenizer = read("tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert tokenizer["model_max_length"] == MAX_TOKENS
    assert read("tokenizer.json")["truncation"] is None
    assert not list(folder.rglob("*.bin"))


def test_tokenizer_comes_back(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The saved tokenizer gives the same ids and special tokens as the one it came from."""
    loaded = students.load_tokenizer(folder)
    text = "The unknowable: what, (a) X-ray?"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.all_special_ids == tokenizer.all_special_ids
    assert set(loaded(text)) == {"input_ids", "attention_mask"}


def test_head_is_kept_dropped_or_fresh(
    tmp_path: Path, make_student: Make, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """A head comes back when asked for, is dropped when not, and is fresh where there is none."""
    model = make_student(masked_lm=True)
    place = tmp_path / "with_head"
    students.save_model(place, model, tokenizer, MAX_TOKENS)
    students.check_reload(place, model)
    again = students.load_student(place, masked_lm=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.decoder.weight is again.model.embeddings.tok_embeddings.weight
    bare = students.load_student(place)
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(bare.state_dict()[name], tensor), name
    fresh = students.load_student(folder, masked_lm=True)
    for name, tensor in make_student().state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], tensor), name
    assert fresh.decoder.weight is fresh.model.embeddings.tok_embeddings.weight
    assert torch.isfinite(fresh.head.dense.weight).all()
    assert float(fresh.head.dense.weight.detach().std()) > 0


@pytest.mark.parametrize("damage", ["changed", "missing", "extra"])
def test_check_reload_catches(folder: Path, make_student: Make, damage: str) -> None:
    """A tensor that came back changed, went missing or appeared is refused."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "layers.1.mlp.Wo.weight"
    if damage == "changed":
        tensors[name][3, 5] += 1e-7
        tensors[name][3, 6] = -tensors[name][3, 6]
    elif damage == "missing":
        del tensors[name]
    else:
        tensors["stray"] = torch.ones(1)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors"):
        students.check_reload(folder, make_student())


@pytest.mark.parametrize("case", ["empty", "absent", "bert", "truncated", "no weights", "bad json"])
def test_wrong_folder_is_a_user_error(folder: Path, teacher_folder: Path, case: str) -> None:
    """A folder that holds no student, or a damaged one, is refused in one line that names it."""
    place = folder
    if case == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif case == "absent":
        place = folder / "absent"
    elif case == "bert":
        place = teacher_folder
    elif case == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif case == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError) as refused:
        students.load_student(place)
    assert str(place) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_wrong_tokenizer_is_a_user_error(tmp_path: Path) -> None:
    """A folder without a tokenizer is refused in one line that names it."""
    with pytest.raises(UserError, match=str(tmp_path)) as refused:
        students.load_tokenizer(tmp_path)
    assert "\n" not in str(refused.value)


def test_unknown_pooling_is_refused() -> None:
    """A pooling that readers do not know is never written."""
    with pytest.raises(ValueError, match="max"):
        students.sentence_transformer_files(32, MAX_TOKENS, "max")


def test_plain_transformers_loads_it(folder: Path, make_student: Make) -> None:
    """AutoModel gives the same hidden states as the model that was saved."""
    ids = torch.tensor([[2, 90, 95, 100, 3]])
    with torch.no_grad():
        wanted = make_student()(ids).last_hidden_state
        found = AutoModel.from_pretrained(folder)(ids).last_hidden_state
    assert torch.equal(found, wanted)


def test_packed_model_is_saved_readable(
    tmp_path: Path, make_student: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A model switched to packed attention is saved with an attention that others have."""
    model = make_student()
    use_packed_attention(model)
    students.save_model(tmp_path, model, tokenizer, MAX_TOKENS)
    assert students.load_student(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [({"model_max_length": 40}, 40), ({"model_max_length": 10**30}, 64), ({}, 64),
     ({"model_max_length": 1e30}, 64), ({"model_max_length": None}, 64),
     ({"model_max_length": 100}, 64)],
)  # fmt: skip
def test_the_tokenizer_may_hold_the_limit(
    folder: Path, limit: dict[str, object], wanted: int
) -> None:
    """Newer sentence-transformers write no max_seq_length: the tokenizer's counts, or positions."""
    config = students.load_student(folder).config
    assert config.max_position_embeddings == 64
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({"transformer_task": "feature-extraction"}))
    path = folder / "tokenizer_config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    del stored["model_max_length"]
    path.write_text(json.dumps(stored | limit), encoding="utf-8")
    assert students.read_max_tokens(folder, config) == wanted
    loaded = SentenceTransformer(str(folder), device="cpu").max_seq_length
    assert loaded is None or min(loaded, 64) == wanted


@pytest.mark.parametrize("limit", ["64", [64], 0, -1, True, 40.5])
def test_a_tokenizer_limit_that_is_none_is_refused(folder: Path, limit: object) -> None:
    """Something else than a positive whole number is the file's fault, and the file is named."""
    config = students.load_student(folder).config
    (folder / "sentence_bert_config.json").write_text("{}")
    path = folder / "tokenizer_config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stored | {"model_max_length": limit}), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer_config.json: model_max_length is"):
        students.read_max_tokens(folder, config)
