"""Attention for packed batches, behind one registered name: `packed`.

Restarting `position_ids` does not separate packed sequences in transformers' own attention
functions, and a single 4-D mask loses ModernBERT's sliding window; both leak in silence. So we
register a function of our own, which gets the lengths with each call:

- CUDA in half precision: one call of torch's variable-length FlashAttention, with the window.
- elsewhere: one exact scaled-dot-product call per stretch of equally long sequences, with a band
  mask where a sliding layer meets a sequence longer than its window.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from small_modernbert.models.packing import PackedBatch

NAME = "packed"


def stretches(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return `(count, length)` for each run of equal lengths, in order."""
    return tuple((len(list(run)), length) for length, run in groupby(lengths))


@lru_cache(maxsize=16)  # 67 MB each at 8,192 tokens
def band(length: int, reach: int, device: torch.device) -> torch.Tensor:
    """Return the `(length, length)` mask that is true where |query - key| <= `reach` tokens."""
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[None, :]).abs() <= reach


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    lengths: Sequence[int],
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,  # noqa: ANN401  what transformers passes to every attention function
) -> tuple[torch.Tensor, None]:
    """Attend inside each packed sequence only.

    Args:
        module: the attention layer (part of transformers' calling convention).
        query: `(1, heads, T, head_dim)`.
        key: like `query`.
        value: like `query`.
        attention_mask: ignored: the boundaries say everything.
        lengths: tokens of each sequence; they sum to T.
        scaling: factor on the scores.
        dropout: on the attention weights.
        sliding_window: transformers' ModernBERT passes reach + 1; None attends to everything.

    Returns:
        `(1, T, heads, head_dim)` and None in place of the weights.
    """
    reach = None if sliding_window is None else sliding_window - 1
    if query.is_cuda and not dropout and has_flash_attention(query.dtype, query.shape[-1]):
        return flash_attention(query, key, value, tuple(lengths), scaling, reach), None
    runs = stretches(lengths)
    sizes = [count * length for count, length in runs]
    # One split and one concatenation: slicing would cost a T-sized zero fill per run in backward.
    pieces = zip(*(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True)
    outputs = []
    for (count, length), piece in zip(runs, pieces, strict=True):
        mask = None
        if reach is not None and length > reach + 1:
            mask = band(length, reach, query.device)
        # Heads and sequences are both batch dimensions here, so heads first needs no transpose.
        heads, tokens, width = piece[0].shape
        output = functional.scaled_dot_product_attention(
            *(part.reshape(heads, count, length, width) for part in piece),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
        )
        outputs.append(output.reshape(heads, tokens, width))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


@cache
def has_flash_attention(dtype: torch.dtype, head_dim: int) -> bool:
    """Say whether the GPU has a FlashAttention kernel for heads of a type and a width.

    There is none in fp32, none before Ampere (compute capability 8.0), and none beyond 256 numbers
    a head; torch pads no head here, and the kernels read eight numbers at a time.
    """
    fits = head_dim % 8 == 0 and head_dim <= 256
    return dtype != torch.float32 and fits and torch.cuda.get_device_capability() >= (8, 0)


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scaling: float,
    reach: int | None,
) -> torch.Tensor:
    """Call torch's FlashAttention on packed sequences; shapes as in `packed_attention`."""
    boundaries, longest = _boundaries(lengths, query.device), max(lengths)
    # Tokens first here; the window is inclusive on both sides, -1 is no limit.
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, -1) if reach is None else (reach, reach),
    )
    return output[None]


@lru_cache(maxsize=2)  # every layer of a pass asks for the same
def _boundaries(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return where each sequence begins, and the end of the last, `(sequences + 1,)` int32."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return ends.to(device, torch.int32)


def _no_mask(*_: Any, **__: Any) -> None:  # noqa: ANN401  transformers' calling convention
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Switch a ModernBERT to packed attention; `forward_packed` is then the way to call it."""
    model.set_attn_implementation(NAME)


def forward_packed(model: PreTrainedModel, batch: PackedBatch, **arguments: Any) -> Any:  # noqa: ANN401  the model's own output class
    """Run a ModernBERT with packed attention over one packed batch and return its output.

    Raises:
        ValueError: the model was not switched with `use_packed_attention`; running it anyway would
            let sequences see each other.
    """
    if model.config._attn_implementation != NAME:
        raise ValueError("forward_packed needs a model prepared by use_packed_attention")
    return model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        lengths=batch.lengths,
        **arguments,
    )
