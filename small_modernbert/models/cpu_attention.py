"""Exact attention in bf16 on a CPU, as batched matrix products, forward and backward.

torch's fused attention has no fast bf16 backward pass on a CPU: 4.5 x the time of this one at 32
tokens, 3.9 x at 110, 2.0 x at 256, 1.4 x at 1,024 (docs/LOG.md). In fp32 it is the other way round,
so fp32 stays with torch. Up to `KEEP` tokens the weights are kept for the backward pass; above,
they are computed again, and a sliding window is worked through in blocks that skip what it hides.
"""

from collections.abc import Iterator

import torch

from small_modernbert.models.attention import band

KEEP = 256  # tokens; a text's weights grow with the square of its length
BLOCK = 128  # queries of a sliding window that are handled at once
BUDGET = 1 << 20  # scores at once: they stay in the cache


def attend(
    qkv: torch.Tensor, runs: tuple[tuple[int, int], ...], reach: int | None, scaling: float
) -> torch.Tensor:
    """Attend inside each sequence: `(T, 3, heads, head_dim)` -> `(T, hidden_size)`.

    Args:
        qkv: queries, keys and values, rotated, contiguous.
        runs: (count, length) of each stretch of equally long sequences, in order.
        reach: a query sees the keys at most this far away; None = all.
        scaling: factor on the scores.
    """
    return _Attention.apply(qkv, runs, reach, scaling)


def _blocks(length: int, reach: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield (queries, keys) such that every visible pair is in exactly one of them."""
    if reach is None or length <= KEEP:
        yield slice(0, length), slice(0, length)
        return
    for begin in range(0, length, BLOCK):
        end = min(begin + BLOCK, length)
        yield slice(begin, end), slice(max(0, begin - reach), min(length, end + reach))


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    hidden: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    scores = torch.bmm(query, key.transpose(1, 2)).mul_(scaling)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    return torch.softmax(scores, dim=-1)


def _hidden(
    length: int, reach: int | None, queries: slice, keys: slice, device: torch.device
) -> torch.Tensor | None:
    if reach is None or length <= reach + 1:
        return None
    return ~band(length, reach, device)[queries, keys]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        qkv: torch.Tensor,
        runs: tuple[tuple[int, int], ...],
        reach: int | None,
        scaling: float,
    ) -> torch.Tensor:
        _, _, heads, width = qkv.shape
        result = qkv.new_empty(qkv.shape[0], heads, width)
        saved, begin = [], 0
        for count, length in runs:
            tokens = slice(begin, begin + count * length)
            begin = tokens.stop
            parts = qkv[tokens].view(count, length, 3, heads, width).permute(2, 0, 3, 1, 4)
            parts = parts.reshape(3, count * heads, length, width)
            query, key, value = parts
            output = torch.empty_like(query)
            kept = []
            for queries, keys in _blocks(length, reach):
                hidden = _hidden(length, reach, queries, keys, qkv.device)
                for rows in _rows(count * heads, queries, keys):
                    weights = _weights(query[rows, queries], key[rows, keys], hidden, scaling)
                    torch.bmm(weights, value[rows, keys], out=output[rows, queries])
                    if length <= KEEP:
                        kept.append(weights)
            shape = (count, heads, length, width)
            result[tokens].view(count, length, heads, width).copy_(
                output.view(shape).transpose(1, 2)
            )
            saved += [parts, *kept]
        ctx.save_for_backward(*saved)
        ctx.runs, ctx.reach, ctx.scaling = runs, reach, scaling
        return result.flatten(1)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        result, begin = None, 0
        for count, length in ctx.runs:
            parts = next(saved)
            query, key, value = parts
            heads, width = len(query) // count, query.shape[-1]
            if result is None:
                result = gradient.new_empty(len(gradient), 3, heads, width)
            tokens = slice(begin, begin + count * length)
            begin = tokens.stop
            into = gradient[tokens].view(count, length, heads, width).transpose(1, 2)
            into = into.reshape(count * heads, length, width)
            # Blocks of a sliding window share keys, so theirs are added up.
            slopes = torch.zeros_like(parts)
            for queries, keys in _blocks(length, ctx.reach):
                hidden = _hidden(length, ctx.reach, queries, keys, gradient.device)
                for rows in _rows(count * heads, queries, keys):
                    if length <= KEEP:
                        weights = next(saved)
                    else:
                        weights = _weights(
                            query[rows, queries], key[rows, keys], hidden, ctx.scaling
                        )
                    given = into[rows, queries]
                    slopes[2, rows, keys].baddbmm_(weights.transpose(1, 2), given)
                    into_weights = torch.bmm(given, value[rows, keys].transpose(1, 2))
                    into_scores = torch._softmax_backward_data(
                        into_weights, weights, -1, weights.dtype
                    ).mul_(ctx.scaling)
                    torch.bmm(into_scores, key[rows, keys], out=slopes[0, rows, queries])
                    slopes[1, rows, keys].baddbmm_(
                        into_scores.transpose(1, 2), query[rows, queries]
                    )
            slopes = slopes.view(3, count, heads, length, width).permute(1, 3, 0, 2, 4)
            result[tokens].view(count, length, 3, heads, width).copy_(slopes)
        return result, None, None, None


def _rows(number: int, queries: slice, keys: slice) -> Iterator[slice]:
    """Cut `number` (sequence, head) pairs so that BUDGET scores are computed at once."""
    size = (queries.stop - queries.start) * (keys.stop - keys.start)
    step = max(1, BUDGET // size)
    for begin in range(0, number, step):
        yield slice(begin, min(begin + step, number))
