"""Student folders: a ModernBERT with its tokenizer, in the form that every reader loads.

The folders are written in the form that older readers know too (module paths, boolean pooling
fields, flat rope thetas, a plain fast tokenizer), because a model is made to be served elsewhere:
what sentence-transformers 6.2 writes, 5.1 cannot load.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    ModernBertForMaskedLM,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from small_modernbert.models.loading import (
    CURE,
    LARGEST_NUMBER,
    check_folder,
    check_weights,
    explained,
    read_header,
)
from small_modernbert.runs import hub, storage
from small_modernbert.runs.errors import UserError

POOLINGS = ("mean", "cls")


def load_tokenizer(reference: Path | str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a folder or hub id.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    with explained("tokenizer", reference), hub.cached_if_unreachable(reference, revision):
        tokenizer = AutoTokenizer.from_pretrained(
            str(reference), revision=revision, use_fast=True, trust_remote_code=False
        )
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError("it is no fast tokenizer")
        return tokenizer


def load_student(folder: Path, *, masked_lm: bool = False) -> ModernBertModel:
    """Load a student in fp32, bare or with its masked-language-modelling head.

    A bare folder loaded with `masked_lm` gets a fresh head; a head in the folder is dropped when
    the bare model is asked for.

    Raises:
        UserError: the folder holds no ModernBERT, or a damaged one: weights that are missing, not
            finite, of other shapes than its configuration, or of something else.
    """
    with explained("student", folder):
        check_folder(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type != "modernbert":
            raise UserError(f"{folder} holds a {config.model_type} model, not a ModernBERT student")
        kind = ModernBertForMaskedLM if masked_lm else ModernBertModel
        model = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        _check_tensors(folder, model)
        with torch.inference_mode():
            model(torch.zeros((1, 2), dtype=torch.long))
    return model


def _check_tensors(folder: Path, model: PreTrainedModel) -> None:
    heads = ("head.", "decoder.", "classifier.")
    stored = {
        name.removeprefix("model.")
        for file in sorted(folder.glob("*.safetensors"))
        for name in read_header(file)
    }
    known = {name.removeprefix("model.") for name in model.state_dict()}
    if strange := sorted(name for name in stored - known if not name.startswith(heads)):
        raise UserError(f"{folder}: {strange[0]!r} is no tensor of a ModernBERT; {CURE}")
    # A head is stored as a whole or not at all.
    with_head = any(name.startswith(heads) for name in stored)
    check_weights(model, folder, () if with_head else heads)


def extend_context(model: PreTrainedModel, tokens: int, global_rope_theta: float) -> None:
    """Let a model take `tokens` tokens, and turn its global layers' queries and keys more slowly.

    Context extension raises the base from 10,000 to 160,000 for 8,192 tokens (ModernBERT, arXiv
    2412.13663, section 2.1.2 and 2.2.2). Weights stay as they are.

    Args:
        model: a ModernBERT, bare or with its head.
        tokens: positions that it must take; fewer than it takes change nothing.
        global_rope_theta: base of the global layers; 0 = as it is.
    """
    config = model.config
    config.max_position_embeddings = max(config.max_position_embeddings, tokens)
    if not global_rope_theta:
        return
    config.rope_parameters["full_attention"]["rope_theta"] = float(global_rope_theta)
    bare = getattr(model, "model", model)
    # The angles are computed once, when the module is made.
    bare.rotary_emb = type(bare.rotary_emb)(config)


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> None:
    """Write weights (safetensors), configuration and tokenizer so that transformers loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    storage.check_space(folder, needed)
    implementation = model.config._attn_implementation
    model.config._attn_implementation = "sdpa"  # "packed" exists in our own process only
    try:
        model.save_pretrained(folder)
    finally:
        model.config._attn_implementation = implementation
    _add_flat_fields(folder / "config.json")
    save_tokenizer(folder, tokenizer, max_tokens)


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
    """Write a fast tokenizer in the plain form, with ModernBERT's two inputs."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["model_max_length"] = max_tokens
    config.pop("backend", None)
    storage.write_json(path, config)
    # The length belongs to the reader's call, not to the file: a saved truncation would bind all.
    path = folder / "tokenizer.json"
    backend = json.loads(path.read_text(encoding="utf-8"))
    backend["truncation"], backend["padding"] = None, None
    storage.write_text(path, json.dumps(backend, ensure_ascii=False))


def _add_flat_fields(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    ropes, kinds = config["rope_parameters"], config["layer_types"]
    config["global_rope_theta"] = ropes["full_attention"]["rope_theta"]
    config["local_rope_theta"] = ropes["sliding_attention"]["rope_theta"]
    later = [index for index, kind in enumerate(kinds) if index and kind == "full_attention"]
    config["global_attn_every_n_layers"] = later[0] if later else len(kinds)
    storage.write_json(path, config)


def save_sentence_transformer(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_tokens: int,
    pooling: str = "mean",
    card: str = "",
) -> None:
    """Write a student as a sentence-transformers folder: transformer, pooling, normalisation.

    Args:
        folder: written into; created if needed.
        model: the bare ModernBERT.
        tokenizer: its tokenizer.
        max_tokens: longer texts are truncated by readers.
        pooling: "mean" or "cls".
        card: text of README.md, if any.
    """
    save_model(folder, model, tokenizer, max_tokens)
    for name, content in sentence_transformer_files(
        model.config.hidden_size, max_tokens, pooling
    ).items():
        storage.write_json(folder / name, content)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    if card:
        storage.write_text(folder / "README.md", card)


def sentence_transformer_files(width: int, max_tokens: int, pooling: str) -> dict[str, Any]:
    """Return the JSON files of a transformer + pooling + normalise model, by relative path."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is none of {POOLINGS}")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "modules.json": [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, (path, kind) in enumerate(kinds)
        ],
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": False,
            "include_prompt": True,
        },
    }


def read_max_tokens(folder: Path, config: Any) -> int:  # noqa: ANN401  a model configuration
    """Return how many tokens a student folder's readers keep, its positions otherwise.

    Raises:
        UserError: the folder says something that is no such number.
    """
    path, name = folder / "sentence_bert_config.json", "max_seq_length"
    if not path.exists():
        return config.max_position_embeddings
    stored = storage.read_json(path, "write the model again")
    tokens = stored.get(name) if isinstance(stored, dict) else 0
    if tokens is None:
        # Newer sentence-transformers leave it to the tokenizer, where "no limit" is 10^30.
        path, name = folder / "tokenizer_config.json", "model_max_length"
        given = storage.read_json(path, "write the model again")
        tokens = given.get(name) if isinstance(given, dict) else 0
        if tokens is None or (type(tokens) in (int, float) and tokens > LARGEST_NUMBER):
            tokens = config.max_position_embeddings
        elif type(tokens) is int:
            tokens = min(tokens, config.max_position_embeddings)
    if type(tokens) is not int or not 0 < tokens <= LARGEST_NUMBER:
        raise UserError(f"{path}: {name} is {tokens!r}; write the model again")
    return tokens


def read_pooling(folder: Path) -> str:
    """Return how a student folder's readers pool; "mean" where it does not say.

    Raises:
        UserError: it pools in a way that ours does not.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    config = storage.read_json(path, "write the model again")
    if not isinstance(config, dict):
        raise UserError(f"{path} is no pooling; write the model again")
    newer = config.get("pooling_mode", [])
    newer = newer if isinstance(newer, list) else [newer]
    older = {"mean": "mean_tokens", "cls": "cls_token"}
    found = newer or [name for name in POOLINGS if config.get(f"pooling_mode_{older[name]}")]
    if len(found) != 1 or found[0] not in POOLINGS:
        raise UserError(f"{path}: only mean or cls pooling can be trained, not {found or config}")
    return found[0]


def check_reload(folder: Path, model: PreTrainedModel) -> None:
    """Raise if the tensors in `folder` are not those of `model`, bit for bit.

    Raises:
        UserError: a tensor differs or is missing: the disk did not keep what was written.
    """
    stored, state = load_file(folder / "model.safetensors"), model.state_dict()
    # A tied tensor is stored once, under one of its names.
    kept = {tensor.data_ptr() for name, tensor in state.items() if name in stored}
    for name, tensor in state.items():
        if tensor.data_ptr() not in kept:
            raise UserError(f"{folder}/model.safetensors: {name} is missing; check the disk")
        if name in stored and not torch.equal(stored[name], tensor.cpu()):
            raise UserError(f"{folder}/model.safetensors: {name} came back changed; check the disk")
    if not stored.keys() <= state.keys():
        raise UserError(f"{folder}/model.safetensors holds tensors that the model does not have")
