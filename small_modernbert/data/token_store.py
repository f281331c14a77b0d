"""Texts tokenised once: token ids in one flat file on disk, memory-mapped, with their offsets."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from small_modernbert.runs import storage
from small_modernbert.runs.disk_faults import OTHER_DISK
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage

TEXTS_PER_CALL = 2048
READY = "tokens.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenStore:
    """Token ids of many texts.

    Attributes:
        ids: `(tokens,)` int32, memory-mapped.
        offsets: `(texts + 1,)` int64; text i is `ids[offsets[i]:offsets[i + 1]]`.
        cut: texts that were longer than the tokenizer keeps.
    """

    ids: np.ndarray
    offsets: np.ndarray
    cut: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, `(texts,)` int64, special tokens included."""
        return np.diff(self.offsets)

    def head(self, rows: int) -> "TokenStore":
        """Return the first `rows` texts."""
        return TokenStore(self.ids, self.offsets[: rows + 1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


def tokenise(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield each text's token ids, int32, special tokens included."""
    for ids, _ in encode(texts, tokenizer):
        yield ids


def encode(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield each text's token ids, and whether it is longer than they are."""
    for group in _groups(texts):
        for encoding in tokenizer.encode_batch_fast(group):
            yield np.asarray(encoding.ids, dtype=np.int32), bool(encoding.overflowing)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while group := [text for _, text in zip(range(TEXTS_PER_CALL), iterator, strict=False)]:
        yield group


def store_splits(
    stage: Stage, name: str, texts: Callable[[str], Iterable[str]], tokenizer: Tokenizer, *more: str
) -> dict[str, TokenStore]:
    """Tokenise an input of a stage, once for all the stages of its recipe.

    Args:
        stage: that needs the tokens.
        name: of the input.
        texts: split -> its texts.
        tokenizer: from `load_backend`; its own JSON, the length included, is part of the key.
        more: what else decides the texts.
    """
    with stage.shared(name, "tokens", tokenizer.to_str(), *more) as folder:
        return {
            split: store(texts(split), tokenizer, folder / split, "by the folder's name")
            for split in ("train", "held_out")
        }


def store(texts: Iterable[str], tokenizer: Tokenizer, folder: Path, key: str) -> TokenStore:
    """Tokenise into `folder`, or open what an equal call left there.

    Args:
        texts: read once, in order.
        tokenizer: from `load_backend`.
        folder: the cache; rewritten when it holds another key.
        key: fingerprint of texts and tokenizer; equal keys, equal tokens.
    """
    opened = _reopen(folder, key)
    if opened is None:
        storage.remove(folder)
        folder.mkdir(parents=True)
        offsets, number = [0], 0
        with (folder / "ids.int32").open("wb") as stream:
            for ids, is_cut in encode(texts, tokenizer):
                stream.write(ids.tobytes())
                offsets.append(offsets[-1] + len(ids))
                number += is_cut
        np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
        storage.fsync_tree(folder)
        facts = {"key": key, "texts": len(offsets) - 1, "tokens": offsets[-1], "cut": number}
        storage.write_json(folder / READY, facts)
        opened = _reopen(folder, key)
    if opened is None:
        raise UserError(f"{folder} does not read back as it was written; {OTHER_DISK}")
    return opened


def _reopen(folder: Path, key: str) -> TokenStore | None:
    """Open a cache with this key; None if there is none, or it is not what was written."""
    ready = folder / READY
    if not ready.exists():
        return None
    try:
        facts = storage.read_json(ready, f"remove {folder}")
    except UserError as error:
        logger.warning("%s, and is made again", error)
        return None
    if not isinstance(facts, dict) or facts.get("key") != key:
        return None
    path = folder / "ids.int32"
    try:
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        size = path.stat().st_size
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be used (%s) and is made again", folder, error)
        return None
    plausible = (
        offsets.dtype == np.int64
        and type(facts.get("texts")) is type(facts.get("cut")) is int
        and offsets.shape == (facts["texts"] + 1,)
        and offsets[0] == 0
        and 4 * int(offsets[-1]) == size
        and (np.diff(offsets) >= 0).all()
    )
    if not plausible:
        logger.warning("%s cannot be used (its offsets are none) and is made again", folder)
        return None
    if size == 0:
        return TokenStore(np.zeros(0, dtype=np.int32), offsets)
    return TokenStore(np.memmap(path, dtype=np.int32, mode="r"), offsets, facts["cut"])
