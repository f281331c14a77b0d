"""A student as it is trained: token ids to pooled vectors, packed, differentiable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import ModernBertModel, PreTrainedModel

from small_modernbert.data.token_store import tokenise
from small_modernbert.models import attention, bert_forward, forward
from small_modernbert.models.packing import PackedBatch, cls_pool, cut_by_tokens, mean_pool, pack
from small_modernbert.models.precision import DTYPES, autocast
from small_modernbert.runs import processes


class WithHead(nn.Module):
    """A transformer and the modules after pooling, trained as one."""

    def __init__(self, transformer: PreTrainedModel, head: nn.Sequential) -> None:
        super().__init__()
        self.transformer, self.head = transformer, head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device


@dataclass
class PackedEncoder:
    """A student that turns token ids into pooled vectors.

    ModernBERT and BERT run packed, without padding; any other transformer runs its own padded pass.
    Dropout is off, in training too: an interrupted run must be able to repeat a step exactly.

    Attributes:
        transformer: the bare model.
        pooling: "mean" or "cls".
        precision: "fp32" or "bf16" for the matrix products.
        tokens_per_batch: of an inference batch; 0 = as many as suit the device.
        head: sentence-transformers modules after pooling, without the last normalisation.
        model: what is trained: the transformer, with the head where that has weights.
    """

    transformer: PreTrainedModel
    pooling: Literal["mean", "cls"] = "mean"
    precision: str = "fp32"
    tokens_per_batch: int = 0
    head: nn.Sequential = field(default_factory=nn.Sequential)
    model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        trained = any(True for _ in self.head.parameters())
        self.model = WithHead(self.transformer, self.head) if trained else self.transformer
        self.packs = isinstance(self.transformer, ModernBertModel) or bert_forward.supports(
            self.transformer
        )
        if self.packs:
            attention.use_packed_attention(self.transformer)
        if not self.tokens_per_batch:
            # A CPU is fastest while a batch's activations stay in its cache, a GPU when it is full.
            self.tokens_per_batch = 2_048 if self.device.type == "cpu" else 65_536

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return output_width(self.transformer, self.head)

    def pooled(self, batch: PackedBatch) -> torch.Tensor:
        """Return `(sequences, width)` fp32, not normalised; differentiable."""
        batch = batch.to(self.device)
        hidden = self.hidden_states(batch)
        vectors = (mean_pool if self.pooling == "mean" else cls_pool)(hidden, batch)
        self.head.eval()  # it is no part of `model` where it has no weights; it may hold a Dropout
        return self.head({"sentence_embedding": vectors})["sentence_embedding"]

    def hidden_states(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last hidden states `(1, T, hidden_size)` of a batch on the device."""
        model, dtype = self.transformer, DTYPES[self.precision]
        if self.device.type == "cpu":
            if forward.supports(model):
                return forward.hidden_states(model, batch, dtype)
            if bert_forward.supports(model):
                return bert_forward.hidden_states(model, batch, dtype)
        self.model.eval()
        with autocast(self.precision, self.device):
            if self.packs:
                return attention.forward_packed(model, batch).last_hidden_state
            return padded_hidden_states(model, batch)

    @torch.inference_mode()
    def encode(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Encode token ids into `(sequences, width)` float32 unit vectors, in order.

        Inside `processes.sharing()` the ranks share the batches, and each has all vectors.
        """
        result = np.zeros((len(sequences), self.width), dtype=np.float32)
        lengths = np.asarray([len(sequence) for sequence in sequences])
        order = np.argsort(lengths, kind="stable")
        self.model.eval()
        batches = cut_by_tokens(order, lengths[order], self.tokens_per_batch, len(order))
        for rows in processes.share(batches):
            vectors = self.pooled(pack([sequences[row] for row in rows]))
            result[rows] = nn.functional.normalize(vectors).cpu().numpy()
        return processes.gather(torch.from_numpy(result)).numpy()

    def encode_texts(self, texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """Encode texts; see `encode`."""
        return self.encode(list(tokenise(texts, tokenizer)))


def padded_hidden_states(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Run a transformer's own padded pass over a packed batch; return `(1, T, hidden_size)`."""
    pieces = batch.input_ids[0].split(batch.lengths)
    ids = pad_sequence(pieces, batch_first=True, padding_value=model.config.pad_token_id or 0)
    lengths = torch.tensor(batch.lengths, device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return hidden[mask][None]


def output_width(transformer: PreTrainedModel, head: nn.Sequential) -> int:
    """Return the numbers in a vector after pooling and the head."""
    widths = [module.out_features for module in head if hasattr(module, "out_features")]
    return widths[-1] if widths else transformer.config.hidden_size
