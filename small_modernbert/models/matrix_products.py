"""Matrix products of a frozen model, its weights cast once instead of in every pass."""

from collections.abc import Callable

import torch
from torch.nn import functional

from small_modernbert.models.precision import DTYPES

Product = Callable[[torch.Tensor], torch.Tensor]


def prepare(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Product:
    """Return the function `(tokens, inputs)` -> `(tokens, outputs)` of a linear layer.

    Args:
        weight: `(outputs, inputs)`, fp32.
        bias: `(outputs,)`, or None.
        precision: "fp32" or "bf16", whose results are of that type.
    """
    dtype = DTYPES[precision]
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    return lambda values: functional.linear(values.to(dtype), weight, bias)
