"""The student's shape: presets, what follows from them, and the table of its parameters.

Only numbers and configuration here; this module imports transformers inside functions, so that a
script can read the presets for its `--help`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import ModernBertConfig

VOCABULARY_MULTIPLE = 64  # tensor cores and AVX tiles like it; ModernBERT pads to it as well
GEGLU_RATIO = 1.5  # ModernBERT-base: 1,152 / 768
SPECIAL_TOKENS = ("pad_token", "cls_token", "sep_token", "mask_token", "unk_token")


@dataclass(frozen=True)
class Shape:
    """Everything about a student that a person chooses; the rest is derived.

    Attributes:
        num_hidden_layers: depth.
        hidden_size: width of the residual stream and of the embedding.
        intermediate_size: GeGLU units; 0 derives 1.5 x hidden_size, rounded up to 64.
        head_dim: width of one attention head; heads = hidden_size // head_dim.
        max_position_embeddings: longest input, tokens.
        global_every: each so-many-th layer attends globally, from layer 0 on.
        local_attention: whole window of the other layers, tokens (128: 64 to each side).
        global_rope_theta: rotary base of the global layers.
        local_rope_theta: rotary base of the local layers.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int = 0
    head_dim: int = 64
    max_position_embeddings: int = 1024
    global_every: int = 3
    local_attention: int = 128
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0

    @property
    def num_attention_heads(self) -> int:
        """Heads that fill hidden_size exactly.

        Raises:
            UserError: hidden_size is no multiple of head_dim, or head_dim is odd.
        """
        if self.hidden_size % self.head_dim or self.head_dim % 2:
            raise UserError(
                f"hidden_size {self.hidden_size} is no multiple of an even head_dim "
                f"{self.head_dim}; change --hidden-size or --head-dim"
            )
        return self.hidden_size // self.head_dim

    @property
    def geglu_units(self) -> int:
        """intermediate_size, derived where it was left at 0."""
        return self.intermediate_size or round_up(int(GEGLU_RATIO * self.hidden_size), 64)


PRESETS = {
    # The sources' first generation, and its later shape.
    "small-v1": Shape(6, 256, 1024, max_position_embeddings=512),
    "small-v1-384": Shape(6, 384, 576),
    # Deep and narrow, the second generation: 6 heads.
    "small-v2": Shape(12, 384, 768),
    # The same for whole documents: mlm/pre_train.py extends a small-v2 to as much, too.
    "small-v2-8k": Shape(12, 384, 768, max_position_embeddings=8192),
    # Granite R2's ablation: wide FFN, 12 heads of 32, better on long documents.
    "small-v2-wide": Shape(12, 384, 1536, head_dim=32),
    # Minutes on two CPU cores, narrower than a 384-d teacher, and with heads as wide as that
    # teacher's. Six layers learnt no more in the same number of steps (docs/LOG.md).
    "offline": Shape(4, 256, 384, head_dim=32, max_position_embeddings=512),
}


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `number`."""
    return -(-number // multiple) * multiple


def choose(preset: str, **changes: Any) -> Shape:  # noqa: ANN401  Shape's own fields
    """Return a preset with the given fields changed; a change of 0 keeps the preset's value.

    Raises:
        UserError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; name one of: {', '.join(PRESETS)}")
    kept = {name: value for name, value in changes.items() if value}
    if "hidden_size" in kept and "intermediate_size" not in kept:
        kept["intermediate_size"] = 0
    return replace(PRESETS[preset], **kept)


def configure(shape: Shape, tokenizer: Any) -> "ModernBertConfig":  # noqa: ANN401  a fast tokenizer
    """Return the ModernBERT configuration of a shape over a tokenizer's vocabulary.

    The vocabulary is padded to a multiple of 64. [CLS] and [SEP] serve as beginning and end of
    sequence too, as in ModernBERT's own configuration.

    Raises:
        UserError: the tokenizer lacks a special token that the pipeline needs.
    """
    from transformers import ModernBertConfig

    missing = [name for name in SPECIAL_TOKENS if getattr(tokenizer, f"{name}_id") is None]
    if missing:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no {', '.join(missing)}; "
            "choose one in BERT's or ModernBERT's style with --tokenizer"
        )
    return ModernBertConfig(
        vocab_size=round_up(vocabulary_size(tokenizer), VOCABULARY_MULTIPLE),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.geglu_units,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        max_position_embeddings=shape.max_position_embeddings,
        local_attention=shape.local_attention,
        layer_types=layer_types(shape.num_hidden_layers, shape.global_every),
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": shape.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": shape.local_rope_theta},
        },
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sparse_prediction=True,
        classifier_pooling="mean",
    )


def vocabulary_size(tokenizer: Any) -> int:  # noqa: ANN401  a fast tokenizer
    """Return the rows that a tokenizer's embedding table needs: its largest id + 1.

    A vocabulary may have holes, so that this is more than its entries.
    """
    return max(tokenizer.get_vocab().values()) + 1


def layer_types(layers: int, global_every: int) -> list[str]:
    """Return each layer's attention: global at 0, `global_every`, ..., local in between."""
    return [
        "sliding_attention" if index % global_every else "full_attention" for index in range(layers)
    ]


def parameter_rows(model: "nn.Module") -> list[tuple[str, int]]:
    """Count parameters by part: embedding, each layer, rest, total (tied tensors once)."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        words = name.removeprefix("model.").split(".")
        part = f"layer {words[1]}" if words[0] == "layers" else words[0].replace("_", " ")
        counts[part] = counts.get(part, 0) + parameter.numel()
    return [*counts.items(), ("total", sum(counts.values()))]


def count_weights(*parts: "nn.Module") -> tuple[int, int]:
    """Return how many weights the parts of a model have: all, and those in no embedding table."""
    from torch import nn

    total = sum(weight.numel() for part in parts for weight in part.parameters())
    tables = {
        id(weight): weight.numel()
        for part in parts
        for module in part.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for weight in module.parameters()
    }
    return total, total - sum(tables.values())


def describe(config: "ModernBertConfig") -> str:
    """Return the derivation in one line: layers, width, heads, window, rope, vocabulary."""
    kinds = config.layer_types
    heads = config.num_attention_heads
    ropes = config.rope_parameters
    return (
        f"{config.num_hidden_layers} x {config.hidden_size} / {config.intermediate_size}, "
        f"{heads} heads of {config.hidden_size // heads}, "
        f"{kinds.count('full_attention')} global and {kinds.count('sliding_attention')} local "
        f"layers (window {config.local_attention}), rope theta "
        f"{ropes['full_attention']['rope_theta']:,.0f} / "
        f"{ropes['sliding_attention']['rope_theta']:,.0f}, vocabulary {config.vocab_size:,}, "
        f"{config.max_position_embeddings:,} tokens"
    )


def embedding_parameters(rows: Iterable[tuple[str, int]]) -> int:
    """Return the embedding's share of `parameter_rows`."""
    return sum(count for part, count in rows if part == "embeddings")
