"""ModernBERT's forward pass over a packed batch, with the memory traffic of a CPU in mind.

Same weights, same mathematics as transformers' ModernBertModel (the suite holds both together, in
outputs and in every gradient). What differs is layout: everything stays token-major `(T, ...)`, so
that rotary embedding, attention and GeGLU neither transpose nor concatenate on the way. In a
profile of transformers' own pass on this format, matrix products were 42 % of the time and copies
for the rotary halves alone 15 %.

In bf16 the residual stream and the norms stay fp32; what goes into a matrix product, and attention,
is bf16. Weights are cast as they are used, so the model itself keeps its fp32 ones.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from transformers import ModernBertModel

from small_modernbert.models import cpu_attention
from small_modernbert.models.attention import band, stretches
from small_modernbert.models.packing import PackedBatch

Linear = Callable[[nn.Linear, torch.Tensor], torch.Tensor]


class _Rotate(torch.autograd.Function):
    """Rotary embedding of the query and key parts of `(T, 3, heads, head_dim)`; values pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(qkv, cos, sin)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # A rotation's transpose is the rotation by the opposite angle.
        return _rotated(gradient, cos, -sin), None, None


def _rotated(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = qkv.shape[-1] // 2
    result = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    first, second = qkv[:, :2, :, :half], qkv[:, :2, :, half:]
    torch.mul(first, cos, out=result[:, :2, :, :half])
    result[:, :2, :, :half].addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=result[:, :2, :, half:])
    result[:, :2, :, half:].addcmul_(first, sin)
    result[:, 2] = qkv[:, 2]
    return result


class _GeGLU(torch.autograd.Function):
    """gelu(input) * gate over the two halves of `(T, 2 * intermediate_size)`, without copies."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, both: torch.Tensor) -> torch.Tensor:
        value, gate = both.chunk(2, dim=-1)
        activated = functional.gelu(value)
        ctx.save_for_backward(both, activated)
        return activated * gate

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        both, activated = ctx.saved_tensors
        value, gate = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        into_value, into_gate = result.chunk(2, dim=-1)
        torch.mul(gradient, activated, out=into_gate)
        into_value.copy_(torch.ops.aten.gelu_backward(gradient * gate, value))
        return result


def attend(
    qkv: torch.Tensor, runs: tuple[tuple[int, int], ...], reach: int | None, scaling: float
) -> torch.Tensor:
    """Attend inside each sequence: `(T, 3, heads, head_dim)` -> `(T, hidden_size)`."""
    outputs = []
    pieces = qkv.split([count * length for count, length in runs])
    for (count, length), piece in zip(runs, pieces, strict=True):
        query, key, value = (
            part.unflatten(0, (count, length)).transpose(1, 2) for part in piece.unbind(1)
        )
        mask = None
        if reach is not None and length > reach + 1:
            mask = band(length, reach, qkv.device)
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling
        )
        outputs.append(output.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(outputs)


def supports(model: nn.Module) -> bool:
    """Say whether `hidden_states` covers a model: a ModernBERT with GELU and without dropout."""
    if not isinstance(model, ModernBertModel):
        return False
    config = model.config
    dropouts = (config.embedding_dropout, config.attention_dropout, config.mlp_dropout)
    return config.hidden_activation == "gelu" and not any(dropouts)


def hidden_states(
    model: ModernBertModel,
    batch: PackedBatch,
    dtype: torch.dtype = torch.float32,
    linear: Linear | None = None,
) -> torch.Tensor:
    """Return the last hidden states `(1, T, hidden_size)`, fp32, of a packed batch.

    Args:
        model: see `supports`.
        batch: on the model's device.
        dtype: of the matrix products and of attention: fp32 or bf16.
        linear: computes a layer's product in place of the layer's own weights cast to `dtype`.

    Raises:
        ValueError: the model has dropout or another activation (see `supports`).
    """
    if not supports(model):
        raise ValueError("the packed forward pass wants a ModernBERT with GELU and no dropout")
    runs = stretches(batch.lengths)
    inside = cpu_attention.attend if dtype == torch.bfloat16 else attend
    linear = linear or partial(_linear, dtype)
    hidden = model.embeddings(batch.input_ids)[0]
    angles = {}
    for kind in set(model.config.layer_types):
        cos, sin = model.rotary_emb(hidden, batch.position_ids, kind)
        half = cos.shape[-1] // 2
        # Both halves of a head turn by the same angles: keep one, broadcast over q/k and heads.
        angles[kind] = tuple(part[0, :, None, None, :half].to(dtype) for part in (cos, sin))
    for layer in model.layers:
        attention = layer.attn
        window = attention.sliding_window
        qkv = linear(attention.Wqkv, layer.attn_norm(hidden)).to(dtype)
        qkv = qkv.view(hidden.shape[0], 3, -1, attention.head_dim)
        qkv = _Rotate.apply(qkv, *angles[layer.attention_type])
        reach = None if window is None else window - 1
        attended = inside(qkv, runs, reach, attention.head_dim**-0.5)
        hidden = _end(layer, hidden, attended, linear)
    return model.final_norm(hidden)[None]


def _end(
    layer: nn.Module, hidden: torch.Tensor, attended: torch.Tensor, linear: Linear
) -> torch.Tensor:
    """Return what a layer makes of the residual stream once it has attended."""
    hidden = hidden + linear(layer.attn.Wo, attended)
    both = linear(layer.mlp.Wi, layer.mlp_norm(hidden))
    return hidden + linear(layer.mlp.Wo, _GeGLU.apply(both))


def _linear(dtype: torch.dtype, layer: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return functional.linear(values.to(dtype), layer.weight.to(dtype), bias)
