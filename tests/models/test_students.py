"""Promises of students.py: what is saved loads everywhere, as what it was."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import (
    AutoModel,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
)

from small_modernbert.models import students
from small_modernbert.models.attention import use_packed_attention
from small_modernbert.models.loading import load_backend
from small_modernbert.runs.errors import UserError

Make = Callable[..., ModernBertModel]
MAX_TOKENS = 48  # fewer than the positions, so that the folder's limit is what counts


@pytest.fixture
def folder(tmp_path: Path, make_student: Make, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Return the folder of a saved student."""
    path = tmp_path / "student"
    students.Student(make_student(), tokenizer, MAX_TOKENS).save(path)
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
    student = students.Student(make_student(), tokenizer, MAX_TOKENS, pooling)
    encoder = student.encoder()
    student.save(tmp_path)
    ours = encoder.encode_texts(texts, load_backend(tmp_path, MAX_TOKENS))
    np.testing.assert_array_equal(ours, encoder.encode_texts(texts, student.backend))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    theirs = loaded.encode(texts, batch_size=8)
    assert loaded.max_seq_length == MAX_TOKENS
    assert max(len(tokenizer(text)["input_ids"]) for text in texts) > MAX_TOKENS
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
    assert encoder.model.config._attn_implementation == "packed"  # saving left it as it was


def test_round_trip(folder: Path, make_student: Make) -> None:
    """Every tensor comes back bit for bit, in fp32, and the configuration with it."""
    student = students.load_student(folder)
    model, loaded = make_student(), student.transformer
    assert type(loaded) is ModernBertModel
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == torch.float32
    for name in ("layer_types", "rope_parameters", "local_attention", "pad_token_id"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    assert (student.max_tokens, student.pooling, student.width) == (MAX_TOKENS, "mean", 32)
    student.check_reload(folder)


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


def test_other_readers_find_every_field(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What text-embeddings-inference, vLLM, fastembed and onnxruntime-extensions ask for is there.

    Old and new rope fields agree; ids are numbers; no length of another call binds a reader.
    """

    def read(name: str) -> dict:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    config = read("config.json")
    for name in ("pad", "eos", "bos", "cls", "sep"):
        assert type(config[f"{name}_token_id"]) is int, name
    assert (config["cls_token_id"], config["sep_token_id"]) == (
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )
    for name in ("classifier_activation", "initializer_cutoff_factor", "norm_bias", "norm_eps"):
        assert config[name] is not None, name
    ropes = config["rope_parameters"]
    assert ropes["full_attention"]["rope_theta"] == config["global_rope_theta"]
    assert ropes["sliding_attention"]["rope_theta"] == config["local_rope_theta"]
    pooling = read("1_Pooling/config.json")
    assert (pooling["pooling_mode_mean_tokens"], pooling["pooling_mode_cls_token"]) == (True, False)
    assert read("sentence_bert_config.json")["max_seq_length"] == MAX_TOKENS
    special = read("special_tokens_map.json")
    assert special["pad_token"] == tokenizer.pad_token
    assert special["mask_token"] == tokenizer.mask_token


def test_a_length_of_another_call_does_not_go_along(
    tmp_path: Path, make_student: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A max_length that a tokenizer's maker left in its settings would cut fastembed's texts."""
    given = copy.deepcopy(tokenizer)
    given.init_kwargs |= {"max_length": 12, "stride": 2, "truncation_strategy": "only_first"}
    students.Student(make_student(), given, MAX_TOKENS).save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not stored.keys() & {"max_length", "stride", "truncation_strategy", "is_local"}
    assert stored["model_max_length"] == MAX_TOKENS
    assert stored["pad_token"] == tokenizer.pad_token


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
    student = students.Student(model, tokenizer, MAX_TOKENS)
    student.save(place)
    student.check_reload(place)
    again = students.load_student(place, masked_lm=True).transformer
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.decoder.weight is again.model.embeddings.tok_embeddings.weight
    bare = students.load_student(place).transformer
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(bare.state_dict()[name], tensor), name
    fresh = students.load_student(folder, masked_lm=True).transformer
    for name, tensor in make_student().state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], tensor), name
    assert fresh.decoder.weight is fresh.model.embeddings.tok_embeddings.weight
    assert torch.isfinite(fresh.head.dense.weight).all()
    assert float(fresh.head.dense.weight.detach().std()) > 0


@pytest.mark.parametrize("damage", ["changed", "missing", "extra"])
def test_check_reload_catches(folder: Path, damage: str) -> None:
    """A tensor that came back changed, went missing or appeared is refused."""
    student = students.load_student(folder)
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
        student.check_reload(folder)


@pytest.mark.parametrize("case", ["empty", "absent", "truncated", "no weights", "bad json"])
def test_wrong_folder_is_a_user_error(folder: Path, case: str) -> None:
    """A folder that holds no student, or a damaged one, is refused in one line that names it."""
    place = folder
    if case == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif case == "absent":
        place = folder / "absent"
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


def test_unknown_pooling_is_refused(
    tmp_path: Path, make_student: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A pooling that readers do not know is never written."""
    with pytest.raises(ValueError, match="max"):
        students.Student(make_student(), tokenizer, MAX_TOKENS, "max").save(tmp_path)


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
    students.Student(model, tokenizer, MAX_TOKENS).save(tmp_path)
    assert students.load_student(tmp_path).transformer.config._attn_implementation == "sdpa"


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
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({"transformer_task": "feature-extraction"}))
    path = folder / "tokenizer_config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    del stored["model_max_length"]
    path.write_text(json.dumps(stored | limit), encoding="utf-8")
    assert students.load_student(folder).max_tokens == wanted
    loaded = SentenceTransformer(str(folder), device="cpu").max_seq_length
    assert loaded is None or min(loaded, 64) == wanted


@pytest.mark.parametrize("limit", ["64", [64], 0, -1, True, 40.5])
def test_a_tokenizer_limit_that_is_none_is_refused(folder: Path, limit: object) -> None:
    """Something else than a positive whole number is the file's fault, and the file is named."""
    (folder / "sentence_bert_config.json").write_text("{}")
    path = folder / "tokenizer_config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stored | {"model_max_length": limit}), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer_config.json: model_max_length is"):
        students.load_student(folder)


# A student is everything that its own encode uses


def make_foreign(folder: Path, teacher_folder: Path, *, pooling: str = "mean") -> Path:
    """Save a BERT with a Dense layer and prompts, as sentence-transformers itself writes one."""
    model = SentenceTransformer(str(teacher_folder), device="cpu")
    torch.manual_seed(0)
    model[1].pooling_mode = pooling
    dense = modules.Dense(48, 20, activation_function=torch.nn.Tanh())
    made = SentenceTransformer(
        modules=[model[0], model[1], dense, modules.LayerNorm(20), modules.Normalize()],
        device="cpu",
        prompts={"query": "what ", "document": ""},
        default_prompt_name="query",
        similarity_fn_name="dot",
    )
    made.max_seq_length = MAX_TOKENS
    made.save(str(folder))
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_bert_with_a_head_goes_through_unchanged(
    tmp_path: Path, teacher_folder: Path, texts: list[str], pooling: str
) -> None:
    """A BERT with Dense, prompts and cls pooling loads, encodes, is saved, and is what it was."""
    foreign = make_foreign(tmp_path / "foreign", teacher_folder, pooling=pooling)
    student = students.load_student(foreign)
    assert (student.width, student.max_tokens, student.pooling) == (20, MAX_TOKENS, pooling)
    student.save(tmp_path / "saved")
    student.check_reload(tmp_path / "saved")
    before, after = (
        SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("foreign", "saved")
    )
    bare = {"prompt": ""}  # the default prompt is the caller's to put in front
    wanted = before.encode(texts, **bare)
    np.testing.assert_array_equal(after.encode(texts, **bare), wanted)
    np.testing.assert_array_equal(after.encode_query(texts), before.encode_query(texts))
    ours = student.encoder().encode_texts(texts, student.backend)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert after.prompts == before.prompts
    assert after.default_prompt_name == "query"
    assert after.similarity_fn_name == "dot"
    assert after.max_seq_length == MAX_TOKENS


def test_foreign_students_are_saved_for_older_readers(tmp_path: Path, teacher_folder: Path) -> None:
    """Old module paths, the keys that old releases take, safetensors: whatever is in the model."""
    foreign = make_foreign(tmp_path / "foreign", teacher_folder)
    students.load_student(foreign).save(tmp_path / "saved")

    def read(name: str) -> dict:
        return json.loads((tmp_path / "saved" / name).read_text(encoding="utf-8"))

    entries = [(module["path"], module["type"]) for module in read("modules.json")]
    kinds = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    places = ("", "1_Pooling", "2_Dense", "3_LayerNorm", "4_Normalize")
    assert entries == [
        (place, f"sentence_transformers.models.{kind}")
        for place, kind in zip(places, kinds, strict=True)
    ]
    assert read("2_Dense/config.json") == {
        "in_features": 48,
        "out_features": 20,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    assert load_file(tmp_path / "saved" / "2_Dense" / "model.safetensors").keys() == {
        "linear.weight",
        "linear.bias",
    }
    assert read("tokenizer_config.json")["do_lower_case"] is True
    assert read("tokenizer.json")["normalizer"]["lowercase"] is True
    assert not list((tmp_path / "saved").rglob("*.bin"))


def test_lower_casing_of_the_folder_is_kept(tmp_path: Path, teacher_folder: Path) -> None:
    """Texts that sentence-transformers lower-cases are lower-cased here, and after saving."""
    place = tmp_path / "cased"
    shutil.copytree(teacher_folder, place)
    for name, key in (("tokenizer.json", "lowercase"), ("tokenizer_config.json", "do_lower_case")):
        stored = json.loads((place / name).read_text())
        stored.get("normalizer", stored)[key] = False
        (place / name).write_text(json.dumps(stored))
    cased = students.load_student(place)
    config = json.loads((place / "sentence_bert_config.json").read_text())
    config["do_lower_case"] = True
    (place / "sentence_bert_config.json").write_text(json.dumps(config))
    student = students.load_student(place)
    assert student.backend.encode("The").ids == cased.backend.encode("the").ids
    assert student.backend.encode("The").ids != cased.backend.encode("The").ids
    student.save(tmp_path / "saved")
    again = students.load_student(tmp_path / "saved")
    assert again.backend.encode("The").ids == student.backend.encode("The").ids
    assert again.usage.lower_case
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(loaded.encode("The"), loaded.encode("the"))


def test_mpnet_student(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    """An MPNet is trained by its own padded pass, and its positions are counted as it does."""
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=50, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    students.Student(MPNetModel(config).eval(), tokenizer, 400).save(tmp_path)
    student = students.load_student(tmp_path)
    assert student.max_tokens == 48  # MPNet counts positions from 2 on
    longest = " ".join(texts)
    ours = student.encoder().encode_texts([*texts, longest], student.backend)
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    loaded.max_seq_length = student.max_tokens
    np.testing.assert_allclose(ours, loaded.encode([*texts, longest]), atol=1e-5)


def test_length_of_ones_own(folder: Path) -> None:
    """A length in place of the folder's is taken, unless the student has no positions for it."""
    assert students.load_student(folder, max_tokens=12, pooling="cls").max_tokens == 12
    with pytest.raises(UserError, match="MAX_TOKENS: the student takes 64 tokens, not 65"):
        students.load_student(folder, max_tokens=65)


def test_what_cannot_be_carried_is_refused_by_name(
    tmp_path: Path, folder: Path, teacher_folder: Path
) -> None:
    """Another pooling, a module before pooling, a residual: refused, and by what they are."""
    foreign = make_foreign(tmp_path / "foreign", teacher_folder, pooling="max")
    with pytest.raises(UserError, match=r"only mean or cls pooling can be trained, not .*max"):
        students.load_student(foreign)
    with pytest.raises(UserError, match="wants a ModernBERT student"):
        students.load_student(foreign, masked_lm=True)
    entries = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([entries[0], entries[2], entries[1]]))
    with pytest.raises(UserError, match="made of Transformer, Normalize, Pooling; a student is"):
        students.load_student(folder)


def test_a_model_without_normalisation_stays_without(
    tmp_path: Path, teacher_folder: Path, texts: list[str]
) -> None:
    """Vectors of a model that does not normalise keep their lengths through a folder."""
    model = SentenceTransformer(str(teacher_folder), device="cpu")
    SentenceTransformer(modules=[model[0], model[1]]).save(str(tmp_path / "foreign"))
    student = students.load_student(tmp_path / "foreign")
    assert not student.normalised
    student.save(tmp_path / "saved")
    wanted, given = (
        SentenceTransformer(str(tmp_path / name), device="cpu").encode(texts)
        for name in ("foreign", "saved")
    )
    np.testing.assert_array_equal(given, wanted)
    assert np.abs(np.linalg.norm(given, axis=1) - 1).max() > 0.01


def test_head_survives_masked_lm(tmp_path: Path, make_student: Make, folder: Path) -> None:
    """Pooling and prompts of a student come through masked-language modelling."""
    student = students.load_student(folder, pooling="cls")
    student.usage.prompts = {"query": "query: "}
    student.save(tmp_path / "cls")
    trained = students.load_student(tmp_path / "cls", masked_lm=True)
    trained.save(tmp_path / "trained")
    trained.check_reload(tmp_path / "trained")
    again = students.load_student(tmp_path / "trained")
    assert (again.pooling, again.usage.prompts) == ("cls", {"query": "query: "})
    for name, tensor in make_student().state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], tensor), name


def test_cure_for_a_pickled_layer_cures(
    tmp_path: Path, teacher_folder: Path, texts: list[str]
) -> None:
    """Whoever obeys the message about a Dense layer in a pickle has a folder that loads."""
    foreign = make_foreign(tmp_path / "foreign", teacher_folder)
    place = foreign / "2_Dense"
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"2_Dense/pytorch_model.bin is a pickle") as refused:
        students.load_student(foreign)
    (code,) = re.findall(r'python -c "(.*)"', str(refused.value))
    exec(code, {})  # noqa: S102  the command that the message gives
    student = students.load_student(Path(f"{foreign}-safe"))
    wanted = SentenceTransformer(str(foreign), device="cpu").encode(texts, prompt="")
    ours = student.encoder().encode_texts(texts, student.backend)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_cure_for_a_slow_tokenizer_cures(tmp_path: Path, teacher_folder: Path) -> None:
    """Whoever obeys the message about a folder of a slow tokenizer has a fast one beside it."""
    tokenizer = load_backend(teacher_folder, 64)
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (tmp_path / "vocab.txt").write_text("\n".join(entry for entry, _ in entries), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json is not there") as refused:
        load_backend(tmp_path, 64)
    (code,) = re.findall(r'python -c "(.*)"', str(refused.value))
    exec(code, {})  # noqa: S102  the command that the message gives
    words = entries[-1][0]
    assert load_backend(tmp_path, 64).encode(words).ids == tokenizer.encode(words).ids


def test_cure_for_a_router_cures(tmp_path: Path, teacher_folder: Path, texts: list[str]) -> None:
    """A model of two routes is refused by name, and the message makes a model of one of them."""
    from sentence_transformers.sentence_transformer.modules import Router

    teacher = SentenceTransformer(str(teacher_folder), device="cpu")
    routes = Router.for_query_document(
        query_modules=[*SentenceTransformer(str(teacher_folder), device="cpu")],
        document_modules=[*teacher],
    )
    folder = tmp_path / "router"
    SentenceTransformer(modules=[routes], device="cpu").save(str(folder), create_model_card=False)
    with pytest.raises(UserError, match=r"Router' is not imported") as refused:
        students.load_student(folder)
    (code,) = re.findall(r'python -c "(.*)"', str(refused.value))
    exec(code, {})  # noqa: S102  the command that the message gives
    student = students.load_student(Path(f"{folder}-document"))
    ours = student.encoder().encode_texts(texts, student.backend)
    np.testing.assert_allclose(ours, teacher.encode(texts, normalize_embeddings=True), atol=1e-5)


def test_a_model_with_a_decoder_is_no_student(tmp_path: Path, teacher_folder: Path) -> None:
    """sentence-t5 and its like may teach; as students they are refused by name, not by accident."""
    from transformers import T5Config, T5EncoderModel

    plain = SentenceTransformer(str(teacher_folder), device="cpu")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(plain.tokenizer), **sizes)).save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"t5 model, which has a decoder: it can be a teacher"):
        students.load_student(tmp_path)
