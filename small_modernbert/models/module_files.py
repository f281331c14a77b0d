"""What stands beside a sentence-transformers model's weights: read in any form, written in one.

Written is the form that every reader knows (old module paths, boolean pooling fields, flat rope
thetas, a plain fast tokenizer), because a model is made to be served elsewhere: what
sentence-transformers 6.2 writes, 5.1 cannot load, and some servers pool it in another way.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from sentence_transformers.sentence_transformer import modules
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from small_modernbert.models.loading import CURE, LARGEST_NUMBER
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

POOLINGS = ("mean", "cls")
# What may follow pooling; each takes and gives `sentence_embedding`.
HEADS = {
    "Dense": modules.Dense,
    "LayerNorm": modules.LayerNorm,
    "Dropout": modules.Dropout,
    "Normalize": modules.Normalize,
}
# Of one call or one machine, and yet saved. fastembed would cut every text at such a max_length.
NOT_THE_TOKENIZERS = ("backend", "is_local", "local_files_only", "max_length", "pad_to_multiple_of")
NOT_THE_TOKENIZERS += ("stride", "truncation_strategy")


@dataclass
class Usage:
    """How a model wants to be called: what its folder says beside weights and modules.

    Attributes:
        prompts: beginnings of texts by name ("query", "document").
        default_prompt_name: of the prompt that every text gets; None = none.
        similarity: "cosine", "dot", ...
        include_prompt: whether a prompt's tokens are pooled.
        lower_case: whether texts are lower-cased whatever the tokenizer does.
    """

    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str | None = "cosine"
    include_prompt: bool = True
    lower_case: bool = False


@dataclass(frozen=True)
class Parts:
    """What a folder is made of.

    Attributes:
        transformer: its folder.
        pooling: likewise.
        head: the modules after pooling. A last Normalize is not among them: losses and encoders
            normalise on their own.
        normalised: whether there is one.
    """

    transformer: Path
    pooling: Path
    head: nn.Sequential = field(default_factory=nn.Sequential)
    normalised: bool = True


def read_usage(folder: Path, parts: Parts) -> Usage:
    """Return what a folder says; what it does not say is as sentence-transformers takes it.

    Raises:
        UserError: it says something that is no such thing.
    """
    known = _read_object(folder / "config_sentence_transformers.json")
    prompts, name = known.get("prompts") or {}, known.get("default_prompt_name")
    path = folder / "config_sentence_transformers.json"
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{path}: prompts is {str(prompts)[:80]!r}, not texts by name; {CURE}")
    if name is not None and name not in prompts:
        raise UserError(f"{path}: default_prompt_name {name!r} is none of its prompts; {CURE}")
    if cut := known.get("truncate_dim"):
        raise UserError(
            f"{path}: truncate_dim is {cut}, and a student is trained and saved at its full width; "
            "take it out of that file, and name it again to whoever loads the model"
        )
    pooling = _read_object(parts.pooling / "config.json")
    texts = _read_object(parts.transformer / "sentence_bert_config.json")
    return Usage(
        prompts=prompts,
        default_prompt_name=name,
        similarity=known.get("similarity_fn_name", "cosine"),
        include_prompt=bool(pooling.get("include_prompt", True)),
        lower_case=bool(texts.get("do_lower_case")),
    )


def read_modules(folder: Path) -> Parts:
    """Return what a folder is made of; one of transformers is pooled and normalised.

    Raises:
        UserError: the modules are others than a transformer, a pooling, and those of `HEADS`.
    """
    path = folder / "modules.json"
    if not path.exists():
        return Parts(folder, folder / "1_Pooling")
    entries = storage.read_json(path, CURE)
    kinds = [str(entry["type"]).rpartition(".")[2] for entry in entries]
    strange = [kind for kind in kinds[2:] if kind not in HEADS]
    if kinds[:2] != ["Transformer", "Pooling"] or strange:
        raise UserError(
            f"{folder} is made of {', '.join(kinds)}; a student is a Transformer, a Pooling, and "
            f"then any of {', '.join(HEADS)}; name another --student"
        )
    head = [
        HEADS[kind].load(str(folder / entry["path"]))
        for kind, entry in zip(kinds[2:], entries[2:], strict=True)
    ]
    for module in head:
        plain = getattr(module, "module_input_name", None) in (None, "sentence_embedding")
        if not plain or getattr(module, "use_residual", False):
            raise UserError(
                f"{folder} has a Dense layer with a residual or an input of its own, which is not "
                "trained here; name another --student"
            )
    normalised = bool(head) and isinstance(head[-1], modules.Normalize)
    transformer, pooling = (folder / entry["path"] for entry in entries[:2])
    return Parts(transformer, pooling, nn.Sequential(*head[: len(head) - normalised]), normalised)


def read_pooling(folder: Path) -> str:
    """Return how the readers of a pooling's folder pool; "mean" where it does not say.

    Raises:
        UserError: it pools in a way that ours does not.
    """
    path = folder / "config.json"
    if not path.exists():
        return "mean"
    config = _read_object(path)
    newer = config.get("pooling_mode", [])
    newer = newer if isinstance(newer, list) else [newer]
    older = {"mean": "mean_tokens", "cls": "cls_token"}
    flags = [name for name in config if name.startswith("pooling_mode_") and config[name]]
    known = [name for name in POOLINGS if f"pooling_mode_{older[name]}" in flags]
    given = newer or (known if len(known) == len(flags) else flags)
    if len(given) != 1 or given[0] not in POOLINGS:
        raise UserError(
            f"{path}: only mean or cls pooling can be trained, not {given or config}; train it "
            "with one of these: python distil_modernbert.py --pooling mean"
        )
    return given[0]


def read_max_tokens(folder: Path, positions: int) -> int:
    """Return how many tokens a transformer's readers keep, the model's positions otherwise.

    Raises:
        UserError: the folder says something that is no such number.
    """
    path, name = folder / "sentence_bert_config.json", "max_seq_length"
    if not path.exists():
        return positions
    tokens = _read_object(path).get(name)
    if tokens is None:
        # Newer sentence-transformers leave it to the tokenizer, where "no limit" is 10^30.
        path, name = folder / "tokenizer_config.json", "model_max_length"
        tokens = _read_object(path).get(name)
        if tokens is None or (type(tokens) in (int, float) and tokens > LARGEST_NUMBER):
            tokens = positions
    if type(tokens) is not int or not 0 < tokens <= LARGEST_NUMBER:
        raise UserError(f"{path}: {name} is {tokens!r}; {CURE}")
    return min(tokens, positions)


def write_transformer(
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
    if model.config.model_type == "modernbert":
        _add_flat_fields(folder / "config.json", tokenizer)
    write_tokenizer(folder, tokenizer, max_tokens)


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
    """Write a fast tokenizer in the plain form, with the two inputs that our models take."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["model_max_length"] = max_tokens
    for name in NOT_THE_TOKENIZERS:
        config.pop(name, None)
    storage.write_json(path, config)
    # transformers 5 writes it no more; fastembed and onnxruntime-extensions read it.
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    storage.write_json(folder / "special_tokens_map.json", special)
    # The length belongs to the reader's call, not to the file: a saved truncation would bind all.
    path = folder / "tokenizer.json"
    backend = json.loads(path.read_text(encoding="utf-8"))
    backend["truncation"], backend["padding"] = None, None
    storage.write_text(path, json.dumps(backend, ensure_ascii=False))


def write_modules(
    folder: Path,
    head: Sequence[nn.Module],
    *,
    width: int,
    max_tokens: int,
    pooling: str,
    normalised: bool = True,
    usage: Usage | None = None,
) -> None:
    """Write the files that make a transformer's folder one of sentence-transformers.

    Args:
        folder: the transformer's.
        head: modules after pooling.
        width: of the token vectors that are pooled.
        max_tokens: longer texts are cut by readers.
        pooling: "mean" or "cls".
        normalised: whether a Normalize module comes last.
        usage: prompts and the like; none by default.
    """
    usage = usage or Usage()
    names = ["Transformer", "Pooling", *(type(module).__name__ for module in head)]
    names += ["Normalize"] if normalised else []
    places = [f"{index}_{name}" if index else "" for index, name in enumerate(names)]
    for name, content in _json_files(width, max_tokens, pooling, usage).items():
        storage.write_json(folder / name, content)
    entries = [
        {"idx": index, "name": str(index), "path": place, "type": _type(name)}
        for index, (place, name) in enumerate(zip(places, names, strict=True))
    ]
    storage.write_json(folder / "modules.json", entries)
    for place in places[2:]:
        (folder / place).mkdir(exist_ok=True)
    for module, place in zip(head, places[2:], strict=False):
        if content := _config(module):
            storage.write_json(folder / place / "config.json", content)
        if state := module.state_dict():
            tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
            save_file(tensors, folder / place / "model.safetensors", {"format": "pt"})


def _type(name: str) -> str:
    return f"sentence_transformers.models.{name}"


def _config(module: nn.Module) -> dict[str, Any]:
    """Return a module's configuration with the keys that all releases take, and no other."""
    if isinstance(module, modules.Dense):
        kind = type(module.activation_function)
        return {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}",
        }
    if isinstance(module, modules.LayerNorm):
        return {"dimension": module.dimension}
    return {"dropout": module.dropout} if isinstance(module, modules.Dropout) else {}


def _json_files(width: int, max_tokens: int, pooling: str, usage: Usage) -> dict[str, Any]:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is none of {POOLINGS}")
    return {
        "sentence_bert_config.json": {
            "max_seq_length": max_tokens,
            "do_lower_case": usage.lower_case,
        },
        "config_sentence_transformers.json": {
            "prompts": usage.prompts,
            "default_prompt_name": usage.default_prompt_name,
            "similarity_fn_name": usage.similarity,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": False,
            "include_prompt": usage.include_prompt,
        },
    }


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is not there.

    Raises:
        UserError: it holds something else.
    """
    if not path.exists():
        return {}
    content = storage.read_json(path, CURE)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; {CURE}")
    return content


def _add_flat_fields(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Say in a ModernBERT's config.json what other readers ask for, beside the newer fields.

    text-embeddings-inference wants both thetas, the distance of global layers, and five ids.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    ropes, kinds = config["rope_parameters"], config["layer_types"]
    config["global_rope_theta"] = ropes["full_attention"]["rope_theta"]
    config["local_rope_theta"] = ropes["sliding_attention"]["rope_theta"]
    later = [index for index, kind in enumerate(kinds) if index and kind == "full_attention"]
    config["global_attn_every_n_layers"] = later[0] if later else len(kinds)
    for name, like in (
        ("pad", "pad"),
        ("cls", "cls"),
        ("sep", "sep"),
        ("bos", "cls"),
        ("eos", "sep"),
    ):
        if config.get(f"{name}_token_id") is None:
            config[f"{name}_token_id"] = getattr(tokenizer, f"{like}_token_id")
    storage.write_json(path, config)
