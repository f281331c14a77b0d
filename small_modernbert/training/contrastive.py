"""Contrastive training: what a student is asked of anchors, positives and negatives, and how.

Every objective sees a batch as three stacks of vectors and who owns which negative, so rows may
have different numbers of negatives, or none. The batch's distinct texts go through the student in
one packed pass, or, cached, in several small ones with the same gradient.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from small_modernbert.data.token_store import TokenStore, store
from small_modernbert.data.training_examples import Examples
from small_modernbert.evaluation.validation import HeldOutTriplets, Watched
from small_modernbert.models.packed_encoder import PackedEncoder
from small_modernbert.models.packing import cut_by_tokens, pack
from small_modernbert.models.prompts import Prompts
from small_modernbert.models.students import Student
from small_modernbert.runs.stages import Stage
from small_modernbert.training import losses
from small_modernbert.training.batches import Mix, plan_epoch

# Cosine margin for a margin of one logit: rerankers answer with some -10 to 10, so the widest
# margin asks for 1 and the student's cosines have room for all of them.
LOGIT_MARGIN = 0.05
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """Whose a batch's negatives are, and what the judge said.

    Attributes:
        owners: `(negatives,)` int64, the row in the batch that each negative belongs to, ascending.
        positive_scores: `(rows,)`; NaN where no judge was asked.
        negative_scores: `(negatives,)`, likewise.
    """

    owners: torch.Tensor
    positive_scores: torch.Tensor
    negative_scores: torch.Tensor


# (anchors, positives, negatives, judged) -> the mean loss of the batch.
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Judged], torch.Tensor]


def mnrl(*, scale: float) -> Loss:
    """Return multiple negatives: find one's own positive among all texts of the batch."""

    def loss(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, judged: Judged
    ) -> torch.Tensor:
        return losses.multiple_negatives(anchors, positives, negatives, scale)

    return loss


def with_prompts(train: Examples, watched: Watched, prompts: Prompts) -> tuple[Examples, Watched]:
    """Return what is trained on and what is watched, rows behind the student's own prompts.

    A student that came with prompts keeps them, so it is trained as it will be used.
    """
    named = (prompts.query, prompts.document, prompts.text)
    return train.with_prompts(*named), watched_with_prompts(watched, prompts)


def watched_with_prompts(watched: Watched, prompts: Prompts) -> Watched:
    """Return what is watched, its held-out rows behind prompts."""
    rows = watched.held_out.rows.with_prompts(prompts.query, prompts.document, prompts.text)
    return replace(watched, held_out=HeldOutTriplets(rows))


def watched_by(watched: Watched, student: Student) -> Watched:
    """Return what is watched, its held-out rows behind a student's own prompts."""
    return watched_with_prompts(watched, student.prompts)


def tokenise(stage: Stage, examples: Examples, student: Student) -> TokenStore:
    """Return the tokens of a stage's texts, which a resumed run takes up."""
    folder, limit = stage.scratch / "tokens", str(student.max_tokens)
    return store(examples.texts, student.backend, folder, limit)


def takes_logits(margins: Literal["auto", "scores", "logits"], scale: str) -> bool:
    """Say whether margins are taken of the logits under a judge's scores.

    A cross-encoder's answer is a logit, and its sigmoid is flat at both ends: of logits 9 and 7 it
    leaves a margin of 0.001, of 8 and -8 one of 0.999. A bi-encoder's score is a cosine, which is
    what the student's is.

    Args:
        margins: "auto" takes logits of a cross-encoder.
        scale: what a score is, see `triplets.Triplets`.
    """
    return margins == "logits" or (margins == "auto" and scale == "sigmoid")


def with_logits(examples: Examples) -> Examples:
    """Return examples whose judge's scores are logits again; a score of 0 or 1 becomes +-13.8."""

    def logits(scores: np.ndarray) -> np.ndarray:
        inside = np.clip(scores.astype(np.float64), 1e-6, 1 - 1e-6)
        return np.log(inside / (1 - inside)).astype(np.float32)

    return replace(
        examples,
        positive_scores=logits(examples.positive_scores),
        negative_scores=logits(examples.negative_scores),
    )


def margin_mse(*, scale: float) -> Loss:
    """Return MarginMSE: the student's margin of each negative is the judge's, times `scale`."""

    def loss(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, judged: Judged
    ) -> torch.Tensor:
        owners = judged.owners
        of_positives = functional.cosine_similarity(anchors, positives)
        of_negatives = functional.cosine_similarity(anchors[owners], negatives)
        return losses.margin_mse(
            of_positives[owners] - of_negatives,
            judged.positive_scores[owners] - judged.negative_scores,
            scale,
        )

    return loss


def score_kl(*, temperature: float, judge_temperature: float) -> Loss:
    """Return score distillation over each row's positive and negatives."""

    def loss(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, judged: Judged
    ) -> torch.Tensor:
        owners, rows = judged.owners, len(anchors)
        counts = torch.bincount(owners, minlength=rows)
        starts = torch.cumsum(counts, 0) - counts
        places = 1 + torch.arange(len(owners), device=owners.device) - starts[owners]
        width = 1 + int(counts.max())

        def table(of_positives: torch.Tensor, of_negatives: torch.Tensor) -> torch.Tensor:
            empty = of_positives.new_zeros(rows, width - 1)
            whole = torch.cat([of_positives[:, None], empty], dim=1)
            return whole.index_put((owners, places), of_negatives)

        student = table(
            functional.cosine_similarity(anchors, positives),
            functional.cosine_similarity(anchors[owners], negatives),
        )
        judge = table(judged.positive_scores, judged.negative_scores)
        candidates = torch.arange(width, device=owners.device) <= counts[:, None]
        return losses.score_kl(student, judge, candidates, temperature, judge_temperature)

    return loss


def nested(loss: Loss, dimensions: Sequence[int]) -> Loss:
    """Return the sum of a loss over the first d numbers of the vectors; see losses.matryoshka."""
    if not dimensions:
        return loss

    def summed(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, judged: Judged
    ) -> torch.Tensor:
        return losses.matryoshka(
            lambda *cut: loss(*cut, judged), (anchors, positives, negatives), dimensions
        )

    return summed


class ContrastiveTask:
    """Examples as `loop.train` wants a task."""

    def __init__(
        self,
        encoder: PackedEncoder,
        examples: Examples,
        tokens: TokenStore,
        loss: Loss,
        evaluate: Callable[[], dict[str, float]],
        *,
        weight_by: Literal["rows", "negatives"] = "rows",
        mix: Mix = "proportional",
        distinct: bool = True,
        tokens_per_batch: int,
        rows_per_batch: int,
        window_batches: int = 16,
        cached_tokens: int = 0,
        seed: int,
    ) -> None:
        """Join examples and tokens.

        Args:
            encoder: the student.
            examples: what to train on.
            tokens: of `training_examples.texts`.
            loss: over a batch.
            evaluate: held-out figures.
            weight_by: what the loss is a mean over.
            mix: see `batches.plan_epoch`.
            distinct: whether a text may stand in a batch only once; for in-batch negatives.
            tokens_per_batch: bound on a batch's tokens.
            rows_per_batch: bound on a batch's rows.
            window_batches: of rows that are sorted by length together.
            cached_tokens: tokens of one pass through the student; a batch of more goes through it
                twice, in passes of that size (see `cached_loss`). 0 = one pass for the whole batch.
            seed: of the batches' order.

        Raises:
            ValueError: the tokens are not those of the examples' texts.
        """
        if len(tokens) != len(examples.texts) or mix not in get_args(Mix):
            raise ValueError(f"{len(tokens)} of {len(examples.texts)} texts tokenised, mix {mix!r}")
        self.model = encoder.model
        self.encoder, self.examples, self.tokens = encoder, examples, tokens
        self.objective, self.evaluate = loss, evaluate
        self.weight_by, self.cached_tokens = weight_by, cached_tokens
        lengths = examples.lengths(tokens.lengths)
        keys = examples.row_keys() if distinct else []
        rules = {"tokens_per_batch": tokens_per_batch, "rows_per_batch": rows_per_batch}
        rules |= {"window_batches": window_batches, "seed": seed, "distinct": distinct, "mix": mix}
        self.plan = lru_cache(maxsize=2)(
            lambda epoch: plan_epoch(keys, lengths, examples.sources, **rules, epoch=epoch)
        )

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of one epoch, arrays of row numbers."""
        return self.plan(epoch).batches

    def describe(self) -> dict[str, object]:
        """Say and return what the first epoch holds: batches, rows trained on and not, by source.

        Returns:
            rows, batches, trained, unplaced and left_out (see `batches.Epoch`).
        """
        plan, count = self.plan(0), self.examples.rows_per_source
        if len(plan.unplaced) or len(plan.left_out):
            logger.info(
                "%s of %s rows are in no batch of the first epoch: %s share a text with too many "
                "others, or are longer than TOKENS_PER_BATCH; %s are of larger sources than the "
                "smallest",
                f"{len(plan.unplaced) + len(plan.left_out):,}",
                f"{len(self.examples):,}",
                f"{len(plan.unplaced):,}",
                f"{len(plan.left_out):,}",
            )
        return {
            "rows": count(),
            "batches": len(plan.batches),
            "trained": count(np.concatenate([np.zeros(0, dtype=np.int64), *plan.batches])),
            "unplaced": count(plan.unplaced),
            "left_out": count(plan.left_out),
        }

    def weight(self, batch: np.ndarray) -> float:
        """Return the number of rows, or of negatives."""
        if self.weight_by == "rows":
            return float(len(batch))
        return float(len(self.examples.negative_places(batch)[0]))

    def loss(self, batch: np.ndarray) -> tuple[torch.Tensor, int]:
        """Return the objective over the batch, and the tokens of its distinct texts."""
        examples = self.examples
        places, owners = examples.negative_places(batch)
        of_rows = (examples.anchors[batch], examples.positives[batch], examples.negatives[places])
        texts, back = np.unique(np.concatenate(of_rows), return_inverse=True)
        # By length: attention on the CPU runs once per stretch of equal ones.
        order = np.argsort(self.tokens.lengths[texts], kind="stable")
        back = np.argsort(order)[back]
        device = self.model.device
        judged = Judged(
            torch.from_numpy(owners).to(device),
            torch.from_numpy(examples.positive_scores[batch]).to(device),
            torch.from_numpy(examples.negative_scores[places]).to(device),
        )
        sizes = [len(part) for part in of_rows]

        def value(vectors: torch.Tensor) -> torch.Tensor:
            stacks = vectors[torch.from_numpy(back).to(device)].split(sizes)
            return self.objective(*stacks, judged)

        sequences = [self.tokens[text] for text in texts[order]]
        tokens = sum(map(len, sequences))
        if self.cached_tokens and tokens > self.cached_tokens:
            return cached_loss(self.encoder, sequences, value, self.cached_tokens), tokens
        return value(self.encoder.pooled(pack(sequences))), tokens


def cached_loss(
    encoder: PackedEncoder,
    sequences: Sequence[np.ndarray],
    loss: Callable[[torch.Tensor], torch.Tensor],
    tokens: int,
) -> torch.Tensor:
    """Return a loss over many texts whose backward pass holds only a few of them at a time.

    The texts are encoded in passes of `tokens` tokens without a graph; the loss's gradient with
    respect to their vectors is taken and kept. Calling `backward` on the result encodes each pass
    again, with a graph, and sends its part of that gradient through it (GradCache: Gao et al.,
    arXiv 2101.06983). Value and gradient are those of one pass; the student must be free of
    dropout, as ours are, or the two encodings would differ.

    Args:
        encoder: the student.
        sequences: token ids of the texts.
        loss: of their vectors `(texts, hidden_size)`.
        tokens: of one pass.
    """
    lengths = np.asarray([len(sequence) for sequence in sequences])
    parts = cut_by_tokens(np.arange(len(lengths)), lengths, tokens, len(lengths))
    packs = [pack([sequences[row] for row in part]) for part in parts]
    with torch.no_grad():
        vectors = torch.cat([encoder.pooled(packed) for packed in packs])
    vectors.requires_grad_()
    value = loss(vectors)
    (wanted,) = torch.autograd.grad(value, vectors)
    result = value.detach().requires_grad_()

    def encode_again(gradient: torch.Tensor) -> None:
        with torch.enable_grad():
            for part, packed in zip(parts, packs, strict=True):
                encoder.pooled(packed).backward(gradient * wanted[part[0] : part[-1] + 1])

    result.register_hook(encode_again)
    return result
