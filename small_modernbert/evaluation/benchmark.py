"""Models side by side: a row a model, its vectors on disk, its figures and its speed.

The table, the plot and the JSON are `benchmark_report`'s.
"""

import gc
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from small_modernbert.data.evaluation_sets import SentencePairs
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.evaluation import metrics, new_words, search, speed
from small_modernbert.evaluation.rankings import Hits
from small_modernbert.models import encoders
from small_modernbert.models.encoders import WINDOW_TEXTS, Encoder
from small_modernbert.models.prompts import Role
from small_modernbert.models.vectors import write_vectors
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

TEACHER, REDUCED = "teacher", "reduced teacher"  # labels that mean something
WORDS = "BM25"
ROLES: dict[str, Role] = {"queries": "query", "documents": "document", "pairs": "text"}
logger = logging.getLogger(__name__)


@dataclass
class Row:
    """One line of the benchmark; what does not apply (BM25 has no parameters) is None.

    Attributes:
        label: the model's name in tables.
        reference: where it came from.
        retrieval: set -> metric -> value.
        agreement: set -> share of the teacher's first ten that are among this row's first ten.
        by_words: set -> queries with a new word and those without, see `new_words.split`.
        pairs: set of sentence pairs -> Spearman or average precision.
        parameters: weights in the model.
        parameters_without_embeddings: those that are not in an embedding table.
        size_bytes: what the model takes on disk.
        documents_per_second: encoded, on this machine.
        queries_per_second: encoded, on this machine.
        prompts: what stands before queries and documents, where anything does.
        note: what a reader must know about this row.
    """

    label: str
    reference: str
    retrieval: dict[str, dict[str, float]] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    by_words: dict[str, dict[str, new_words.Part]] = field(default_factory=dict)
    pairs: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    size_bytes: int | None = None
    documents_per_second: float | None = None
    queries_per_second: float | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def quality(self) -> float | None:
        """Mean nDCG@10 over the retrieval sets; None where there are none."""
        return metrics.mean_ndcg(self.retrieval) if self.retrieval else None


@dataclass(frozen=True)
class VectorStore:
    """The vectors of one model, a file for each set and side, kept until the benchmark is done.

    Attributes:
        folder: named after the model's digest, so equal models under two labels share it.
    """

    folder: Path

    def path(self, name: str, side: str) -> Path:
        """Return the file of one side (`queries`, `documents`, `pairs`) of a set."""
        return self.folder / f"{name}.{side}.npy"

    def read(self, name: str, side: str) -> np.ndarray:
        """Return the vectors of one side of a set, memory-mapped."""
        return storage.read_array(self.path(name, side), mapped=True)

    def fill(
        self, encoder: Encoder, sets: Sequence[RetrievalSet], pairs: Sequence[SentencePairs]
    ) -> None:
        """Encode what is not there yet."""
        for name, side, texts in sides(sets, pairs):
            what = f"{encoder.name}: {name} {side}"
            encoder.encode_to(self.path(name, side), texts, what, ROLES[side])

    def derive(
        self,
        source: "VectorStore",
        transform: Callable[[np.ndarray], np.ndarray],
        sets: Sequence[RetrievalSet],
        pairs: Sequence[SentencePairs],
    ) -> None:
        """Make the vectors that are not there yet out of another model's, window by window."""
        for name, side, _ in sides(sets, pairs):
            if not self.path(name, side).exists():
                given = source.read(name, side)
                starts = range(0, len(given), WINDOW_TEXTS)
                windows = (transform(given[start : start + WINDOW_TEXTS]) for start in starts)
                write_vectors(self.path(name, side), len(given), windows)


def sides(
    sets: Sequence[RetrievalSet], pairs: Sequence[SentencePairs]
) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield what there is to encode: (set, side, texts)."""
    for each in sets:
        yield each.name, "queries", each.queries
        yield each.name, "documents", each.documents
    for graded in pairs:
        yield graded.name, "pairs", graded.first + graded.second


def digest_texts(sets: Sequence[RetrievalSet], pairs: Sequence[SentencePairs]) -> str:
    """Return one digest of all there is to encode, read window by window."""
    digest = hashlib.sha256()
    for name, side, texts in sides(sets, pairs):
        for word in (name, side, str(len(texts))):
            digest.update(word.encode("utf-8") + b"\0")
        for start in range(0, len(texts), WINDOW_TEXTS):
            for text in texts[start : start + WINDOW_TEXTS]:
                digest.update(text.encode("utf-8") + b"\0")
    return digest.hexdigest()


class Benchmark:
    """Rows over the same sets; vectors and speeds are kept by the digest of model and texts.

    So a killed benchmark goes on where it was, and a model under two labels is encoded once.

    Attributes:
        sets: for retrieval.
        pairs: of sentences.
        rows: by label, in the order in which they were made.
    """

    def __init__(
        self,
        sets: Sequence[RetrievalSet],
        pairs: Sequence[SentencePairs],
        folder: Path,
        sample: tuple[list[str], list[str]],
        kept: Path | None = None,
        has_new_word: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Prepare a benchmark.

        Args:
            sets: for retrieval.
            pairs: of sentences.
            folder: of this run's vectors and speeds.
            sample: documents and queries that speed is measured on, see `speed.draw_sample`.
            kept: a folder that keeps the vectors, never the speeds, beyond this run.
            has_new_word: set -> which of its queries do, see `new_words.tell_apart`; None where
                queries are not told apart.
        """
        self.sets, self.pairs, self.rows = list(sets), list(pairs), dict[str, Row]()
        self._folder, self._kept, self._sample = folder, kept or folder, sample
        self._has_new_word = has_new_word or {}
        self._texts = digest_texts(sets, pairs)
        self._stores: dict[str, VectorStore] = {}
        self._hits: dict[str, dict[str, Hits]] = {}
        self._teacher: Encoder | None = None

    def add_model(
        self, label: str, reference: Path | str, query_prompt: str = "", document_prompt: str = ""
    ) -> None:
        """Make the row of a model.

        Args:
            label: of the row; that of the reduced teacher is tried as a part of the row before it.
            reference: a folder, a form of an export, or a hub id.
            query_prompt: for a model that names none for queries.
            document_prompt: for a model that names none for documents.

        Raises:
            UserError: it does not load, or its vectors are not finite.
        """
        place = reference if isinstance(reference, Path) else encoders.fetch(reference)
        encoder = encoders.load_encoder(place, label, query_prompt, document_prompt)
        key = [encoders.digest_model(place), vars(encoder.prompts), self._texts]
        digest = storage.digest_json(key)[:16]
        store = self._stores[label] = VectorStore(self._kept / digest)
        if label == REDUCED and self._teacher is not None:
            # The same tokens through the same body: only its Dense layer is left to apply.
            if reduce := encoders.reduction_of(encoder, self._teacher):
                store.derive(self._stores[TEACHER], reduce, self.sets, self.pairs)
            else:
                logger.info("the reduced teacher is not made of this teacher: encoded on its own")
        store.fill(encoder, self.sets, self.pairs)
        row = describe(encoder, str(reference))
        row.documents_per_second, row.queries_per_second = speed.measured(
            self._folder / digest / "speed.json", encoder, self._sample
        )
        self._score(row, store, store)
        for pairs in self.pairs:
            halves = np.split(store.read(pairs.name, "pairs"), 2)
            row.pairs[pairs.name] = [*metrics.pair_figures(*halves, pairs).values()][-1]
        self._teacher = encoder if label == TEACHER else None
        del encoder
        gc.collect()

    def add_asymmetric(self, asking: str, holding: str) -> None:
        """Make the row of one model's queries over another's documents, out of stored vectors.

        No row, and a line in the log, where the two are not equally wide.
        """
        queries, documents = self.rows[asking], self.rows[holding]
        label = f"{asking} > {holding}"
        stores = self._stores[asking], self._stores[holding]
        widths = [
            store.read(self.sets[0].name, side).shape[1]
            for store, side in zip(stores, ("queries", "documents"), strict=True)
        ]
        if widths[0] != widths[1]:
            logger.info("%s: no row, the widths are %s and %s", label, *widths)
            return
        row = Row(
            label=label,
            reference=f"{queries.reference} > {documents.reference}",
            documents_per_second=documents.documents_per_second,
            queries_per_second=queries.queries_per_second,
            note=f"queries by {asking}, documents by {holding}",
        )
        self._score(row, *stores)

    def add_words(self) -> str:
        """Make the row of lexical search; return why there is none, "" if there is."""
        try:
            hits = {each.name: search.rank_by_words(each) for each in self.sets}
        except UserError as error:
            logger.warning("%s: no row, and none with it: %s", WORDS, error)
            return str(error)
        self._finish(Row(WORDS, "bm25s"), hits)
        return ""

    def add_mixed(self, label: str, weight: float) -> None:
        """Make the row of a model's search together with lexical search; see `search.combine`."""
        row = self.rows[label]
        mixed = Row(
            label=f"{label} + {WORDS}",
            reference=f"{row.reference} + bm25s",
            documents_per_second=row.documents_per_second,
            queries_per_second=row.queries_per_second,
            note=f"scores of both scaled to 0-1, {WORDS} weighs {weight:g}; its time is not in it",
        )
        hits = {
            each.name: search.combine(
                self._hits[label][each.name], self._hits[WORDS][each.name], weight
            )
            for each in self.sets
        }
        self._finish(mixed, hits)

    def query_scores(self, label: str, name: str) -> np.ndarray:
        """Return a row's nDCG@10 of each query of a set, `(queries,)`."""
        questions = next(each for each in self.sets if each.name == name)
        return metrics.query_metrics(self._hits[label][name].rows, questions)["ndcg@10"]

    def _score(self, row: Row, queries: VectorStore, documents: VectorStore) -> None:
        hits = {}
        for each in self.sets:
            asked, held = queries.read(each.name, "queries"), documents.read(each.name, "documents")
            try:
                hits[each.name] = search.rank(each, asked, held)
            except ValueError as error:
                raise UserError(
                    f"{row.label} on {each.name}: {error}; name another model"
                ) from error
        self._finish(row, hits)

    def _finish(self, row: Row, hits: dict[str, Hits]) -> None:
        self.rows[row.label], self._hits[row.label] = row, hits
        for each in self.sets:
            rows = hits[each.name].rows
            row.retrieval[each.name] = metrics.ranking_metrics(rows, each)
            if each.name in self._has_new_word:
                scores = self.query_scores(row.label, each.name)
                row.by_words[each.name] = new_words.split(scores, self._has_new_word[each.name])
            if TEACHER in self._hits:
                wanted = self._hits[TEACHER][each.name].rows
                row.agreement[each.name] = metrics.ranking_agreement(rows, wanted)
        logger.info("%s: %.4f", row.label, row.quality)


def describe(encoder: Encoder, reference: str) -> Row:
    """Start the row of a loaded model."""
    prompts = {role: text for role, text in vars(encoder.prompts).items() if text}
    notes = ["compared by the dot product"] if encoder.similarity == "dot" else []
    if encoder.engine:
        notes.append(f"an exported form, in {encoder.engine} on the CPU")
    return Row(
        label=encoder.name,
        reference=reference,
        parameters=encoder.parameters,
        parameters_without_embeddings=encoder.parameters_without_embeddings,
        size_bytes=encoder.size_bytes,
        prompts=prompts,
        note="; ".join(notes),
    )
