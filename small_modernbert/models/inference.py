"""Engines: how a teacher's forward pass runs. Same vectors as the model's own, sooner.

On a CPU a BERT or ModernBERT teacher runs packed: no padding, no mask, one matrix product per layer
over all tokens of a batch, in bf16 where that is faster. Any other teacher, and any GPU, runs the
model's own padded pass over batches of near-equal lengths. bf16 is taken only if it gives the fp32
vectors back on real texts (`FIDELITY`).
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from torch.nn import functional
from transformers import ModernBertModel

from small_modernbert.models import bert_forward, forward
from small_modernbert.models.matrix_products import prepare
from small_modernbert.models.packing import PackedBatch, cls_pool, cut_by_tokens, mean_pool, pack
from small_modernbert.models.precision import DTYPES, autocast
from small_modernbert.models.teachers import token_ids

FIDELITY = 0.9995  # mean cosine of bf16 vectors to fp32 ones, below which fp32 is kept
PROBES = 64  # texts that the fidelity is measured on
logger = logging.getLogger(__name__)
Pass = Callable[[Sequence[np.ndarray]], torch.Tensor]


class Engine:
    """A teacher ready to encode token ids.

    Attributes:
        precision: "fp32", "bf16" or "fp16".
        packed: whether batches are packed; else they are padded.
        fidelity: mean cosine to fp32 vectors on the probes; None where fp32 runs.
    """

    def __init__(self, teacher: SentenceTransformer, precision: str) -> None:
        """Prepare a teacher; see `load_engine`."""
        self.teacher, self.precision, self.fidelity = teacher, precision, None
        hidden_states = _packed_pass(teacher, precision)
        self.packed = hidden_states is not None
        self._run: Pass = self._padded
        if hidden_states is not None:
            self._run = _pool_packed(teacher, hidden_states)

    @torch.inference_mode()
    def encode(
        self,
        sequences: Sequence[Sequence[int] | np.ndarray],
        *,
        tokens_per_batch: int,
        prompt_tokens: int = 0,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> np.ndarray:
        """Encode token ids in batches of near-equal lengths and about `tokens_per_batch` tokens.

        Args:
            sequences: token ids of each text, special tokens included.
            tokens_per_batch: bound on a batch's tokens, padding included.
            prompt_tokens: leading tokens of each that are not pooled, see `prompts.prompt_tokens`.
            advance: called with the number of rows done after each batch.

        Returns:
            `(texts, dimension)` float32 as the teacher's modules give them, in the order given.
        """
        ids = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        lengths = np.asarray([len(sequence) for sequence in ids], dtype=np.int64)
        # Longest first: too large a budget shows at once instead of at the end.
        order = np.argsort(-lengths, kind="stable")
        result = np.empty((len(ids), self.teacher.get_embedding_dimension()), dtype=np.float32)
        packed = self.packed and not prompt_tokens  # the packed pass pools all tokens
        for rows in _cut(order, lengths[order], tokens_per_batch, packed=packed):
            batch = [ids[row] for row in rows]
            vectors = self._run(batch) if packed else self._padded(batch, prompt_tokens)
            result[rows] = vectors.float().cpu().numpy()
            advance(len(rows))
        return result

    def _padded(self, sequences: Sequence[np.ndarray], prompt_tokens: int = 0) -> torch.Tensor:
        teacher = self.teacher
        width = max(map(len, sequences))
        ids = np.full((len(sequences), width), teacher.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        features = {
            "input_ids": torch.from_numpy(ids).to(teacher.device),
            "attention_mask": torch.from_numpy(mask).to(teacher.device),
        }
        if prompt_tokens:
            features["prompt_length"] = prompt_tokens
        with autocast(self.precision, teacher.device):
            return teacher(features)["sentence_embedding"]


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int, *, packed: bool) -> list[np.ndarray]:
    if packed:
        return cut_by_tokens(order, lengths, budget, max(len(order), 1))
    batches, begin = [], 0
    while begin < len(order):
        # A padded batch's size is its first, longest length times its rows.
        rows = max(1, budget // max(int(lengths[begin]), 1))
        batches.append(order[begin : begin + rows])
        begin += rows
    return batches


def load_engine(
    teacher: SentenceTransformer,
    precision: str,
    probes: Sequence[Sequence[int] | np.ndarray] = (),
) -> Engine:
    """Prepare a teacher for encoding.

    Args:
        teacher: in evaluation mode, on its device.
        precision: "fp32", "bf16" or "fp16" (see `precision.decide`).
        probes: token ids of real texts; the first `PROBES` decide whether half is good enough.
    """
    engine = Engine(teacher, precision)
    if precision == "fp32" or not len(probes):
        return engine
    exact, some = Engine(teacher, "fp32"), list(probes)[:PROBES]
    wanted, given = (each.encode(some, tokens_per_batch=2_048) for each in (exact, engine))
    engine.fidelity = float(
        functional.cosine_similarity(torch.from_numpy(wanted), torch.from_numpy(given)).mean()
    )
    if engine.fidelity >= FIDELITY:
        return engine
    logger.warning(
        "%s gives vectors of mean cosine %.5f to the teacher's own, less than %g: fp32 it is",
        precision,
        engine.fidelity,
        FIDELITY,
    )
    return exact


def encode_texts(
    teacher: SentenceTransformer, texts: Sequence[str], *, tokens_per_batch: int
) -> np.ndarray:
    """Encode texts in fp32; see `Engine.encode`."""
    engine = load_engine(teacher, "fp32")
    return engine.encode(token_ids(teacher, texts), tokens_per_batch=tokens_per_batch)


def _packed_pass(
    teacher: SentenceTransformer, precision: str
) -> Callable[[PackedBatch], torch.Tensor] | None:
    """Return what maps a packed batch to `(1, T, hidden_size)`; None where there is none."""
    modules = list(teacher)
    poolings = ("mean", "cls", ("mean",), ("cls",), ["mean"], ["cls"])
    if (
        teacher.device.type != "cpu"
        or len(modules) < 2
        or type(modules[0]).__name__ != "Transformer"
        or type(modules[1]).__name__ != "Pooling"
        or modules[1].pooling_mode not in poolings
    ):
        return None
    model = modules[0].model
    if forward.supports(model):
        return _packed_modernbert(model, precision)
    if bert_forward.supports(model):
        dtype = DTYPES[precision]
        products = bert_forward.layer_products(model, partial(prepare, precision=precision))
        return partial(bert_forward.hidden_states, model, dtype=dtype, products=products)
    return None


def _packed_modernbert(
    model: ModernBertModel, precision: str
) -> Callable[[PackedBatch], torch.Tensor]:
    dtype = DTYPES[precision]
    if precision == "fp32":
        return lambda batch: forward.hidden_states(model, batch, dtype)
    products = {
        layer: prepare(layer.weight, layer.bias, precision)
        for layer in model.layers.modules()
        if isinstance(layer, nn.Linear)
    }
    return lambda batch: forward.hidden_states(
        model, batch, dtype, lambda layer, values: products[layer](values)
    )


def _pool_packed(
    teacher: SentenceTransformer, hidden_states: Callable[[PackedBatch], torch.Tensor]
) -> Pass:
    _, pooling, *rest = teacher
    pool = cls_pool if "cls" in pooling.pooling_mode else mean_pool

    def run(sequences: Sequence[np.ndarray]) -> torch.Tensor:
        batch = pack(sequences)
        features = {"sentence_embedding": pool(hidden_states(batch), batch)}
        for module in rest:
            features = module(features)
        return features["sentence_embedding"]

    return run
