"""Passages that can be searched by several models, by their words, and by both together.

The vectors of each model are kept on disk under the digest of the model and its prompt, a row a
text: another model never meets them, and passages that are new are encoded alone.
"""

import dataclasses
import hashlib
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from small_modernbert.data import evaluation_sets, file_rows
from small_modernbert.data.keys import Keys
from small_modernbert.evaluation import search
from small_modernbert.evaluation.bm25 import WordIndex
from small_modernbert.evaluation.rankings import EMPTY, Hits
from small_modernbert.models import encoders
from small_modernbert.models.vectors import normalise
from small_modernbert.runs import references, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.models.encoders import Encoder

WORDS = "BM25"
WINDOW_TEXTS = 4_096  # new passages that an interruption can cost


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        row: of the passage.
        score: a cosine; of BM25 its own score; of both together their mean, each scaled to 0-1.
    """

    row: int
    score: float


class PassageSearch:
    """Passages with the vectors of some models, and their words.

    Attributes:
        texts: the passages.
        encoders: by label.
        no_words: why they cannot be searched by words; empty where they can.
    """

    def __init__(
        self,
        texts: Sequence[str],
        models: "Mapping[str, Encoder]",
        folders: Mapping[str, Path],
        *,
        by_words: bool = True,
    ) -> None:
        """Encode what is not on disk yet, and index the words.

        Args:
            texts: the passages.
            models: loaded, by label.
            folders: where each one's vectors are kept; the names come from `vectors_folder`.
            by_words: whether the words take part; else nothing is indexed.
        """
        self.texts, self.encoders = list(texts), dict(models)
        self._vectors = {
            label: encode_growing(folders[label], encoder, self.texts)
            for label, encoder in self.encoders.items()
        }
        self.no_words = ""
        # Tokenizers and torch's threads are shared: one question is encoded at a time.
        self._turn = threading.Lock()
        try:
            self._index = WordIndex(self.texts) if by_words else None
        except UserError as error:
            self._index, self.no_words = None, str(error)

    def find(self, question: str, top_k: int, weight: float) -> dict[str, list[Hit]]:
        """Return the best passages by each way of searching.

        Args:
            question: what is asked for.
            top_k: passages of each way.
            weight: of BM25 beside a model, from 0 to 1; 0 leaves the words out.

        Returns:
            The hits by label; `label + BM25` and `BM25` as well, where words take part. A question
            whose words no passage holds has no BM25, and its model stands alone.
        """
        depth = max(top_k, search.DEPTH)
        words = self._by_words(question, depth) if weight else None
        ways: dict[str, Hits] = {}
        for label, encoder in self.encoders.items():
            with self._turn:
                vector = encoder.encode_queries([question])
            ways[label] = search.nearest(vector, self._vectors[label], depth)
            if words is not None:
                ways[f"{label} + {WORDS}"] = search.combine(ways[label], words, weight)
        if words is not None:
            ways[WORDS] = words
        return {label: _hits(hits.first(top_k)) for label, hits in ways.items()}

    def _by_words(self, question: str, depth: int) -> Hits | None:
        if self._index is None:
            return None
        hits = self._index.search([question], depth)
        return hits if (hits.rows != EMPTY).any() else None


def read_passages(place: Path) -> list[str]:
    """Return the distinct texts of a file, or of a folder of files, of any kind that is read.

    Raises:
        UserError: there is none, or one does not read.
    """
    files = file_rows.find_files(place, cure=references.ASSETS)
    return evaluation_sets.read_texts([file.path for file in files])


def load_search(
    texts: Sequence[str],
    models: "Mapping[str, Path | str]",
    below: Path,
    *,
    query_prompt: str = "",
    document_prompt: str = "",
    by_words: bool = True,
) -> PassageSearch:
    """Load models, and make their search over some passages.

    Args:
        texts: the passages.
        models: a folder or a hub id, by label.
        below: the folder that keeps the vectors of all of them.
        query_prompt: for a model that names none for queries.
        document_prompt: for a model that names none for documents.
        by_words: whether the words take part.

    Raises:
        UserError: a model is not there, or does not load.
    """
    loaded, folders = {}, {}
    for label, model in models.items():
        folder = model if isinstance(model, Path) else encoders.fetch(model)
        loaded[label] = encoders.load_encoder(folder, label, query_prompt, document_prompt)
        folders[label] = vectors_folder(below, folder, loaded[label])
    return PassageSearch(texts, loaded, folders, by_words=by_words)


def vectors_folder(below: Path, model: Path, encoder: "Encoder") -> Path:
    """Return where the vectors of a model are kept: its digest and its prompt make the name."""
    key = [encoders.digest_model(model), encoder.prompts.document]
    return below / storage.digest_json(key)[:16]


def encode_growing(folder: Path, encoder: "Encoder", texts: Sequence[str]) -> np.ndarray:
    """Return `(texts, width)` unit vectors, those of earlier calls read from disk.

    What is new is encoded and added window by window, each one a file that appears whole. A file
    that does not read is made again.
    """
    wanted = _keys(texts)
    known: dict[int, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        keys, vectors = _read_part(path)
        known.update(zip(keys.tolist(), vectors, strict=True))
    new = [row for row, key in enumerate(wanted.tolist()) if key not in known]
    for start in range(0, len(new), WINDOW_TEXTS):
        rows = new[start : start + WINDOW_TEXTS]
        label = f"{encoder.name}: encoding {len(new):,} passages"
        encoded = encoder.encode_documents([texts[row] for row in rows], label)
        vectors = encoded.astype(np.float16)
        number = 1 + max((int(path.stem) for path in folder.glob("*.npz")), default=0)
        folder.mkdir(parents=True, exist_ok=True)
        with storage.replacing(folder / f"{number:06d}.npz") as place, place.open("wb") as stream:
            np.savez(stream, keys=wanted[rows], vectors=vectors)
        known.update(zip(wanted[rows].tolist(), vectors, strict=True))
    return normalise(np.stack([known[key] for key in wanted.tolist()]).astype(np.float32))


def _keys(texts: Sequence[str]) -> Keys:
    """Return 64 bits of each text, as it stands: a comma more is another text."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64)


def _read_part(path: Path) -> tuple[Keys, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as part:
            keys, vectors = part["keys"], part["vectors"]
        if len(keys) == len(vectors):
            return keys, vectors
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    path.unlink(missing_ok=True)
    return np.empty(0, np.uint64), np.empty((0, 0), np.float16)


def _hits(hits: Hits) -> list[Hit]:
    pairs = zip(hits.rows[0].tolist(), hits.scores[0].tolist(), strict=True)
    return [Hit(row, score) for row, score in pairs if row != EMPTY]
