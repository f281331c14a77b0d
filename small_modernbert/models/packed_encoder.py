"""A student as it is trained: token ids to pooled vectors, packed, differentiable."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import ModernBertModel

from small_modernbert.data.token_store import tokenise
from small_modernbert.models import attention, forward
from small_modernbert.models.packing import PackedBatch, cls_pool, cut_by_tokens, mean_pool, pack
from small_modernbert.models.precision import DTYPES, autocast


@dataclass
class PackedEncoder:
    """A student that turns token ids into pooled vectors, packed, without padding.

    Attributes:
        model: the bare ModernBERT.
        pooling: "mean" or "cls".
        precision: "fp32" or "bf16" for the matrix products.
        tokens_per_batch: of an inference batch; 0 = as many as suit the device.
    """

    model: ModernBertModel
    pooling: Literal["mean", "cls"] = "mean"
    precision: str = "fp32"
    tokens_per_batch: int = 0

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
            hidden = forward.hidden_states(self.model, batch, DTYPES[self.precision])
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
