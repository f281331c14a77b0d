"""Promises of losses.py: each loss is its formula."""

import math
from collections.abc import Callable

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from small_modernbert import losses

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ROWS, WIDTH = 6, 5


def vectors(seed: int, rows: int = ROWS) -> torch.Tensor:
    """Return random vectors of length other than 1."""
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def cosine_of(one: torch.Tensor, two: torch.Tensor) -> float:
    """Write out the cosine of two vectors."""
    dot = sum(float(a * b) for a, b in zip(one, two, strict=True))
    return dot / math.sqrt(float((one**2).sum()) * float((two**2).sum()))


def test_mse_is_the_squared_distance() -> None:
    """Summed over dimensions, averaged over rows."""
    student, teacher = vectors(0), vectors(1)
    wanted = sum(
        float(student[i, j] - teacher[i, j]) ** 2 for i in range(ROWS) for j in range(WIDTH)
    )
    assert float(losses.mse(student, teacher)) == pytest.approx(wanted / ROWS, rel=1e-5)


def test_mse_of_unit_vectors_is_twice_the_cosine_loss() -> None:
    """For unit lengths the squared distance is 2 - 2 cos, whatever the width."""
    one, two = (torch.nn.functional.normalize(vectors(seed)) for seed in (0, 1))
    assert float(losses.mse(one, two)) == pytest.approx(
        2 * float(losses.cosine(one, two)), rel=1e-5
    )


def test_cosine() -> None:
    """One minus the mean cosine; the student's length does not matter."""
    student, teacher = vectors(0), vectors(1)
    mean = sum(cosine_of(student[i], teacher[i]) for i in range(ROWS)) / ROWS
    assert float(losses.cosine(student, teacher)) == pytest.approx(1 - mean, rel=1e-5)
    assert float(losses.cosine(7 * student, teacher)) == pytest.approx(1 - mean, rel=1e-5)


def naive_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """Write out the mean over rows of sum_j t_j (log t_j - log s_j), times T squared."""
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        distributions = []
        for side in (student, teacher):
            scores = [math.exp(cosine_of(side[i], side[j]) / temperature) for j in others]
            distributions.append([score / sum(scores) for score in scores])
        for mine, wanted in zip(*distributions, strict=True):
            total += wanted * (math.log(wanted) - math.log(mine))
    return total / len(student) * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_kl(temperature: float) -> None:
    """The divergence of in-batch similarities equals its formula, a row's own left out."""
    student, teacher = vectors(0), vectors(1)
    wanted = naive_kl(student, teacher, temperature)
    assert float(losses.kl(student, teacher, temperature)) == pytest.approx(wanted, rel=1e-4)
    assert float(losses.kl(3 * student, teacher, temperature)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("loss", [losses.mse, losses.cosine, lambda a, b: losses.kl(a, b, 0.05)])
def test_zero_for_equal_inputs(loss: Loss) -> None:
    """A student that equals its teacher has no loss, and no gradient to leave it by."""
    teacher = torch.nn.functional.normalize(vectors(0))
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert float(student.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.005])
@pytest.mark.parametrize("case", ["apart", "equal rows", "opposite"])
def test_kl_gradient_is_finite(temperature: float, case: str) -> None:
    """Value and gradient stay finite, also for collapsed and for opposite students."""
    teacher = vectors(1)
    student = {
        "apart": vectors(0),
        "equal rows": torch.ones(ROWS, WIDTH),
        "opposite": -teacher,
    }[case].requires_grad_()
    value = losses.kl(student, teacher, temperature)
    value.backward()
    assert torch.isfinite(value)
    assert float(value.detach()) >= -1e-6
    assert torch.isfinite(student.grad).all()


def test_kl_needs_three_rows() -> None:
    """Two rows have only one other each: the loss would be zero whatever they are."""
    with pytest.raises(ValueError, match="three rows, not 2"):
        losses.kl(vectors(0, 2), vectors(1, 2), 1.0)


@pytest.mark.parametrize(
    "scores", [[0.1, 0.9, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 0.0]]
)
def test_cosent(scores: list[float]) -> None:
    """CoSENT equals its formula, and sentence-transformers' loss, ties included."""
    similarities = torch.tensor([0.3, 0.2, -0.4, 0.9], requires_grad=True)
    found = losses.cosent(similarities, torch.tensor(scores), 20.0)
    total = sum(
        math.exp(20 * float(similarities[j].detach() - similarities[i].detach()))
        for i in range(4)
        for j in range(4)
        if scores[i] > scores[j]
    )
    assert float(found.detach()) == pytest.approx(math.log1p(total), rel=1e-5)
    theirs = CoSENTLoss(torch.nn.Identity(), scale=20.0, similarity_fct=lambda a, b: a)
    values = theirs.compute_loss_from_embeddings([similarities, similarities], torch.tensor(scores))
    assert float(found.detach()) == pytest.approx(float(values.detach()), rel=1e-5, abs=1e-6)
    found.backward()
    assert torch.isfinite(similarities.grad).all()
