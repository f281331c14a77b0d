"""BERT's forward pass over a packed batch, with gradients, as `forward` is ModernBERT's.

Same weights, same mathematics as transformers' BertModel without dropout (arXiv 1810.04805; the
suite holds both together, in outputs and in every gradient). The residual stream and the norms are
fp32; what goes into a matrix product, and attention, is of the given type.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import BertModel

from small_modernbert.models import cpu_attention
from small_modernbert.models.attention import stretches
from small_modernbert.models.forward import attend
from small_modernbert.models.packing import PackedBatch

Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LayerProducts:
    """A layer's matrix products, `(T, inputs)` -> `(T, outputs)` each; query, key, value in one."""

    qkv: Product
    out: Product
    up: Product
    down: Product


def supports(model: nn.Module) -> bool:
    """Say whether `hidden_states` covers a model: BERT as of 2018, absolute positions, GELU."""
    if not isinstance(model, BertModel):
        return False
    config = model.config
    positions = getattr(config, "position_embedding_type", "absolute")
    plain = config.hidden_act == "gelu" and positions in (None, "absolute")
    return plain and not config.is_decoder and not config.add_cross_attention


def layer_products(
    model: BertModel, make: Callable[[torch.Tensor, torch.Tensor], Product]
) -> list[LayerProducts]:
    """Return the products of every layer.

    Args:
        model: see `supports`.
        make: from a weight `(outputs, inputs)` and a bias `(outputs,)` to their product.
    """
    made = []
    for layer in model.encoder.layer:
        attention = layer.attention.self
        three = (attention.query, attention.key, attention.value)
        weight, bias = (
            torch.cat([getattr(part, kind) for part in three]) for kind in ("weight", "bias")
        )
        rest = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
        made.append(
            LayerProducts(make(weight, bias), *(make(part.weight, part.bias) for part in rest))
        )
    return made


def hidden_states(
    model: BertModel,
    batch: PackedBatch,
    dtype: torch.dtype = torch.float32,
    products: Sequence[LayerProducts] | None = None,
) -> torch.Tensor:
    """Return the last hidden states `(1, T, hidden_size)`, fp32, of a packed batch.

    Args:
        model: see `supports`.
        batch: on the model's device; no sequence is longer than the model's positions.
        dtype: of the matrix products and of attention: fp32 or bf16.
        products: of a frozen model, made once; None computes with the weights as they are now.
    """
    if products is None:

        def cast(weight: torch.Tensor, bias: torch.Tensor) -> Product:
            weight, bias = weight.to(dtype), bias.to(dtype)
            return lambda values: functional.linear(values.to(dtype), weight, bias)

        products = layer_products(model, cast)
    tables, heads = model.embeddings, model.config.num_attention_heads
    runs = stretches(batch.lengths)
    inside = cpu_attention.attend if dtype == torch.bfloat16 else attend
    hidden = functional.embedding(batch.input_ids[0], tables.word_embeddings.weight)
    hidden = hidden + functional.embedding(batch.position_ids[0], tables.position_embeddings.weight)
    hidden = tables.LayerNorm(hidden + tables.token_type_embeddings.weight[0])
    for layer, product in zip(model.encoder.layer, products, strict=True):
        qkv = product.qkv(hidden).to(dtype).view(len(hidden), 3, heads, -1)
        attended = inside(qkv, runs, None, qkv.shape[-1] ** -0.5)
        hidden = layer.attention.output.LayerNorm(hidden + product.out(attended))
        inner = functional.gelu(product.up(hidden))
        hidden = layer.output.LayerNorm(hidden + product.down(inner))
    return hidden[None]
