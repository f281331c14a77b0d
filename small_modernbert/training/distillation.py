"""Distillation into a student from stored vectors: batches, losses, held-out measures."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import ModernBertModel

from small_modernbert.data.evaluation_sets import RetrievalSet
from small_modernbert.data.token_store import TokenStore, tokenise
from small_modernbert.evaluation.metrics import collapse, retrieval_metrics
from small_modernbert.models import attention, forward
from small_modernbert.models.packing import PackedBatch, cls_pool, cut_by_tokens, mean_pool, pack
from small_modernbert.models.packing import plan_batches as plan
from small_modernbert.models.precision import DTYPES, autocast
from small_modernbert.training import losses

logger = logging.getLogger(__name__)
# A trained embedding model spreads over dozens of directions; below these it says nothing.
COLLAPSED_COSINE = 0.9
COLLAPSED_RANK = 4.0


@dataclass
class PackedEncoder:
    """A student that turns token ids into pooled vectors, packed, without padding.

    Attributes:
        model: the bare ModernBERT.
        pooling: "mean" or "cls".
        precision: "fp32" or "bf16" for the matrix products.
        tokens_per_batch: of an inference batch; 0 = as many as suit the device.
        compiled: see compiling.settle.
    """

    model: ModernBertModel
    pooling: Literal["mean", "cls"] = "mean"
    precision: str = "fp32"
    tokens_per_batch: int = 0
    compiled: bool = False

    def __post_init__(self) -> None:
        attention.use_packed_attention(self.model)
        if not self.tokens_per_batch:
            # A CPU is fastest while a batch's activations stay in its cache, a GPU when it is full.
            self.tokens_per_batch = 2_048 if self.model.device.type == "cpu" else 65_536

    def pooled(self, batch: PackedBatch) -> torch.Tensor:
        """Return `(sequences, hidden_size)` fp32, not normalised; differentiable."""
        device = self.model.device
        batch = batch.to(device)
        if device.type == "cpu" and forward.supports(self.model):
            hidden = forward.hidden_states(
                self.model, batch, DTYPES[self.precision], compiled=self.compiled
            )
        else:
            with autocast(self.precision, device):
                hidden = attention.forward_packed(self.model, batch).last_hidden_state
        return (mean_pool if self.pooling == "mean" else cls_pool)(hidden, batch)

    @torch.inference_mode()
    def encode(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Encode token ids into `(sequences, hidden_size)` float32 unit vectors, in order."""
        lengths = np.asarray([len(sequence) for sequence in sequences])
        order = np.argsort(lengths, kind="stable")
        result = np.empty((len(order), self.model.config.hidden_size), dtype=np.float32)
        self.model.eval()
        for rows in cut_by_tokens(order, lengths[order], self.tokens_per_batch, len(order)):
            vectors = self.pooled(pack([sequences[row] for row in rows]))
            result[rows] = nn.functional.normalize(vectors).cpu().numpy()
        return result

    def encode_texts(self, texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """Encode texts; see `encode`."""
        return self.encode(list(tokenise(texts, tokenizer)))


def loss_function(
    objective: Literal["mse", "cosine", "kl"], temperature: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of an objective as a function of (student, teacher) vectors."""
    if objective == "kl":

        def ranking(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            # A window's last batch can hold one or two texts: there is nothing to rank in it.
            if len(student) < losses.FEWEST_ROWS:
                return 0.0 * student.sum()
            return losses.kl(student, teacher, temperature)

        return ranking
    if objective == "mse":
        # Student and reduced teacher are saved with a Normalize module: what they give is compared.
        # Without it a fresh student spends its steps on coming down from a length of 16 to 1.
        return lambda student, teacher: losses.mse(nn.functional.normalize(student), teacher)
    return losses.cosine


class DistillationTask:
    """Stored teacher vectors and tokenised texts, as `loop.train` wants a task."""

    def __init__(
        self,
        encoder: PackedEncoder,
        tokens: TokenStore,
        vectors: np.ndarray,
        objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        evaluate: Callable[[], dict[str, float]],
        *,
        tokens_per_batch: int,
        rows_per_batch: int,
        seed: int,
    ) -> None:
        """Join tokens and vectors row by row.

        Args:
            encoder: the student.
            tokens: tokens of each text.
            vectors: `(texts, hidden_size)` float16, the teacher's, memory-mapped.
            objective: from `loss_function`.
            evaluate: held-out figures.
            tokens_per_batch: bound on a batch's tokens.
            rows_per_batch: bound on a batch's texts.
            seed: of the batches' order.

        Raises:
            ValueError: the numbers of texts and vectors differ.
        """
        if len(tokens) != len(vectors):
            raise ValueError(f"{len(tokens)} texts for {len(vectors)} vectors")
        self.model = encoder.model
        self.encoder, self.tokens, self.vectors = encoder, tokens, vectors
        self.objective, self.evaluate = objective, evaluate
        lengths = tokens.lengths

        @lru_cache(maxsize=2)
        def epoch_batches(epoch: int) -> list[np.ndarray]:
            return plan(
                lengths,
                tokens_per_batch=tokens_per_batch,
                rows_per_batch=rows_per_batch,
                window_batches=64,
                seed=seed,
                epoch=epoch,
            )

        self.epoch = epoch_batches

    def weight(self, batch: np.ndarray) -> float:
        """Return the number of texts."""
        return float(len(batch))

    def loss(self, batch: np.ndarray) -> tuple[torch.Tensor, int]:
        """Return the objective over the batch's texts, and its tokens."""
        packed = pack([self.tokens[row] for row in batch])
        student = self.encoder.pooled(packed)
        teacher = torch.from_numpy(self.vectors[batch].astype(np.float32)).to(student.device)
        return self.objective(student, teacher), packed.tokens


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
        figures.update(collapse(own))
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
        scores.append(retrieval_metrics(queries, documents, one)["ndcg@10"])
        figures[f"{one.name}_ndcg@10"] = scores[-1]
    if scores:
        figures["retrieval_ndcg@10"] = float(np.mean(scores))
    return figures
