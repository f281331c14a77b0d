"""The static start: a blank ModernBERT that already is a static embedding model.

A Model2Vec-style table (the teacher's vector of every vocabulary entry, Zipf-weighted;
github.com/MinishLab/model2vec) becomes the embedding, and the residual branches are turned down,
so that the mean of the token vectors comes out as if there were no layers. Training then starts
from a model that searches, and adds context to it.

LayerNorm stands in the way: it scales every token to the same length, and the weights (frequent
words short, rare words long) would be lost. So two of the student's dimensions balance each token:
they bring its mean to 0 and its variance to 1, LayerNorm then changes nothing, and the last norm's
gain is 0 there. They are the last two, those that carry least of the labels.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import ModernBertModel

from small_modernbert.data.token_store import TokenStore
from small_modernbert.models.packing import cut_by_tokens

BALANCE = 2  # dimensions given up for the balance
# Share of tokens that may exceed the common scale; they are shortened to fit instead.
OUTLIERS = 0.002
FIT_ROWS = 128  # texts per step of fitting


def zipf_weights(counts: np.ndarray) -> np.ndarray:
    """Return each token's weight, a / (a + p) with a = 1e-4: frequent tokens small, rare ones 1.

    Smooth inverse frequency (Arora et al., ICLR 2017), as Model2Vec uses it.

    Args:
        counts: `(vocabulary,)`, how often each token occurs; add-one smoothed here.
    """
    shares = (counts + 1) / (counts + 1).sum()
    return 1e-4 / (1e-4 + shares)


def fit_map(
    table: np.ndarray,
    weights: np.ndarray,
    tokens: TokenStore,
    vectors: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    special: np.ndarray,
    seed: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> np.ndarray:
    """Fit a linear map of the whole table, and one weight per token, to the labels.

    A token alone between [CLS] and [SEP] is not what it adds to a text. One square matrix mends
    most of that difference for all tokens at once, those that no text holds included, and has
    nothing to memorise texts with. Since pooling is linear, texts are pooled first and mapped then.

    Args:
        table: `(vocabulary, width)`, the teacher's vectors, not weighted.
        weights: `(vocabulary,)`, the weights to start from, positive.
        tokens: see `fit_table`; so are the others.
        vectors: `(texts, width)` float16, the teacher's.
        epochs: passes over the texts.
        learning_rate: of the map at its peak; the weights' is ten times that.
        special: ids of special tokens; their rows come out zero.
        seed: of the order.
        advance: called after each step.

    Returns:
        The weighted and mapped table, float32, with the mean row length of `table * weights`.
    """
    rows = torch.from_numpy(table.astype(np.float32))
    rows[torch.from_numpy(special.astype(np.int64))] = 0
    matrix = nn.Parameter(torch.eye(table.shape[1]))
    logarithms = nn.Parameter(torch.from_numpy(np.log(weights).astype(np.float32)))

    def encode(ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        weighted = {"mode": "sum", "per_sample_weights": logarithms[ids].exp()}
        return functional.embedding_bag(ids, rows, offsets, **weighted) @ matrix

    optimizer = torch.optim.Adam(
        [
            {"params": [matrix], "lr": learning_rate},
            {"params": [logarithms], "lr": learning_rate * 10.0},
        ]
    )
    _fit(optimizer, encode, _passes(tokens, vectors, epochs, seed), advance)
    fitted = (rows * logarithms.detach().exp()[:, None] @ matrix.detach()).numpy()
    length = np.linalg.norm(fitted, axis=1).mean()
    before = np.linalg.norm(rows.numpy() * weights[:, None], axis=1).mean()
    return (fitted * (before / max(length, 1e-12))).astype(np.float32)


def _passes(
    tokens: TokenStore, vectors: np.ndarray, epochs: int, seed: int
) -> Iterator[tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (share of the work done, token ids, bag offsets, labels) for each step."""
    random = np.random.default_rng(seed)
    lengths = tokens.lengths
    total, step = fit_steps(len(tokens), epochs), 0
    for _ in range(epochs):
        order = random.permutation(len(tokens))
        for rows in cut_by_tokens(order, lengths[order], 1 << 30, FIT_ROWS):
            ids = torch.from_numpy(np.concatenate([tokens[row] for row in rows]).astype(np.int64))
            offsets = torch.from_numpy(np.cumsum([0, *lengths[rows][:-1]]))
            yield step / total, ids, offsets, torch.from_numpy(vectors[rows].astype(np.float32))
            step += 1


def fit_steps(texts: int, epochs: int) -> int:
    """Return how many steps `epochs` passes of fitting take."""
    return epochs * math.ceil(texts / FIT_ROWS)


def fit_table(
    table: np.ndarray,
    tokens: TokenStore,
    vectors: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    special: np.ndarray,
    seed: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> np.ndarray:
    """Fit a table to the labels: the mean of a text's rows should point where the teacher points.

    A static model is linear in its table, so this costs seconds where a transformer's pass costs
    minutes (the idea of MinishLab's tokenlearn, with the cosine as its loss).

    Args:
        table: `(vocabulary, width)`, the start.
        tokens: the labelled texts.
        vectors: `(texts, width)` float16, the teacher's.
        epochs: passes over the texts.
        learning_rate: of Adam at its peak; it falls linearly to 0.
        special: ids of special tokens; their rows stay zero.
        seed: of the order.
        advance: called after each step.

    Returns:
        The fitted table, float32.
    """
    weight = nn.Parameter(torch.from_numpy(table.astype(np.float32)))
    optimizer = torch.optim.Adam([weight], lr=learning_rate, fused=True)
    skip = torch.from_numpy(special.astype(np.int64))

    def leave_special(rows: nn.Parameter) -> None:
        rows.grad[skip] = 0

    weight.register_post_accumulate_grad_hook(leave_special)

    def encode(ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        # The mean and the sum have one direction, and special tokens' rows are zero.
        return functional.embedding_bag(ids, weight, offsets, mode="sum")

    _fit(optimizer, encode, _passes(tokens, vectors, epochs, seed), advance)
    return weight.detach().numpy()


def _fit(
    optimizer: torch.optim.Optimizer,
    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    passes: Iterable[tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]],
    advance: Callable[[int], None],
) -> None:
    """Turn texts' vectors towards the teacher's, at rates that fall linearly to 0.

    Args:
        optimizer: with the rates at their peak.
        encode: token ids and offsets of a batch to `(texts, width)`.
        passes: from `_passes`.
        advance: called after each step.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    for share, ids, offsets, wanted in passes:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * (1 - share)
        loss = (1 - functional.cosine_similarity(encode(ids, offsets), wanted)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance(1)


def scale_to_fit(table: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Scale a table so that `balance` can complete its rows, shortening a few outliers.

    Args:
        table: `(vocabulary, width)`; its last two columns are dropped to zero.
        share: of a token's variance that its content may take.

    Returns:
        `(vocabulary, width)` float64 with zeros in the last two columns.
    """
    width = table.shape[1]
    content = table.astype(np.float64).copy()
    content[:, -BALANCE:] = 0
    energy, total = (content**2).sum(axis=1), content.sum(axis=1)
    # The balance needs 2 (width - energy) >= total^2 and, by choice, energy <= share * width.
    with np.errstate(divide="ignore"):
        largest = np.sqrt(
            np.minimum(share * width / energy, share * 2 * width / (2 * energy + total**2))
        )
    finite = np.isfinite(largest)
    scale = np.quantile(largest[finite], OUTLIERS) if finite.any() else 1.0
    return content * np.where(finite, np.minimum(largest, scale), 0.0)[:, None]


def balance(content: np.ndarray) -> np.ndarray:
    """Fill the last two columns so that each row has mean 0 and variance 1.

    Args:
        content: from `scale_to_fit`.

    Returns:
        `(vocabulary, width)` float32.
    """
    width = content.shape[1]
    energy, total = (content**2).sum(axis=1), content.sum(axis=1)
    root = np.sqrt(np.maximum(2 * (width - energy) - total**2, 0))
    result = content.copy()
    result[:, -2], result[:, -1] = (-total + root) / 2, (-total - root) / 2
    return result.astype(np.float32)


@torch.no_grad()
def start_static(student: ModernBertModel, content: np.ndarray, residual_scale: float) -> None:
    """Turn a blank student into the static model of a table, in place.

    Args:
        student: the blank student; its vocabulary may be padded beyond the table.
        content: `(tokens, hidden_size)`, from `scale_to_fit`.
        residual_scale: factor on the matrices that write to the residual stream; at 0 the student
            equals the static model exactly, and its gradients still reach those matrices.
    """
    table = student.embeddings.tok_embeddings.weight
    padded = np.zeros(table.shape, dtype=np.float64)
    padded[: len(content)] = content
    table.copy_(torch.from_numpy(balance(padded)))
    student.embeddings.norm.weight.fill_(1.0)
    student.final_norm.weight.fill_(1.0)
    student.final_norm.weight[-BALANCE:] = 0.0
    for layer in student.layers:
        layer.attn.Wo.weight.mul_(residual_scale)
        layer.mlp.Wo.weight.mul_(residual_scale)
