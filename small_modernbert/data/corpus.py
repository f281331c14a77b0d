"""The corpus that mlm/create_dataset.py makes: shards of texts, with where each one is from.

{train,held_out}/shard-*.parquet    text, source, role ("query", "document", or "text" where
                                    nobody said), tokens (special ones included)
corpus.json                         the shards, and what became of every row that was read
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from small_modernbert.data import outlets, shards
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

SPLITS = ("train", "held_out")
LAYOUT = shards.Layout(
    index="corpus.json",
    columns={"text": "text", "source": "text", "role": "text", "tokens": "number"},
    splits=SPLITS,
    cure="run: python mlm/create_dataset.py --overwrite",
    facts={"tokens": int, "max_tokens": int, "sources": dict},
)
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("source", pa.string()),
        ("role", pa.string()),
        ("tokens", pa.int32()),
    ]
)


class Corpus(shards.ShardFolder):
    """A finished corpus; `index["sources"]` says what became of every row, by source."""

    def texts(self, split: str = "train") -> Iterator[str]:
        """Yield the texts of a split in order; see `batches`."""
        return self.column(split, "text")

    @property
    def kept_apart(self) -> list[int]:
        """Keys (`keys.words_key`) of evaluation texts that no part of a text here may be.

        Raises:
            UserError: they are none.
        """
        keys = self.index.get("kept_apart", [])
        if not (isinstance(keys, list) and all(type(key) is int for key in keys)):
            raise UserError(
                f"{self.folder}: 'kept_apart' of {LAYOUT.index} is no keys; {self.cure}"
            )
        return keys

    def sources(self, split: str = "train") -> Iterator[str]:
        """Yield the source of each text of a split, in order; see `batches`."""
        return self.column(split, "source")


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus.

    Raises:
        UserError: `folder` holds none, see `shards.read_index`.
    """
    return Corpus(folder, LAYOUT, shards.read_index(folder, LAYOUT))


def write_index(
    folder: Path,
    counts: Mapping[str, int],
    sources: Mapping[str, Mapping[str, int]],
    tokens: int,
    max_tokens: int,
    tokenizer_file: Path,
    kept_apart: Sequence[int] = (),
    outlet: outlets.Outlet = shards.HERE,
) -> None:
    """Write corpus.json, which makes a corpus complete.

    Args:
        folder: with all the shards.
        counts: split -> number of its shards.
        sources: what became of every row, by source; see `corpus_selection.tabulate`.
        tokens: of all the texts.
        max_tokens: of a text.
        tokenizer_file: the tokenizer.json that counted them.
        kept_apart: see `Corpus`.
        outlet: where the shards have gone.
    """
    facts = {
        "tokens": tokens,
        "max_tokens": max_tokens,
        "tokenizer_digest": storage.sha256_file(tokenizer_file),
        "sources": sources,
        "kept_apart": list(kept_apart),
    }
    shards.write_index(folder, LAYOUT, counts, facts, outlet)
