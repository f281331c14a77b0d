"""Matrix products of a frozen model, its weights made ready once: cast, packed, or rounded to int8.

int8 rounds both sides: a matrix by output channel, activations by token as they come (LLM.int8(),
Dettmers et al., arXiv 2208.07339, section 2; no outliers are set apart). A scale of its own for
each token keeps a text's vector independent of the texts beside it.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from small_modernbert.models.precision import DTYPES

LEVELS = 127  # of int8, symmetric
SMALLEST = 1e-12  # scale of a row of zeros
ROWS = 512  # tokens at once: sums and their float copies stay in the cache
Product = Callable[[torch.Tensor], torch.Tensor]


def prepare(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Product:
    """Return the function `(tokens, inputs)` -> `(tokens, outputs)` of a linear layer.

    Args:
        weight: `(outputs, inputs)`, fp32.
        bias: `(outputs,)`, or None.
        precision: "fp32" or "bf16", whose results are of that type; or "int8", whose are fp32.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if precision == "int8":
        return _rounded(weight, bias)
    dtype = DTYPES[precision]
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return lambda values: functional.linear(values.to(dtype), weight, bias)


def _rounded(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    steps, matrix = _round(weight)
    steps, matrix = steps[:, 0], matrix.t()

    def product(values: torch.Tensor) -> torch.Tensor:
        result = torch.empty(len(values), len(steps))
        for rows, into in zip(values.split(ROWS), result.split(ROWS), strict=True):
            scales, rounded = _round(rows.float())
            # The one int8 product of torch whose rows keep scales of their own; exact, in int32.
            sums = torch._int_mm(rounded, matrix).float().mul_(steps)
            if bias is None:
                torch.mul(sums, scales, out=into)
            else:
                torch.addcmul(bias, sums, scales, out=into)
        return result

    return product


def _round(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a scale for each row, `(n, 1)`, and the rows over it as int8."""
    scales = rows.abs().amax(dim=1, keepdim=True).div_(LEVELS).clamp_min_(SMALLEST)
    return scales, (rows / scales).round_().to(torch.int8)
