"""Where student and teacher agree on what is near, and where they do not: real texts, side by side.

The texts are the labels' held-out ones, which nobody trained on; the teacher's vectors are theirs.
A user's own texts may be asked for among them, and are then read by the teacher itself.
"""

import dataclasses
import random
from pathlib import Path

import numpy as np

from small_modernbert.data import labels
from small_modernbert.models import encoders
from small_modernbert.models.vectors import normalise

NEAREST = 3  # texts shown of each side
DEPTH = 10  # places that agreement is measured over
EXAMPLES = 4  # of each kind
OWN = "yours"  # the role of a user's text


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """What is nearest to a text.

    Attributes:
        text: that was asked for.
        agreement: share of the teacher's nearest DEPTH that the student has, too.
        teacher: its nearest texts, with cosines.
        student: the student's.
    """

    text: str
    agreement: float
    teacher: list[tuple[str, float]]
    student: list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Held-out texts with both models' vectors.

    Attributes:
        texts: of the sample.
        roles: of each: "query", "document", "text", or OWN.
        teacher: `(texts, width)` unit vectors.
        student: likewise; its own width.
        asked: how many of the first texts are asked for; 0 for all.
    """

    texts: list[str]
    roles: list[str]
    teacher: np.ndarray
    student: np.ndarray
    asked: int = 0


def read_sample(labelled: Path, student: Path, most: int, seed: int) -> Sample:
    """Draw held-out labels, and encode their texts with the student.

    Raises:
        UserError: the labels or the student do not read.
    """
    opened = labels.open_labels(labelled)
    texts: list[str] = []
    roles: list[str] = []
    rows: list[np.ndarray] = []
    for batch in opened.batches("held_out", ["text", "label", "role"]):
        texts += batch.column("text").to_pylist()
        roles += batch.column("role").to_pylist()
        values = batch.column("label").flatten().to_numpy(zero_copy_only=False)
        rows.append(values.reshape(-1, opened.dimension))
    chosen = sorted(random.Random(seed).sample(range(len(texts)), min(most, len(texts))))
    texts, roles = [texts[row] for row in chosen], [roles[row] for row in chosen]
    vectors = np.concatenate(rows)[chosen].astype(np.float32)
    encoder = encoders.load_encoder(student, "student")
    encoded = encoder.encode(texts, "the student reads held-out texts")
    return Sample(texts, roles, normalise(vectors), normalise(encoded))


def add_own(sample: Sample, own: list[str], student: Path, teacher: Path) -> Sample:
    """Put a user's texts in front of a sample, to be asked for among it; both models read all.

    Args:
        sample: of `read_sample`; its teacher's vectors are left aside, since they may be reduced.
        own: the user's texts; those of the sample that are equal go.
        student: its folder.
        teacher: likewise.

    Raises:
        UserError: a model does not read.
    """
    known = set(own)
    others = [row for row, text in enumerate(sample.texts) if text not in known]
    texts = own + [sample.texts[row] for row in others]
    encoder = encoders.load_encoder(teacher, "teacher")
    wanted = normalise(encoder.encode(texts, "the teacher reads your texts and held-out ones"))
    encoder = encoders.load_encoder(student, "student")
    read = normalise(encoder.encode(own, "the student reads your texts"))
    return Sample(
        texts,
        [OWN] * len(own) + [sample.roles[row] for row in others],
        wanted,
        np.concatenate([read, sample.student[others]]),
        len(own),
    )


def compare(sample: Sample) -> tuple[float, list[Neighbours], list[Neighbours]]:
    """Return the mean agreement, and texts on which the two agree most and least."""
    orders, cosines = [], []
    for vectors in (sample.teacher, sample.student):
        near = vectors[: sample.asked or None] @ vectors.T
        np.fill_diagonal(near, -np.inf)  # a text is not its own neighbour
        orders.append(np.argsort(-near, axis=1, kind="stable")[:, :DEPTH])
        cosines.append(near)
    shares = np.array([np.isin(theirs, ours).mean() for theirs, ours in zip(*orders, strict=True)])

    def neighbours(row: int) -> Neighbours:
        sides = [
            [(sample.texts[other], float(near[row, other])) for other in order[row, :NEAREST]]
            for order, near in zip(orders, cosines, strict=True)
        ]
        return Neighbours(sample.texts[row], float(shares[row]), *sides)

    ranked = np.argsort(shares, kind="stable")
    half = len(ranked) // 2  # few texts: none stands on both sides
    agree = [neighbours(row) for row in ranked[half:][::-1][:EXAMPLES]]
    differ = [neighbours(row) for row in ranked[:half][:EXAMPLES]]
    return float(shares.mean()), agree, differ


def flatten(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return `(texts, 2)` places: t-SNE over the leading principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    wide = min(50, *vectors.shape)
    reduced = PCA(wide, random_state=seed).fit_transform(vectors)
    perplexity = min(30, max(2, (len(vectors) - 1) // 3))
    return TSNE(2, perplexity=perplexity, random_state=seed, init="pca").fit_transform(reduced)
