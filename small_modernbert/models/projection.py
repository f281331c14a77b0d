"""Projections: the principal directions of vectors, by an uncentred PCA."""

from dataclasses import dataclass

import numpy as np
import torch

from small_modernbert.models.vectors import normalise


@dataclass(frozen=True)
class Projection:
    """An orthonormal map to fewer dimensions.

    Attributes:
        directions: `(k, d)`, orthonormal rows, by falling share of the second moment.
        mean: `(d,)`, the mean of the fitted vectors; recorded, never subtracted.
        explained: `(k,)`, each direction's share of the vectors' second moment.
    """

    directions: torch.Tensor
    mean: torch.Tensor
    explained: torch.Tensor


def principal_directions(vectors: torch.Tensor, k: int) -> Projection:
    """Return the k directions that keep most of the vectors' inner products.

    The second moment is decomposed without centring: cosine and dot product are taken from the
    origin, so keeping the origin keeps the rankings, and a table in a k-dimensional subspace
    through the origin loses nothing. At k = d the identity is returned: a rotation would change
    nothing but the LayerNorms' view.

    Args:
        vectors: `(n, d)`.
        k: directions wanted.

    Raises:
        ValueError: k exceeds d, or the vectors are not finite.
    """
    d = vectors.shape[1]
    if k > d:
        raise ValueError(f"{k} directions out of {d} dimensions")
    if not torch.isfinite(vectors).all():
        raise ValueError("the vectors hold NaN or infinity")
    data = vectors.double()
    moment = data.T @ data / len(data)
    return directions_of_moment(moment, data.mean(dim=0), k)


def directions_of_moment(moment: torch.Tensor, mean: torch.Tensor, k: int) -> Projection:
    """Like `principal_directions`, from the second moment `(d, d)` and the mean `(d,)`."""
    d = len(moment)
    if k == d:
        directions, values = torch.eye(d, dtype=torch.float64), moment.diagonal()
    else:
        values, columns = torch.linalg.eigh(moment.double())
        values, columns = values.flip(0)[:k], columns.flip(1)[:, :k]
        directions = columns.T
        # An eigenvector's sign is arbitrary: make its largest entry positive, for equal reruns.
        largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
        directions = directions * largest.sign()
    explained = values.clamp(min=0) / moment.diagonal().sum().clamp(min=1e-30)
    return Projection(directions.float(), mean.float(), explained.float())


def project(vectors: np.ndarray, projection: Projection) -> np.ndarray:
    """Map teacher vectors to the student's width, unit length, float32."""
    return normalise(vectors.astype(np.float32) @ projection.directions.numpy().T)
