"""Duplicates: exact ones by a hash of the text, near ones by MinHash over shingles of tokens.

Both work on a row's fingerprint, never on its text, so that a corpus of any size is compared in
memory that grows by a few dozen bytes a row: see `near_duplicates`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from small_modernbert.data.keys import Keys, mix, tokens_of

SHINGLE_TOKENS = 3
# Token ids below this are packed into 60 bits of a shingle without loss.
_ID_BITS = 20
# A band's bucket is searched within this distance, and against its first row.
_WINDOW = 16
# At the threshold, this share of the near duplicates must meet in at least one band.
_RECALL = 0.99


def word_ids(text: str) -> list[int]:
    """Return a number for each word and sign of a text (see `keys.tokens_of`).

    As small as token ids, so that two words share one with a chance of one in a million.
    """
    return [
        int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) >> (64 - _ID_BITS)
        for word in tokens_of(text)
    ]


def exact_duplicates(keys: Keys) -> NDArray[np.bool_]:
    """Say of every row whether an earlier one has its key. 16 bytes a row while it runs."""
    duplicate = np.ones(len(keys), dtype=np.bool_)
    duplicate[np.unique(keys, return_index=True)[1]] = False
    return duplicate


@dataclasses.dataclass(frozen=True)
class MinHash:
    """How texts are fingerprinted.

    Attributes:
        permutations: values in a signature; the error of an estimated Jaccard index is about
            sqrt(j (1 - j) / permutations): 0.05 at 0.8 with 64.
        threshold: from this Jaccard index of their shingles on, two texts are near duplicates.
        seed: of the permutations.
    """

    permutations: int
    threshold: float
    seed: int

    @property
    def band_rows(self) -> int:
        """Signature values in a band: as many as still find 99 % of the pairs at the threshold."""
        best = 1
        for rows in range(1, self.permutations + 1):
            missed = (1 - self.threshold**rows) ** (self.permutations // rows)
            if 1 - missed >= _RECALL:
                best = rows
        return best

    @property
    def bands(self) -> int:
        """Number of bands: two texts are compared if they agree in any one of them."""
        return self.permutations // self.band_rows

    def signatures(self, token_ids: list[list[int]]) -> NDArray[np.uint16]:
        """Return (texts, permutations) signatures.

        Shingles are runs of `SHINGLE_TOKENS` token ids; a text shorter than that is one shingle.
        Each value keeps the lowest 16 of its 32 bits: of two that differ, one in 65,536 then
        looks equal.
        """
        from rensa import RMinHash

        lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
        # Padding on the right gives every text at least one shingle; none spans two texts.
        padded = np.maximum(lengths, SHINGLE_TOKENS)
        ends = np.cumsum(padded)
        flat = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint64)
        inside = np.arange(int(lengths.sum())) + np.repeat(
            ends - padded - (np.cumsum(lengths) - lengths), lengths
        )
        flat[inside] = np.fromiter(
            chain.from_iterable(token_ids), dtype=np.uint64, count=len(inside)
        )
        packed = np.zeros(max(0, len(flat) - SHINGLE_TOKENS + 1), dtype=np.uint64)
        for place in range(SHINGLE_TOKENS):
            ids = flat[place : place + len(packed)]
            packed = (packed << np.uint64(_ID_BITS)) | ids
        starts = np.ones(len(packed), dtype=np.bool_)
        for place in range(1, SHINGLE_TOKENS):
            starts[(ends - place)[:-1]] = False
        offsets = np.concatenate([[0], np.cumsum(padded - SHINGLE_TOKENS + 1)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            mix(packed[starts]), offsets, self.permutations, self.seed
        )
        whole = np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, self.permutations)
        return (whole & np.uint32(0xFFFF)).astype(np.uint16)

    def band_hashes(self, signatures: NDArray[np.uint16]) -> Keys:
        """Return (texts, bands) hashes: equal where all values of the band are equal."""
        used = signatures[:, : self.bands * self.band_rows].astype(np.uint64)
        values = used.reshape(len(signatures), self.bands, self.band_rows)
        hashes = np.zeros(values.shape[:2], dtype=np.uint64)
        for row in range(self.band_rows):
            hashes = mix(hashes ^ values[:, :, row])
        return hashes


def near_duplicates(
    settings: MinHash,
    alive: NDArray[np.bool_],
    read_band: Callable[[int], Keys],
    read_signatures: Callable[[NDArray[np.int64]], NDArray[np.uint16]],
) -> NDArray[np.bool_]:
    """Say of every row whether it nearly equals an earlier row that stays.

    Bands are read one at a time, and signatures only of rows that met another in a band. Memory:
    24 bytes a row for one band and its sorted order, 16 for every candidate pair, and
    2 × `permutations` for every row that is in one.

    Args:
        settings: threshold and shape of the signatures.
        alive: rows to compare; the others (exact duplicates) are left out.
        read_band: band number -> its hash for every row.
        read_signatures: sorted row numbers -> their signatures.
    """
    rows = np.flatnonzero(alive)
    pairs = np.empty((0, 2), dtype=np.int64)
    for band in range(settings.bands):
        met = [rows[pair] for pair in _meetings(read_band(band)[rows])]
        pairs = np.unique(np.concatenate([pairs, *met]), axis=0)
    duplicate = np.zeros(len(alive), dtype=np.bool_)
    if not len(pairs):
        return duplicate
    candidates = np.unique(pairs)
    signatures = read_signatures(candidates)
    places = np.searchsorted(candidates, pairs)
    equal = np.zeros(len(pairs), dtype=np.bool_)
    for begin in range(0, len(pairs), 1 << 16):
        part = places[begin : begin + (1 << 16)]
        agreement = (signatures[part[:, 0]] == signatures[part[:, 1]]).mean(axis=1)
        equal[begin : begin + len(part)] = agreement >= settings.threshold
    verified = pairs[equal]
    # By the later row: whether its earlier partner stays is settled by then.
    for earlier, later in verified[np.lexsort((verified[:, 0], verified[:, 1]))].tolist():
        if not duplicate[earlier]:
            duplicate[later] = True
    return duplicate


def _meetings(hashes: Keys) -> Iterator[NDArray[np.int64]]:
    """Yield (pairs, 2) arrays of places with equal hashes, the earlier place first."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(ordered) else ordered
    heads = np.maximum.accumulate(np.where(first, np.arange(len(ordered)), 0))
    far = np.flatnonzero(np.arange(len(ordered)) - heads >= _WINDOW)
    yield np.stack([order[heads[far]], order[far]], axis=1)
    for distance in range(1, _WINDOW):
        near = np.flatnonzero(ordered[distance:] == ordered[:-distance])
        if not len(near):
            break
        yield np.stack([order[near], order[near + distance]], axis=1)
