"""Tiling initialisation: a larger ModernBERT filled with the weights of a smaller one.

The small tensor stands in the middle of the large one and repeats to all sides. A deeper model
takes the small one's layers at a rounded even spacing, first to last, so that neighbours repeat:
0, 1, 2, 2, 3, ... (centre tiling with Gopher's layer scaling: ModernBERT, arXiv 2412.13663, section
2.2.2). Weights are not rescaled. Whole heads and whole GeGLU units are repeated, and queries, keys
and values, or the two GeGLU halves, never mix.

Pure functions over tensors.
"""

import re
from collections.abc import Mapping

import torch
from transformers import ModernBertConfig

Tensors = dict[str, torch.Tensor]


def tiled_rows(large: int, small: int) -> torch.Tensor:
    """Return for each of `large` places the small one that fills it, from the middle outwards.

    Raises:
        ValueError: there are more small places than large ones.
    """
    if small > large:
        raise ValueError(f"{small} does not fit into {large}: tiling makes models larger")
    return (torch.arange(large) - (large - small) // 2) % small


def spaced_layers(large: int, small: int) -> list[int]:
    """Return for each of `large` layers the small model's that fills it, at a rounded spacing.

    Raises:
        ValueError: there are more small layers than large ones.
    """
    if small > large:
        raise ValueError(f"{small} layers do not fit into {large}: tiling makes models larger")
    return [round(index * (small - 1) / max(large - 1, 1)) for index in range(large)]


def tile(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Tile every dimension of a tensor to `shape`."""
    for dimension, size in enumerate(shape):
        tensor = tensor.index_select(dimension, tiled_rows(size, tensor.shape[dimension]))
    return tensor


def tile_model(
    small: Mapping[str, torch.Tensor],
    small_config: ModernBertConfig,
    large_config: ModernBertConfig,
) -> tuple[Tensors, list[int]]:
    """Return a larger ModernBERT's tensors, made of a smaller one's, and each layer's source.

    Args:
        small: state of a ModernBertModel or ModernBertForMaskedLM.
        small_config: its configuration.
        large_config: that of the model to fill; equal vocabularies and head widths.

    Raises:
        ValueError: vocabularies or head widths differ, or the large model is smaller somewhere.
    """
    check_fit(small_config, large_config)
    sources = spaced_layers(large_config.num_hidden_layers, small_config.num_hidden_layers)
    filled: Tensors = {}
    layers: dict[int, Tensors] = {}
    for name, tensor in small.items():
        layer = re.search(r"layers\.(\d+)\.(.+)", name)
        if layer:
            layers.setdefault(int(layer[1]), {})[layer[2]] = tensor
            prefix = name[: layer.start()]
        else:
            filled[name] = _fill_outside(tensor, small_config.vocab_size, large_config.hidden_size)
    for index, source in enumerate(sources):
        for kind, tensor in layers[source].items():
            filled[f"{prefix}layers.{index}.{kind}"] = _fill_in_layer(
                kind, tensor, small_config.num_attention_heads, large_config
            )
        if index and "attn_norm.weight" not in layers[source]:
            # The first layer has no norm of its own: the embedding's serves.
            gain = small[next(n for n in small if n.endswith("embeddings.norm.weight"))]
            wider = tile(gain, (large_config.hidden_size,))
            filled[f"{prefix}layers.{index}.attn_norm.weight"] = wider
    filled.pop(f"{prefix}layers.0.attn_norm.weight", None)
    return filled, sources


def check_fit(small: ModernBertConfig, large: ModernBertConfig) -> None:
    """Refuse models whose tokens or heads are not the same.

    Raises:
        ValueError: vocabularies or head widths differ.
    """
    for what, ours, theirs in (
        ("vocabulary", large.vocab_size, small.vocab_size),
        (
            "head width",
            large.hidden_size // large.num_attention_heads,
            small.hidden_size // small.num_attention_heads,
        ),
    ):
        if ours != theirs:
            raise ValueError(f"{what} {ours} here, {theirs} in the smaller model")


def _fill_in_layer(
    kind: str, tensor: torch.Tensor, small_heads: int, large: ModernBertConfig
) -> torch.Tensor:
    """Tile a layer's tensor, head by head where it has heads."""
    width, units, heads = large.hidden_size, large.intermediate_size, large.num_attention_heads
    if kind == "attn.Wqkv.weight":
        parts = tensor.unflatten(0, (3, small_heads, -1))
        return tile(parts, (3, heads, parts.shape[2], width)).flatten(0, 2)
    if kind == "attn.Wo.weight":
        parts = tensor.unflatten(1, (small_heads, -1))
        return tile(parts, (width, heads, parts.shape[2])).flatten(1)
    if kind == "mlp.Wi.weight":
        return tile(tensor.unflatten(0, (2, -1)), (2, units, width)).flatten(0, 1)
    if kind == "mlp.Wo.weight":
        return tile(tensor, (width, units))
    return tile(tensor, (width,))


def _fill_outside(tensor: torch.Tensor, vocabulary: int, width: int) -> torch.Tensor:
    """Tile a tensor of the embedding, the last norm or the head."""
    if tensor.ndim == 2:
        return tile(tensor, (len(tensor) if len(tensor) == vocabulary else width, width))
    return tensor.clone() if len(tensor) == vocabulary else tile(tensor, (width,))
