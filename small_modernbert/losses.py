"""Distillation losses over a batch of vectors; every one is a mean over rows.

Pure functions. `student` is what the student pools, before normalisation, `(rows, width)`;
`teacher` the stored vectors, `(rows, width)`, unit length up to fp16 rounding.
"""

import torch
from torch.nn import functional

FEWEST_ROWS = 3  # that a ranking of each one's others needs


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance to the teacher's vector, the student's length included.

    Summed over dimensions, not averaged as torch's MSELoss does: the value then does not shrink
    with the width, and 2 - 2 cos is its value for a unit-length student.
    """
    return (student - teacher).square().sum(dim=1).mean()


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine: direction only."""
    return (1 - functional.cosine_similarity(student, teacher, dim=1)).mean()


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence from the teacher's to the student's in-batch similarities.

    Each row's similarities to all other rows, over the temperature, make a distribution; a row's
    similarity to itself is left out, since it is 1 for both. The gradient is scaled by the squared
    temperature, as is usual in distillation (Hinton et al., arXiv 1503.02531, section 2).

    Raises:
        ValueError: fewer than three rows: the distributions would be trivial.
    """
    rows = len(student)
    if rows < FEWEST_ROWS:
        raise ValueError(f"KL over in-batch similarities needs three rows, not {rows}")
    student, teacher = functional.normalize(student), functional.normalize(teacher)
    own = torch.eye(rows, dtype=torch.bool, device=student.device)
    # A large finite number: log-softmax of -inf times probability 0 would be NaN.
    scores = ((student @ student.T) / temperature).masked_fill(own, -1e4)
    wanted = ((teacher @ teacher.T) / temperature).masked_fill(own, -1e4)
    divergence = functional.kl_div(
        functional.log_softmax(scores, dim=1),
        functional.log_softmax(wanted, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def cosent(similarities: torch.Tensor, scores: torch.Tensor, scale: float) -> torch.Tensor:
    """CoSENT: every pair that should score higher than another is asked to.

    log(1 + sum over i, j with scores_i > scores_j of exp(scale * (similarity_j - similarity_i)))
    (Su 2022, as in sentence-transformers' CoSENTLoss).

    Args:
        similarities: `(pairs,)` cosines of the student.
        scores: `(pairs,)` graded scores, any scale.
        scale: inverse temperature; 20 is customary.
    """
    differences = scale * (similarities[None, :] - similarities[:, None])
    wrong = differences[scores[:, None] > scores[None, :]]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), dim=0)
