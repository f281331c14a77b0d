"""Feed-forward units taken out of a copied model: those that say least, with their mean kept.

A unit's say is the variance of its activation on real text times the squared norm of what it writes
(a structured kind of Optimal Brain Damage, LeCun et al. 1990). What the units that go give on
average moves into the bias, so the layer after them sees the same mean.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from small_modernbert.runs.errors import UserError

FAMILIES = ("bert", "mpnet")


@torch.inference_mode()
def keep_units(model: PreTrainedModel, sequences: Sequence[np.ndarray], units: int) -> float:
    """Keep so many feed-forward units of each layer of a BERT or an MPNet, in place.

    Args:
        model: the transformer.
        sequences: token ids of some texts to look at the units on; a hundred are plenty.
        units: of each layer.

    Returns:
        The share of the units' say that is kept, on average over the layers.

    Raises:
        UserError: the model is of another family, or has fewer units.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise UserError(
            f"FFN_UNITS: units are taken out of {' and '.join(FAMILIES)} models, not out of a "
            f"{config.model_type}; keep them all: --ffn-units 0"
        )
    if not 0 < units <= config.intermediate_size:
        raise UserError(
            f"FFN_UNITS is {units}, and the donor's layers have {config.intermediate_size}: give "
            "no more than that"
        )
    model.eval()
    shares = []
    # From the input up: each layer is looked at above what those under it have become.
    for layer in model.encoder.layer:
        reads, writes = layer.intermediate.dense, layer.output.dense
        mean, variance = _look_at(model, writes, sequences)
        shares.append(_cut_layer(reads, writes, mean, variance, units))
    config.intermediate_size = units
    return float(np.mean(shares))


def _cut_layer(
    reads: nn.Linear, writes: nn.Linear, mean: torch.Tensor, variance: torch.Tensor, units: int
) -> float:
    """Keep the units whose output varies most; the mean of the others goes into the bias.

    Returns:
        The share of that variance that is kept.
    """
    say = variance * writes.weight.square().sum(dim=0)
    kept = say.argsort(descending=True)[:units].sort().values
    gone = torch.ones_like(say, dtype=torch.bool)
    gone[kept] = False
    writes.bias.add_(writes.weight[:, gone] @ mean[gone])
    writes.weight = nn.Parameter(writes.weight[:, kept].clone())
    reads.weight = nn.Parameter(reads.weight[kept].clone())
    reads.bias = nn.Parameter(reads.bias[kept].clone())
    reads.out_features = writes.in_features = units
    return float(say[kept].sum() / say.sum())


def _look_at(
    model: PreTrainedModel, writes: nn.Linear, sequences: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of what a layer's units give over all tokens, `(units,)` each."""
    parts: list[torch.Tensor] = []

    def look(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        parts.append(given[0].flatten(0, -2))

    hook = writes.register_forward_pre_hook(look)
    try:
        for sequence in sequences:
            # One by one: no padding to tell from tokens.
            model(input_ids=torch.from_numpy(np.asarray(sequence, dtype=np.int64))[None])
    finally:
        hook.remove()
    values = torch.cat(parts)
    return values.mean(dim=0), values.var(dim=0)
