"""Masked-language modelling over packed batches, with predictions at masked positions only."""

import functools
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

from small_modernbert.data.streamed_rows import StreamedRows
from small_modernbert.data.token_store import TokenStore
from small_modernbert.models import attention, forward
from small_modernbert.models.packing import PackedBatch, fill, pack, pack_into_bins
from small_modernbert.models.precision import DTYPES, autocast
from small_modernbert.runs import processes
from small_modernbert.runs.errors import UserError
from small_modernbert.training.cross_entropy import linear_cross_entropy
from small_modernbert.training.masking import IGNORED, mask_tokens
from small_modernbert.training.windows import Windows

logger = logging.getLogger(__name__)
HELD_OUT_EPOCH = 2**31  # masks of the held-out texts: one fixed draw that no training pass uses


class MaskedTask:
    """A corpus and a ModernBERT with its head, as `loop.train` wants a task."""

    def __init__(
        self,
        model: ModernBertForMaskedLM,
        tokenizer: PreTrainedTokenizerFast,
        train: TokenStore | StreamedRows,
        held_out: TokenStore,
        *,
        sequence_tokens: int,
        sequences_per_batch: int,
        probability: float,
        precision: str,
        seed: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Prepare batches of `sequences_per_batch` packed sequences of `sequence_tokens` each.

        `weights`, `(texts,)`, says how often each training text comes in a pass; None = once.
        """
        self.model, self.precision, self.seed = model, precision, seed
        self.train, self.held_out = train, held_out
        self.sequence_tokens, self.sequences_per_batch = sequence_tokens, sequences_per_batch
        self.probability = probability
        self.mask_id = tokenizer.mask_token_id
        self.special = np.asarray(sorted(tokenizer.all_special_ids))
        self.ordinary = np.setdiff1d(list(tokenizer.get_vocab().values()), self.special)
        attention.use_packed_attention(model)
        if isinstance(train, StreamedRows):
            pack_window = functools.partial(self._pack, train, weights=weights)
            self.epoch, self.close = Windows(train, seed, pack_window).epoch, train.close
        else:
            every = np.arange(len(train))
            self.epoch = functools.lru_cache(maxsize=2)(
                lambda epoch: self._pack(train, every, epoch, weights=weights)
            )
        self.held_out_batches = self._pack(held_out, np.arange(len(held_out)), HELD_OUT_EPOCH)

    def _pack(
        self,
        tokens: TokenStore | StreamedRows,
        rows: np.ndarray,
        epoch: int,
        window: int = 0,
        *,
        weights: np.ndarray | None = None,
    ) -> list[tuple[int, np.ndarray]]:
        """Pack a window's texts into sequences; return its batches: the epoch, rows of texts."""
        weights = None if weights is None else weights[rows]
        copies = draw(len(rows), weights, self.seed, epoch, window)
        copy, place = np.divmod(copies, max(len(rows), 1))
        drawn = rows[place] + copy * len(tokens)
        lengths = tokens.lengths[drawn % max(len(tokens), 1)]
        bins = pack_into_bins(
            lengths, self.sequence_tokens, seed=self.seed, epoch=epoch, window=window
        )
        self.fill = fill(bins, lengths, self.sequence_tokens)
        groups = [
            np.concatenate(bins[begin : begin + self.sequences_per_batch])
            for begin in range(0, len(bins), self.sequences_per_batch)
        ]
        # Equal lengths side by side: attention runs once per stretch of them.
        return [(epoch, drawn[rows[np.argsort(lengths[rows], kind="stable")]]) for rows in groups]

    def masked(self, tokens: TokenStore, batch: tuple[int, np.ndarray]) -> tuple[PackedBatch, ...]:
        """Return the packed batch with tokens hidden, and the labels `(T,)`."""
        epoch, rows = batch
        packed = pack([tokens[row % len(tokens)] for row in rows], rows)
        ids, labels = mask_tokens(
            packed.input_ids[0].numpy(),
            rows[packed.sequence_of_token.numpy()],
            packed.position_ids[0].numpy(),
            probability=self.probability,
            mask_id=self.mask_id,
            special=self.special,
            ordinary=self.ordinary,
            seed=self.seed,
            epoch=epoch,
        )
        packed.input_ids.copy_(torch.from_numpy(ids)[None])
        return packed, torch.from_numpy(labels)

    def chosen(self, packed: PackedBatch, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the decoder reads at the masked positions, and their labels.

        Returns:
            `(masked, hidden_size)` fp32 and `(masked,)`.
        """
        device = self.model.device
        packed, labels = packed.to(device), labels.to(device)
        bare = self.model.model
        if device.type == "cpu" and forward.supports(bare):
            hidden = forward.hidden_states(bare, packed, DTYPES[self.precision])
        else:
            with autocast(self.precision, device):
                hidden = attention.forward_packed(bare, packed).last_hidden_state
        places = (labels != IGNORED).nonzero().squeeze(1)
        with autocast(self.precision, device):
            return self.model.head(hidden[0].index_select(0, places)).float(), labels[places]

    def weight(self, batch: tuple[int, np.ndarray]) -> float:
        """Return the batch's tokens, to which its masked ones are proportional."""
        return float(self.train.lengths[batch[1] % len(self.train)].sum())

    def loss(self, batch: tuple[int, np.ndarray]) -> tuple[torch.Tensor, int]:
        """Return the mean cross-entropy at the masked positions, and the batch's tokens."""
        packed, labels = self.masked(self.train, batch)
        hidden, wanted = self.chosen(packed, labels)
        decoder = self.model.decoder
        loss = linear_cross_entropy(
            hidden, decoder.weight, decoder.bias, wanted, DTYPES[self.precision]
        )
        # Not the mean of torch: a small last batch may have no masked token, and 0 / 0 is NaN.
        loss = loss / max(len(wanted), 1)
        return loss, packed.tokens

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Return held-out loss (nats per masked token) and masked accuracy; {} without texts."""
        if not self.held_out_batches:
            return {}
        self.model.eval()
        loss, right, count = 0.0, 0, 0
        for batch in processes.share(self.held_out_batches):
            hidden, wanted = self.chosen(*self.masked(self.held_out, batch))
            logits = self.model.decoder(hidden)
            loss += float(functional.cross_entropy(logits, wanted, reduction="sum"))
            right += int((logits.argmax(dim=1) == wanted).sum())
            count += len(wanted)
        sums = torch.tensor([loss, right, count], dtype=torch.float64)
        loss, right, count = processes.gather(sums).tolist()
        count = max(count, 1)
        return {"held_out_loss": loss / count, "masked_accuracy": right / count}


def check_extension(lengths: np.ndarray, weights: np.ndarray | None, before: int, now: int) -> None:
    """Refuse to teach a student longer sequences with texts that are none.

    A packed sequence is many texts, each from position 0: without a text longer than those that the
    student has read, no position beyond them ever occurs.

    Args:
        lengths: `(texts,)` tokens of each training text, cut at `now`.
        weights: `(texts,)` how often it comes in a pass; None = once.
        before: tokens that the student takes.
        now: those of a sequence, and what it shall take.

    Raises:
        UserError: no text that is trained on is longer than `before`, and `now` is.
    """
    if now <= before:
        return
    longer = lengths > before
    if weights is not None:
        longer &= weights > 0
    if not longer.any():
        raise UserError(
            f"SEQUENCE_TOKENS is {now:,} and the student takes {before:,}, but no training text is "
            f"longer than that (the longest has {int(lengths.max(initial=0)):,}): no position "
            "beyond would be learnt. Cut a corpus for it: python mlm/create_dataset.py --variant "
            f"long --max-tokens {now}, and give it: --corpus mlm/create_dataset@long; or keep "
            f"--sequence-tokens {before}"
        )
    logger.info(
        "%s of %s training texts are longer than the %s tokens that the student has read so far",
        *(f"{int(longer.sum()):,}", f"{len(lengths):,}", f"{before:,}"),
    )


def mixture_weights(mixture: Sequence[str], sources: Iterable[str]) -> np.ndarray:
    """Return how often each text comes in a pass, `(texts,)`.

    Args:
        mixture: "source=weight" each, weight at least 0; sources that are not named count once.
        sources: the source of each text.

    Raises:
        UserError: an entry does not read, or names a source that is not there.
    """
    chosen: dict[str, float] = {}
    for entry in mixture:
        name, _, text = entry.partition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < np.inf:
            raise UserError(f"MIXTURE: {entry!r} is not source=weight; write for example {name}=2")
        chosen[name] = weight
    known: dict[str, float] = {}
    weights = np.fromiter(
        (known.setdefault(source, chosen.get(source, 1.0)) for source in sources), float
    )
    for name in chosen:
        if name not in known:
            there = ", ".join(sorted(known))
            raise UserError(f"MIXTURE: the corpus has no source {name!r}; it has {there}")
    return weights


def draw(
    texts: int, weights: np.ndarray | None, seed: int, epoch: int, window: int = 0
) -> np.ndarray:
    """Return the texts of a pass, or of a window of it: text i's k-th copy is i + k * texts.

    A weight of 2.3 gives two copies and, in 3 passes of 10, a third. Copies have numbers of their
    own, so that they are masked differently.
    """
    if weights is None:
        return np.arange(texts)
    random = np.random.default_rng((seed, epoch, 1, window))
    copies = np.floor(weights).astype(int) + (random.random(texts) < weights % 1)
    return np.concatenate(
        [np.flatnonzero(copies > k) + k * texts for k in range(max(copies.max(initial=0), 1))]
    )
