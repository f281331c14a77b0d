"""What a student is watched by while it trains: held-out rows, sentence pairs, retrieval.

Vectors are made once at the full width; a shorter dimension is their beginning, at unit length
again (Matryoshka: Kusupati et al., arXiv 2205.13147).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from small_modernbert.data.evaluation_sets import SentencePairs
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.data.token_store import TokenStore
from small_modernbert.data.training_examples import Examples
from small_modernbert.evaluation import metrics, search
from small_modernbert.evaluation.matryoshka import at, is_headline
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.prompts import Prompts, Role
from small_modernbert.models.students import Student
from small_modernbert.models.vectors import normalise, shorten
from small_modernbert.runs.errors import UserError

NO_PROMPTS = Prompts()
logger = logging.getLogger(__name__)


class HeldOut(Protocol):
    """Rows of the training distribution that are not trained on."""

    def __len__(self) -> int:
        """Return how many there are."""

    def encode(self, encoder: PackedEncoder, tokenizer: Tokenizer) -> np.ndarray:
        """Return `(texts, width)` unit vectors of their texts."""

    def figures(self, vectors: np.ndarray) -> dict[str, float]:
        """Measure those vectors, or the beginnings of them."""


@dataclass(frozen=True)
class HeldOutTexts:
    """Texts with the vectors that a teacher gave them.

    Attributes:
        tokens: of each text.
        labels: `(texts, width)`, of any norm.
    """

    tokens: TokenStore | Sequence[Sequence[int]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, encoder: PackedEncoder, tokenizer: Tokenizer) -> np.ndarray:
        """Return `(texts, width)` unit vectors."""
        return encoder.encode([self.tokens[row] for row in range(len(self))])

    def figures(self, vectors: np.ndarray) -> dict[str, float]:
        """Return held_out_cosine: the mean cosine to the teacher's vectors."""
        wanted = normalise(self.labels[:, : vectors.shape[1]])
        return {"held_out_cosine": float(metrics.pair_scores(vectors, wanted).mean())}


@dataclass(frozen=True)
class HeldOutPairs:
    """Pairs of texts with a score.

    Attributes:
        tokens: of the pairs' texts, first and second by turns.
        scores: `(pairs,)`.
        figure: what their rank correlation with the cosines is called, by who scored them.
    """

    tokens: TokenStore | Sequence[Sequence[int]]
    scores: np.ndarray
    figure: str

    def __len__(self) -> int:
        return len(self.scores)

    def encode(self, encoder: PackedEncoder, tokenizer: Tokenizer) -> np.ndarray:
        """Return `(2 * pairs, width)` unit vectors."""
        return encoder.encode([self.tokens[row] for row in range(len(self.tokens))])

    def figures(self, vectors: np.ndarray) -> dict[str, float]:
        """Return the rank correlation of the cosines with the scores."""
        cosines = metrics.pair_scores(vectors[0::2], vectors[1::2])
        return {self.figure: metrics.spearman(cosines, self.scores)}


@dataclass(frozen=True)
class HeldOutTriplets:
    """Rows of an anchor, its positive and negatives.

    Attributes:
        rows: each with a negative.
    """

    rows: Examples

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self, encoder: PackedEncoder, tokenizer: Tokenizer) -> np.ndarray:
        """Return `(texts, width)` unit vectors of the distinct texts."""
        return encoder.encode_texts(self.rows.texts, tokenizer)

    def figures(self, vectors: np.ndarray) -> dict[str, float]:
        """Measure the rows.

        Returns:
            triplet_accuracy: share of negatives that are farther from the anchor than the positive.
            judge_spearman: rank correlation of the student's margins with the judge's, if there is
                a judge; judge_scale: what the judge's must be multiplied by to come nearest to the
                student's (least squares).
        """
        rows = self.rows
        anchors = vectors[rows.anchors]
        of_positives = metrics.pair_scores(anchors, vectors[rows.positives])
        of_negatives = metrics.pair_scores(anchors[rows.owners], vectors[rows.negatives])
        # Margins, since no objective asks for more: what a whole row scores is left free.
        margins = of_positives[rows.owners] - of_negatives
        figures = {"triplet_accuracy": float((margins > 0).mean())}
        if rows.judged:
            judge = rows.positive_scores[rows.owners] - rows.negative_scores
            figures["judge_spearman"] = metrics.spearman(margins, judge)
            figures["judge_scale"] = float(margins @ judge / max(float(judge @ judge), 1e-12))
        return figures


@dataclass(frozen=True)
class Watched:
    """All that a training run is measured on.

    Attributes:
        held_out: rows of the training distribution.
        pairs: sentence pairs with a score or a label; None for none.
        sets: validation sets, for retrieval.
    """

    held_out: HeldOut
    pairs: SentencePairs | None = None
    sets: Sequence[RetrievalSet] = ()

    def texts(self) -> dict[str, list[str]]:
        """Return the texts of pairs and sets by name, which must not be trained on."""
        texts = {each.name: [*each.queries, *each.documents] for each in self.sets}
        if self.pairs is not None:
            texts[self.pairs.name] = [*self.pairs.first, *self.pairs.second]
        return texts

    def measure(
        self,
        encoder: PackedEncoder,
        tokenizer: Tokenizer,
        dimensions: Sequence[int] = (),
        prompts: Prompts = NO_PROMPTS,
    ) -> dict[str, float]:
        """Encode everything once and measure it, at the full width and at shorter ones.

        Args:
            encoder: the student.
            tokenizer: its tokenizer.
            dimensions: those to measure beside the full width.
            prompts: what the student's folder puts before a query, a document and other texts;
                the held-out rows are encoded as they train.

        Returns:
            What `held_out.figures` says; <pairs>_pearson and <pairs>_spearman, or
            <pairs>_average_precision;
            <set>_ndcg@10 for each set, and retrieval_ndcg@10, their mean; mean_cosine and
            effective_rank of the vectors, see `metrics.collapse`; and at each shorter dimension d
            the headlines as name/d.

        Raises:
            UserError: a vector holds NaN or infinity.
        """
        vectors = self._encode(encoder, tokenizer, prompts)
        if not all(np.isfinite(part).all() for part in vectors.values()):
            raise UserError(
                "the student gives NaN or infinity: its training has gone astray; lower "
                "--learning-rate, and begin anew with --overwrite"
            )
        figures = self._figures(vectors)
        # Held-out texts are distinct; without any, those of a set are the most.
        most = vectors.get("held out", max(vectors.values(), key=len, default=np.zeros((0, 1))))
        if len(most) > 1:
            figures |= metrics.collapse(most)
        width = encoder.width
        for dimension in dimensions:
            if dimension < width:
                cut = {name: shorten(whole, dimension) for name, whole in vectors.items()}
                short = self._figures(cut)
                figures |= {at(name, dimension): short[name] for name in short if is_headline(name)}
        return figures

    def sequential_score(self, figures: dict[str, float]) -> float:
        """Return what sentence-transformers' SequentialEvaluator calls the score: the last part's.

        The parts are the held-out rows, the sentence pairs and the retrieval sets, in this order.

        Args:
            figures: from `measure`.
        """
        names = [name for name in figures if "/" not in name and is_headline(name)]
        return figures[names[-1]] if names else float("nan")

    def _encode(
        self, encoder: PackedEncoder, tokenizer: Tokenizer, prompts: Prompts
    ) -> dict[str, np.ndarray]:
        def encode(texts: Iterable[str], role: Role) -> np.ndarray:
            prompt = prompts.of(role)
            return encoder.encode_texts([prompt + text for text in texts], tokenizer)

        vectors = {}
        if len(self.held_out):
            vectors["held out"] = self.held_out.encode(encoder, tokenizer)
        if self.pairs is not None:
            vectors["pairs"] = encode([*self.pairs.first, *self.pairs.second], "text")
        for each in self.sets:
            vectors[f"queries {each.name}"] = encode(each.queries, "query")
            vectors[f"documents {each.name}"] = encode(each.documents, "document")
        return vectors

    def _figures(self, vectors: dict[str, np.ndarray]) -> dict[str, float]:
        figures: dict[str, float] = {}
        if len(self.held_out):
            figures |= self.held_out.figures(vectors["held out"])
        if self.pairs is not None:
            of_pairs = metrics.pair_figures(*np.split(vectors["pairs"], 2), self.pairs)
            figures |= {f"{self.pairs.name}_{name}": value for name, value in of_pairs.items()}
        scores = []
        for each in self.sets:
            sides = (vectors[f"{side} {each.name}"] for side in ("queries", "documents"))
            scores.append(metrics.ranking_metrics(search.rank(each, *sides).rows, each)["ndcg@10"])
            figures[f"{each.name}_ndcg@10"] = scores[-1]
        if scores:
            figures["retrieval_ndcg@10"] = float(np.mean(scores))
        return figures


def measure_as_it_came(
    student: Student,
    folder: Path,
    watch: Callable[[Student], Watched],
    dimensions: Sequence[int] = (),
) -> Callable[[], dict[str, float]] | None:
    """Return how to measure the model that came in, where it is trained as another one.

    Other prompts, another pooling or another length make other vectors of the same weights: what is
    gained is told by the figures that the model had as it came.

    Args:
        student: as it is trained; not trained yet when the measuring is done.
        folder: that it came in.
        watch: what a student is measured on, held-out rows tokenised as that one reads them.
        dimensions: see `Watched.measure`.

    Returns:
        None where the first evaluation of the training is the model that came in.
    """
    own = student.as_it_came(folder)
    trained = (student.prompts, student.pooling, student.max_tokens)
    if (own.prompts, own.pooling, own.max_tokens) == trained:
        return None
    if own.prompts and not own.usage.include_prompt:
        logger.warning(
            "%s leaves its prompts out of the pooling, which is not done here: its figures before "
            "are those of texts without a prompt",
            folder,
        )
        own.prompts = NO_PROMPTS

    def measure() -> dict[str, float]:
        return watch(own).measure(own.encoder(), own.backend, dimensions, own.prompts)

    return measure
