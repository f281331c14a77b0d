"""What a training run is watched by: triplets, sentence pairs, retrieval, at any dimension.

Vectors are made once at the full width; a shorter dimension is their beginning, at unit length
again (Matryoshka: Kusupati et al., arXiv 2205.13147).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from small_modernbert.data import evaluation_sets
from small_modernbert.data.evaluation_sets import RetrievalSet, SentencePairs
from small_modernbert.data.examples import Examples
from small_modernbert.data.graded_pairs import PairSplits
from small_modernbert.data.token_store import TokenStore
from small_modernbert.evaluation import metrics
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.vectors import shorten
from small_modernbert.runs import hub, report, storage
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
STS_DEV = "sts-dev"  # what a hub dataset's validation split is called in figures


@dataclass(frozen=True)
class HeldOut:
    """What is not trained on.

    Attributes:
        triplets: rows with a negative.
        pairs: sentence pairs with a score or a label; None for none.
        sets: retrieval sets.
    """

    triplets: Examples
    pairs: SentencePairs | None
    sets: Sequence[RetrievalSet]

    def texts(self) -> dict[str, list[str]]:
        """Return the texts of the pairs and sets by name; the triplets are split off elsewhere."""
        found = {one.name: [*one.queries, *one.documents] for one in self.sets}
        if self.pairs is not None:
            found[self.pairs.name] = [*self.pairs.first, *self.pairs.second]
        return found

    def vectors(self, encoder: PackedEncoder, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
        """Encode all of it: unit vectors of each part's texts."""
        found = {"triplets": encoder.encode_texts(self.triplets.texts, tokenizer)}
        if self.pairs is not None:
            texts = [*self.pairs.first, *self.pairs.second]
            found["pairs"] = encoder.encode_texts(texts, tokenizer)
        for one in self.sets:
            found[f"queries {one.name}"] = encoder.encode_texts(one.queries, tokenizer)
            found[f"documents {one.name}"] = encoder.encode_texts(one.documents, tokenizer)
        return found

    def figures(self, vectors: dict[str, np.ndarray], dimension: int = 0) -> dict[str, float]:
        """Measure vectors, or their first `dimension` numbers.

        Returns:
            triplet_accuracy: share of negatives that are farther from the anchor than the positive.
            judge_spearman: rank correlation of the student's margins with the judge's, if there is
                a judge; judge_scale: what the judge's must be multiplied by to come nearest to the
                student's (least squares).
            <pairs>_spearman or <pairs>_average_precision.
            <set>_ndcg@10 for each set, and retrieval_ndcg@10, their mean.
        """
        if dimension:
            vectors = {name: shorten(one, dimension) for name, one in vectors.items()}
        found: dict[str, float] = {}
        if len(self.triplets):
            found |= triplet_figures(vectors["triplets"], self.triplets)
        if self.pairs is not None:
            first, second = np.split(vectors["pairs"], 2)
            cosines = metrics.pair_scores(first, second)
            name = "spearman" if self.pairs.graded else "average_precision"
            measure = getattr(metrics, name)
            found[f"{self.pairs.name}_{name}"] = measure(cosines, self.pairs.gold)
        scores = []
        for one in self.sets:
            sides = (vectors[f"{side} {one.name}"] for side in ("queries", "documents"))
            scores.append(metrics.retrieval_metrics(*sides, one)["ndcg@10"])
            found[f"{one.name}_ndcg@10"] = scores[-1]
        if scores:
            found["retrieval_ndcg@10"] = float(np.mean(scores))
        return found

    def measure(
        self, encoder: PackedEncoder, tokenizer: Tokenizer, dimensions: Sequence[int] = ()
    ) -> dict[str, float]:
        """Encode once; return `figures`, and at each shorter dimension d the headlines as name/d.

        With mean_cosine and effective_rank of the vectors; see `metrics.collapse`.

        Args:
            encoder: the student.
            tokenizer: its tokenizer.
            dimensions: those to measure beside the full width.
        """
        vectors = self.vectors(encoder, tokenizer)
        # The texts of triplets are distinct; without any, those of a set are the most.
        most = vectors["triplets"] if len(self.triplets) else max(vectors.values(), key=len)
        found = self.figures(vectors) | (metrics.collapse(most) if len(most) > 1 else {})
        width = encoder.model.config.hidden_size
        for dimension in dimensions:
            if dimension < width:
                short = self.figures(vectors, dimension)
                found |= {at(name, dimension): short[name] for name in short if is_headline(name)}
        return found


def at(name: str, dimension: int) -> str:
    """Return what a figure is called at a dimension shorter than the full width."""
    return f"{name}/{dimension}"


def is_headline(name: str) -> bool:
    """Say whether a figure is worth a column: a quality, and not a single set's."""
    others = ("ndcg@10", "judge_scale", "mean_cosine", "effective_rank")
    return name == "retrieval_ndcg@10" or not name.endswith(others)


def triplet_figures(vectors: np.ndarray, triplets: Examples) -> dict[str, float]:
    """Return what `HeldOut.figures` says of triplets.

    Args:
        vectors: `(texts, width)` unit vectors of the triplets' texts.
        triplets: rows with negatives.
    """
    anchors = vectors[triplets.anchors]
    of_positives = metrics.pair_scores(anchors, vectors[triplets.positives])
    owners = triplets.owners
    of_negatives = metrics.pair_scores(anchors[owners], vectors[triplets.negatives])
    found = {"triplet_accuracy": float((of_positives[owners] > of_negatives).mean())}
    if triplets.judged:
        # Margins, since no objective asks for more: what a whole row scores is left free.
        margins = of_positives[owners] - of_negatives
        judge = triplets.positive_scores[owners] - triplets.negative_scores
        found["judge_spearman"] = metrics.spearman(margins, judge)
        found["judge_scale"] = float(margins @ judge / max(float(judge @ judge), 1e-12))
    return found


def load_pairs(reference: str, path: Path | None) -> SentencePairs | None:
    """Read the sentence pairs to watch: a Parquet file, or a hub dataset's validation split.

    Args:
        reference: the file's name, a hub id (`id@revision` if pinned), or "" for none.
        path: of the file, if it is one.

    Raises:
        UserError: it can't be read, or has other columns.
    """
    if not reference:
        return None
    if path is not None:
        return evaluation_sets.load_sentence_pairs(reference, path)
    name, revision = hub.split_revision(reference)
    wanted = ("sentence1", "sentence2", "score")
    rows: dict[str, list] = {column: [] for column in wanted}
    for batch in hub.stream_rows(name, None, "validation", revision, wanted):
        for column in wanted:
            rows[column].extend(batch[column])
    first, second, gold = rows.values()
    return SentencePairs(STS_DEV, first, second, [float(value) for value in gold], graded=True)


def check_dimensions(dimensions: Sequence[int], weights: Sequence[float], width: int) -> list[int]:
    """Return the dimensions to measure: those trained, and the full width, the longest first.

    Raises:
        UserError: a dimension is not one of a vector of that width, stands twice, or the weights
            are not as many.
    """
    wrong = [one for one in dimensions if not 0 < one <= width]
    if wrong or len(set(dimensions)) < len(dimensions):
        fitting = [str(one) for one in dimensions if 0 < one < width]
        raise UserError(
            f"DIMENSIONS {' '.join(map(str, dimensions))} do not suit a student {width} wide; each "
            f"once, and none wider: --dimensions {' '.join(dict.fromkeys([str(width), *fitting]))}"
        )
    if weights and (len(weights) != len(dimensions) or min(weights) <= 0):
        raise UserError(
            f"DIMENSION_WEIGHTS has {len(weights)} numbers for {len(dimensions)} DIMENSIONS; give "
            "one above 0 for each, or none"
        )
    return sorted({*dimensions, width}, reverse=True)


def write_dimensions(
    folder: Path, dimensions: Sequence[int], before: dict[str, float], after: dict[str, float]
) -> str:
    """Write dimensions.json, dimensions.md and dimensions.png: quality against dimension.

    Args:
        folder: the model's.
        dimensions: the full width, then those that `HeldOut.measure` was given.
        before: its figures of the student that came in.
        after: of the trained one.

    Returns:
        The table, in Markdown.
    """
    names = [name for name in after if "/" not in name and is_headline(name)]
    found: dict[str, dict[int, dict[str, float]]] = {}
    for when, figures in (("before", before), ("after", after)):
        found[when] = {
            dimension: {name: figures[at(name, dimension) if place else name] for name in names}
            for place, dimension in enumerate(dimensions)
        }
    rows = [
        [dimension, *(found[when][dimension][name] for name in names for when in found)]
        for dimension in dimensions
    ]
    table = report.table(
        ["dimension", *(f"{name} {when}" for name in names for when in found)], rows
    )
    storage.write_json(folder / "dimensions.json", found)
    storage.write_text(
        folder / "dimensions.md",
        "# Quality against dimension\n\nThe first numbers of a vector are a vector of their own, "
        f"at unit length again:\n\n    SentenceTransformer(folder, truncate_dim={dimensions[-1]})"
        f".encode(texts, normalize_embeddings=True)\n\n{table}\n",
    )
    plot(folder / "dimensions.png", names, **found)
    return table


def plot(
    path: Path,
    names: Sequence[str],
    before: dict[int, dict[str, float]],
    after: dict[int, dict[str, float]],
) -> None:
    """Draw each figure against the dimension, before (dashed) and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for number, name in enumerate(names):
        for values, style, label in ((before, "--", None), (after, "-", name)):
            dimensions = sorted(values)
            axes.plot(
                dimensions,
                [values[one][name] for one in dimensions],
                style,
                marker="o",
                color=f"C{number % 10}",
                label=label,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(after), [str(one) for one in sorted(after)])
    axes.minorticks_off()
    axes.set_xlabel("dimension")
    axes.set_ylabel("quality (dashed: before)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


# A trained embedding model spreads over dozens of directions; below these it says nothing.
COLLAPSED_COSINE = 0.9


COLLAPSED_RANK = 4.0


def held_out_figures(
    encoder: PackedEncoder,
    tokens: TokenStore,
    vectors: np.ndarray,
    retrieval: Sequence[RetrievalSet],
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Measure a student on texts that it does not train on; warn early when it collapses.

    Returns:
        held_out_cosine: mean cosine to the teacher's vectors.
        mean_cosine, effective_rank: of the student's own vectors, see `metrics.collapse`.
        <set>_ndcg@10 for each retrieval set, and retrieval_ndcg@10, their mean.
    """
    figures: dict[str, float] = {}
    if len(tokens):
        own = encoder.encode([tokens[row] for row in range(len(tokens))])
        wanted = vectors.astype(np.float32)
        wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
        figures["held_out_cosine"] = float((own * wanted).sum(axis=1).mean())
        figures.update(metrics.collapse(own))
        if figures["mean_cosine"] > COLLAPSED_COSINE or figures["effective_rank"] < COLLAPSED_RANK:
            logger.warning(
                "the embeddings are collapsing: mean pairwise cosine %.3f, effective rank %.1f; "
                "lower LEARNING_RATE, or start from a better student",
                figures["mean_cosine"],
                figures["effective_rank"],
            )
    return figures | retrieval_figures(encoder, retrieval, tokenizer)


def retrieval_figures(
    encoder: PackedEncoder, retrieval: Sequence[RetrievalSet], tokenizer: Tokenizer
) -> dict[str, float]:
    """Return <set>_ndcg@10 for each set, and retrieval_ndcg@10, their mean, if there is one."""
    figures: dict[str, float] = {}
    scores = []
    for one in retrieval:
        queries = encoder.encode_texts(one.queries, tokenizer)
        documents = encoder.encode_texts(one.documents, tokenizer)
        scores.append(metrics.retrieval_metrics(queries, documents, one)["ndcg@10"])
        figures[f"{one.name}_ndcg@10"] = scores[-1]
    if scores:
        figures["retrieval_ndcg@10"] = float(np.mean(scores))
    return figures


def figures(
    encoder: PackedEncoder,
    tokens: TokenStore,
    splits: PairSplits,
    sentence_pairs: SentencePairs | None,
    retrieval: Sequence[RetrievalSet],
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Measure a student.

    Args:
        encoder: the student.
        tokens: of the held-out pairs' texts.
        splits: the pairs.
        sentence_pairs: pairs labelled 0 or 1, or scored by people; reported only.
        retrieval: validation sets.
        tokenizer: of the student.

    Returns:
        sts_spearman or teacher_agreement_spearman, by who graded the held-out pairs;
        mean_cosine and effective_rank of their texts, see `metrics.collapse`;
        <pairs>_average_precision (or _spearman); <set>_ndcg@10 and retrieval_ndcg@10, their mean.
    """
    own = encoder.encode([tokens[row] for row in range(len(tokens))])
    cosines = metrics.pair_scores(own[0::2], own[1::2])
    found = {splits.figure: metrics.spearman(cosines, splits.held_out.scores)}
    found |= metrics.collapse(own)
    if sentence_pairs is not None:
        sides = [
            encoder.encode_texts(side, tokenizer)
            for side in (sentence_pairs.first, sentence_pairs.second)
        ]
        cosines = metrics.pair_scores(*sides)
        if sentence_pairs.graded:
            name, measure = "spearman", metrics.spearman
        else:
            name, measure = "average_precision", metrics.average_precision
        found[f"{sentence_pairs.name}_{name}"] = measure(cosines, sentence_pairs.gold)
    return found | retrieval_figures(encoder, retrieval, tokenizer)
