"""Promises of losses.py: each loss is its formula."""

import math
from collections.abc import Callable

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    DistillKLDivLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    MSELoss,
    MultipleNegativesRankingLoss,
)

from small_modernbert.training import losses

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ROWS, WIDTH = 6, 5


def vectors(seed: int, rows: int = ROWS) -> torch.Tensor:
    """Return random vectors of length other than 1."""
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def cosine_of(one: torch.Tensor, two: torch.Tensor) -> float:
    """Write out the cosine of two vectors."""
    dot = sum(float(a * b) for a, b in zip(one, two, strict=True))
    return dot / math.sqrt(float((one**2).sum()) * float((two**2).sum()))


def test_mse_is_the_squared_distance_up_to_one_scale() -> None:
    """Of raw vectors, at the teacher's mean length: summed over dimensions, averaged over rows."""
    student, teacher = vectors(0), vectors(1)
    sizes = [math.sqrt(sum(float(x) ** 2 for x in side.flatten())) for side in (student, teacher)]
    scale = sizes[1] / sizes[0]
    wanted = sum(
        float(scale * student[i, j] - teacher[i, j]) ** 2 for i in range(ROWS) for j in range(WIDTH)
    )
    assert float(losses.mse(student, teacher)) == pytest.approx(wanted / ROWS, rel=1e-5)
    assert float(losses.mse(16 * student, teacher)) == pytest.approx(wanted / ROWS, rel=1e-5)


def test_mse_is_not_the_cosine_loss() -> None:
    """Equal directions of unequal lengths still have an error, and a gradient that evens them."""
    teacher = torch.nn.functional.normalize(vectors(0))
    student = (teacher * torch.linspace(0.5, 2, ROWS)[:, None]).requires_grad_()
    assert float(losses.cosine(student, teacher).detach()) == pytest.approx(0, abs=1e-6)
    losses.mse(student, teacher).backward()
    along = (student.grad * teacher).sum(dim=1)
    assert along[0] < 0 < along[-1]  # the shortest grows, the longest shrinks


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


class Fixed(torch.nn.Module):
    """A stand-in for a SentenceTransformer: a column's features are its vectors."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pass the vectors through."""
        return dict(features)

    def get_embedding_dimension(self) -> int:
        """Return the width."""
        return WIDTH


def columns(*vectors_of: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return vectors as sentence-transformers' losses take them."""
    return [{"sentence_embedding": one} for one in vectors_of]


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_multiple_negatives_is_theirs(negatives: int) -> None:
    """Value and gradient are sentence-transformers', with 0 to 3 negatives."""
    kind = MultipleNegativesRankingLoss(Fixed(), scale=20.0)
    parts = [vectors(seed).requires_grad_() for seed in range(2 + negatives)]
    theirs = kind.compute_loss_from_embeddings(parts, None)
    wanted = torch.autograd.grad(theirs, parts)
    others = torch.cat([torch.zeros(0, WIDTH), *parts[2:]])
    found = losses.multiple_negatives(parts[0], parts[1], others, 20.0)
    assert float(found.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for mine, its in zip(torch.autograd.grad(found, parts), wanted, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


def test_multiple_negatives_with_uneven_negatives() -> None:
    """Any row's negative is a candidate for all: one negative in the batch changes every row."""
    anchors, positives, negative = vectors(0), vectors(1), vectors(2, 1)
    total = 0.0
    for i in range(ROWS):
        texts = [*positives, negative[0]]
        scores = [math.exp(20 * cosine_of(anchors[i], text)) for text in texts]
        total -= math.log(scores[i] / sum(scores))
    found = losses.multiple_negatives(anchors, positives, negative, 20.0)
    assert float(found) == pytest.approx(total / ROWS, rel=1e-4)


@pytest.mark.parametrize("negatives", [1, 3])
def test_margin_mse_is_theirs_on_unit_vectors(negatives: int) -> None:
    """MarginMSELoss gives the same for vectors of length 1 and labels that were scaled before."""
    parts = [torch.nn.functional.normalize(vectors(seed)) for seed in range(2 + negatives)]
    judge = torch.rand(ROWS, 1 + negatives, generator=torch.Generator().manual_seed(9))
    theirs = MarginMSELoss(Fixed()).compute_loss_from_embeddings(parts, 0.5 * judge)
    margins = torch.stack([(parts[0] * (parts[1] - one)).sum(dim=1) for one in parts[2:]], dim=1)
    wanted = judge[:, :1] - judge[:, 1:]
    found = losses.margin_mse(margins.flatten(), wanted.flatten(), 0.5)
    assert float(found) == pytest.approx(float(theirs), rel=1e-5)


def test_score_kl_is_theirs() -> None:
    """With all candidates there, and a temperature for each side, it is DistillKLDivLoss."""
    parts = [torch.nn.functional.normalize(vectors(seed)) for seed in range(4)]
    judge = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(9))
    theirs = DistillKLDivLoss(Fixed(), student_temperature=0.05, teacher_temperature=0.2)
    scores = torch.stack([(parts[0] * one).sum(dim=1) for one in parts[1:]], dim=1)
    everywhere = torch.ones(ROWS, 3, dtype=torch.bool)
    found = losses.score_kl(scores, judge, everywhere, 0.05, 0.2)
    assert float(found) == pytest.approx(
        float(theirs.compute_loss_from_embeddings(parts, judge)), rel=1e-4
    )


def test_score_kl_of_uneven_rows() -> None:
    """A place without a candidate weighs nothing, whatever stands there, in value and gradient."""
    scores, judge = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(0))
    candidates = torch.tensor([[True, True, True, True], [True, True, False, False]])
    short = losses.score_kl(scores[1:, :2], judge[1:, :2], candidates[1:, :2], 0.1, 0.1)
    whole = losses.score_kl(scores[:1], judge[:1], candidates[:1], 0.1, 0.1)
    scores.requires_grad_()
    found = losses.score_kl(scores, judge.masked_fill(~candidates, math.nan), candidates, 0.1, 0.1)
    assert float(found.detach()) == pytest.approx((float(short) + float(whole)) / 2, rel=1e-5)
    found.backward()
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad[1, 2:].any()


@pytest.mark.parametrize("kind", ["mnrl", "margin_mse"])
def test_matryoshka_is_theirs(kind: str) -> None:
    """The sum over dimensions is MatryoshkaLoss', where its labels are scores and not vectors."""
    parts = [vectors(seed) for seed in range(3)]
    judge = torch.rand(ROWS, generator=torch.Generator().manual_seed(9))
    model = Fixed()
    if kind == "mnrl":
        inner = MultipleNegativesRankingLoss(model)

        def own(*cut: torch.Tensor) -> torch.Tensor:
            return losses.multiple_negatives(*cut, 20.0)
    else:
        inner = MarginMSELoss(model)

        def own(*cut: torch.Tensor) -> torch.Tensor:
            margins = (cut[0] * (cut[1] - cut[2])).sum(dim=1)
            return losses.margin_mse(margins, judge, 1.0)

    theirs = MatryoshkaLoss(model, inner, [WIDTH, 2])(columns(*parts), judge)
    found = losses.matryoshka(own, parts, [WIDTH, 2])
    assert float(found) == pytest.approx(float(theirs), rel=1e-5)


def test_matryoshka_of_stored_vectors_can_reach_zero() -> None:
    """A student that equals its teacher has no loss at any dimension; MatryoshkaLoss leaves one."""
    teacher = torch.nn.functional.normalize(vectors(0))
    found = losses.matryoshka(losses.mse, [teacher, teacher], [WIDTH, 3, 2])
    assert float(found) == pytest.approx(0, abs=1e-6)
    model = Fixed()
    theirs = MatryoshkaLoss(model, MSELoss(model), [WIDTH, 3, 2])(columns(teacher), teacher)
    assert float(theirs) > 1e-3  # were it 0, the note in losses.matryoshka could go
    half = losses.matryoshka(losses.mse, [teacher, vectors(1)], [2])
    wanted = losses.cosine(teacher[:, :2], vectors(1)[:, :2])
    assert float(half) == pytest.approx(2 * float(wanted), rel=1e-5)


@pytest.mark.parametrize("dimensions", [[], [0], [WIDTH + 1]])
def test_matryoshka_refuses_other_dimensions(dimensions: list[int]) -> None:
    """A dimension that a vector does not have is an error, not a shorter list."""
    with pytest.raises(ValueError, match="dimensions"):
        losses.matryoshka(losses.mse, [vectors(0), vectors(1)], dimensions)
