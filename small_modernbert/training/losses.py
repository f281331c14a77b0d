"""Losses over a batch of vectors or of their scores; every one is a mean over rows.

Pure functions. `student` is what the student pools, before normalisation, `(rows, width)`;
`teacher` the stored vectors, `(rows, width)`, unit length up to fp16 rounding. A *judge* scores
pairs of texts, a *margin* is by how much an anchor's positive scores above a negative.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

FEWEST_ROWS = 3  # that a ranking of each one's others needs


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of the student's raw vectors to the teacher's, up to one common scale.

    What a student pools is some sixteen times longer than a unit vector, and its model ends with a
    normalisation, so the length itself is nothing to learn: the batch is brought to the teacher's
    root mean square length first. What is left beside the direction is that the student's vectors
    must be equally long, as the teacher's are; on vectors of unit length this is 2 - 2 cos, twice
    `cosine`. Summed over dimensions, not averaged as torch's MSELoss does: the value then does not
    shrink with the width.
    """
    scale = (teacher.square().sum() / student.square().sum().clamp_min(1e-12)).sqrt()
    return (scale * student - teacher).square().sum(dim=1).mean()


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


def multiple_negatives(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Cross-entropy of finding an anchor's positive among all texts of the batch.

    Candidates are every row's positive and every negative, whose ever it is (InfoNCE: van den Oord
    et al., arXiv 1807.03748; MultipleNegativesRankingLoss in sentence-transformers).

    Args:
        anchors: `(rows, width)`, any length.
        positives: `(rows, width)`.
        negatives: `(n, width)`; n may be 0, and rows need not have equally many.
        scale: inverse temperature of the cosines; 20 is customary.
    """
    rows = len(anchors)
    anchors = functional.normalize(anchors)
    candidates = functional.normalize(torch.cat([positives, negatives]))
    scores = scale * (anchors @ candidates.T)
    target = torch.arange(rows, device=scores.device)
    return functional.cross_entropy(scores, target)


def margin_mse(
    student_margins: torch.Tensor, judge_margins: torch.Tensor, scale: float
) -> torch.Tensor:
    """Squared difference of the student's margin to the judge's (Hofstaetter et al., 2010.02666).

    A margin is score(anchor, positive) - score(anchor, negative). The student's come from cosines
    and lie in -2 to 2, so the judge's are multiplied by `scale` first: a cross-encoder's raw
    logits, of ten and more, could never be reached and would only push the student's cosines to
    their ends.

    Args:
        student_margins: `(pairs,)`, one for each negative.
        judge_margins: `(pairs,)`.
        scale: of the judge's margins.
    """
    return functional.mse_loss(student_margins, scale * judge_margins)


def score_kl(
    student_scores: torch.Tensor,
    judge_scores: torch.Tensor,
    candidates: torch.Tensor,
    temperature: float,
    judge_temperature: float,
) -> torch.Tensor:
    """KL divergence from the judge's to the student's scores over each row's own candidates.

    Each side's scores over its temperature make a distribution over the row's positive and
    negatives (Lin et al., arXiv 2010.11386). Times the student's squared temperature, as in `kl`.

    Args:
        student_scores: `(rows, most candidates)` cosines.
        judge_scores: `(rows, most candidates)`; what stands outside `candidates` does not matter.
        candidates: `(rows, most candidates)` bool: where a row has a candidate; two at least.
        temperature: of the student's scores.
        judge_temperature: of the judge's; match it to their spread.
    """
    # A large finite number: log-softmax of -inf times probability 0 would be NaN.
    absent = ~candidates
    divergence = functional.kl_div(
        functional.log_softmax((student_scores / temperature).masked_fill(absent, -1e4), dim=1),
        functional.log_softmax((judge_scores / judge_temperature).masked_fill(absent, -1e4), dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def matryoshka(
    loss: Callable[..., torch.Tensor],
    vectors: Sequence[torch.Tensor],
    dimensions: Sequence[int],
) -> torch.Tensor:
    """Sum a loss over the first d numbers of every vector (Kusupati et al., arXiv 2205.13147).

    Every vector is cut *and brought back to unit length*, stored labels too: the beginning of a
    unit vector is shorter than 1, and a student that is compared with it at another length than
    its own has an error left when it is perfect.

    Args:
        loss: takes the vectors, in their order.
        vectors: `(n, width)` each; n may differ.
        dimensions: the lengths d.

    Raises:
        ValueError: a dimension exceeds the width.
    """
    width = vectors[0].shape[1]
    if not dimensions or min(dimensions) < 1 or max(dimensions) > width:
        raise ValueError(f"dimensions {list(dimensions)} of vectors {width} wide")
    total = vectors[0].new_zeros(())
    for dimension in dimensions:
        total = total + loss(*(functional.normalize(part[:, :dimension]) for part in vectors))
    return total
