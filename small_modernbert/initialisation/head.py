"""A Dense layer after pooling, fitted in closed form: a cut model in its teacher's terms.

Layers that are taken out leave the others' output in a space of its own: of all-MiniLM-L6-v2's
layers 0, 2 and 4 the mean cosine to the whole model is 0.38. Most of that is one linear map, and
ridge regression on a few thousand labelled texts finds it in seconds, where gradient steps at a
learning rate that is kind to copied layers take minutes (figures: docs/LOG.md).
"""

from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Dense

from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.vectors import normalise

RIDGE = 1e-2  # of the mean of the pooled vectors' second moments


@torch.inference_mode()
def fit_head(
    encoder: PackedEncoder, sequences: Sequence[np.ndarray], labels: np.ndarray
) -> tuple[Dense, float]:
    """Fit an affine map from a student's pooled vectors to the labels of the same texts.

    Args:
        encoder: the student without modules after pooling.
        sequences: token ids of n texts.
        labels: `(n, width)`, the teacher's vectors; their directions count.

    Returns:
        The layer `hidden_size -> width`, with a bias; and the mean cosine to the labels, of the
        texts that it was fitted on.

    Raises:
        ValueError: there are fewer texts than the map has rows, or not as many labels.
    """
    hidden_size = encoder.transformer.config.hidden_size
    if len(sequences) != len(labels) or len(labels) <= hidden_size:
        raise ValueError(f"{len(sequences)} texts and {len(labels)} labels for {hidden_size} rows")
    pooled = torch.empty((len(sequences), hidden_size), dtype=torch.float64)
    for rows, vectors in encoder.pooled_by_length(sequences):
        pooled[rows] = vectors.cpu().double()
    wanted = torch.from_numpy(normalise(labels)).double()
    center, goal = pooled.mean(dim=0), wanted.mean(dim=0)
    spread = pooled - center
    moment = spread.T @ spread
    moment.diagonal().add_(RIDGE * moment.diagonal().mean())
    weight = torch.linalg.solve(moment, spread.T @ (wanted - goal)).T
    width = wanted.shape[1]
    dense = Dense(hidden_size, width, bias=True, activation_function=torch.nn.Identity())
    dense.linear.weight.copy_(weight)
    dense.linear.bias.copy_(goal - weight @ center)
    mapped = torch.nn.functional.normalize(spread @ weight.T + goal)
    return dense, float((mapped * wanted).sum(dim=1).mean())
