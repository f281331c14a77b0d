"""Near duplicates by our MinHash and by datatrove's stages, on the same texts: who drops what.

    python bench/near_duplicates.py assets/text/train.parquet 20000

datatrove's stages drop whatever shares a bucket, and all of a chain but one text; ours compare the
signatures of what met and keep what is less alike than the threshold. Exact duplicates are out.
"""

import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    HashConfig,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger

from small_modernbert.data import corpus_building, duplicates, keys, sources

TOKENIZER = Path("assets/models/all-MiniLM-L6-v2/tokenizer.json")
OURS = duplicates.MinHash(permutations=64, threshold=0.8, seed=42)
# Words of a shingle, buckets, hashes of a bucket: datatrove's defaults, and steeper ones.
SHAPES = ((5, 14, 8), (3, 14, 8), (3, 20, 16))


class Words(WordTokenizer):
    """Our words and signs: datatrove's own tokenizer of English needs spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return keys.tokens_of(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the text, which is not divided."""
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return the text's span."""
        return [(0, len(text))]


def read_spill(path: Path, folder: Path) -> corpus_building.Spill:
    """Return the texts as a corpus would have them, with our fingerprints."""
    source = sources.TextSource(name="own", id=str(path), texts=("text",))
    preparation = corpus_building.Preparation(source, TOKENIZER, 256, OURS, 12)
    return corpus_building.write_spill(folder / "spill", preparation, 0)


def drop_by_datatrove(texts: list[str], shape: tuple[int, int, int], folder: Path) -> np.ndarray:
    """Return of each text whether datatrove's stages drop it."""
    words, buckets, hashes = shape
    # Its other hash function wants an older xxhash.
    hashing = HashConfig(hash_fc="sha1")
    settings = MinhashConfig(words, buckets, hashes, hash_config=hashing)
    signatures, pairs, dropped = (str(folder / name) for name in ("signatures", "pairs", "drop"))
    documents = (Document(text, str(number)) for number, text in enumerate(texts))
    MinhashDedupSignature(signatures, settings, language=Words()).run(documents)
    for bucket in range(buckets):
        MinhashDedupBuckets(signatures, pairs, config=settings).run(None, bucket, buckets)
    MinhashDedupCluster(pairs, dropped, config=settings).run()
    drop = np.zeros(len(texts), dtype=np.bool_)
    listed = Path(dropped) / "000000.remove"
    if listed.exists():
        drop[[number for (number,) in struct.iter_unpack("<I", listed.read_bytes())]] = True
    return drop


def main() -> None:
    """Print a line for each shape of datatrove's signatures."""
    path, number = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    logger.remove()
    with tempfile.TemporaryDirectory() as place:
        spill = read_spill(path, Path(place))
        alive = np.flatnonzero(~duplicates.exact_duplicates(spill.numbers("key")))[:number]
        kept = np.zeros(spill.rows, dtype=np.bool_)
        kept[alive] = True
        ours = duplicates.near_duplicates(
            OURS, kept, lambda band: spill.numbers(f"band{band}"), spill.signatures
        )[alive]
        every = list(spill.column("rows", "text"))
        texts = [every[row] for row in alive]
        print(f"{len(texts):,} texts, ours drops {ours.sum():,}")
        for shape in SHAPES:
            drop = drop_by_datatrove(texts, shape, Path(place) / "-".join(map(str, shape)))
            print(
                f"{shape}: datatrove drops {drop.sum():,}, both {(drop & ours).sum():,}; they "
                f"differ on {(drop ^ ours).mean():.2%} of the texts"
            )


if __name__ == "__main__":
    main()
