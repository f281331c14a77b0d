"""A teacher's labels: texts and their roles in, vectors of the student's width out, shard by shard.

Shard i is a function of its own texts, the teacher, the settings and the projection, and of nothing
else: any process may make it, in any order, twice. The vectors of the projection's sample are kept
until their shards are written, so that no text is encoded twice, nor again after a kill.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from small_modernbert.data import labels
from small_modernbert.data.corpus import Corpus, open_corpus
from small_modernbert.data.keys import words_key
from small_modernbert.data.outlets import Outlet
from small_modernbert.data.shards import HERE
from small_modernbert.labelling.spans import draw_span
from small_modernbert.labelling.teacher_reading import Reader, Reading
from small_modernbert.models.projection import Projection, directions_of_moment, project
from small_modernbert.models.prompts import Role
from small_modernbert.models.vectors import normalise, open_vectors, write_vectors
from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Advance = Callable[[int], Any]


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, each made in a thread while the caller works on the one before it.

    A GPU then encodes while a processor tokenises. On two cores without a GPU it neither gains nor
    costs anything (docs/LOG.md). One item waits at most, so memory is flat.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item


@dataclass(frozen=True)
class Slices:
    """A corpus in slices of a shard each.

    Attributes:
        corpus: that is cut.
        rows: texts of a slice.
        span_share: of the training texts that are read as a span of theirs, see `spans`.
        apart: keys of texts that no span may be: held-out ones, and those of evaluation sets.
    """

    corpus: Corpus
    rows: int
    span_share: float = 0.0
    apart: frozenset[int] = frozenset()

    @classmethod
    def of(cls, corpus: Path, rows: int, span_share: float = 0.0) -> "Slices":
        """Cut a corpus into slices of `rows` texts."""
        opened = open_corpus(corpus)
        if not span_share:
            return cls(opened, rows)
        held_out = map(words_key, opened.texts("held_out"))
        return cls(opened, rows, span_share, frozenset(held_out).union(opened.kept_apart))

    @property
    def counts(self) -> dict[str, int]:
        """Split -> texts of it."""
        return self.corpus.counts

    @property
    def texts(self) -> int:
        """All texts."""
        return sum(self.counts.values())

    def read(self, split: str, first: int = 0) -> Iterator[tuple[list[str], list[Role]]]:
        """Yield the texts of each slice from `first` on, and their roles."""
        texts: list[str] = []
        roles: list[Role] = []
        sizes, number, passed = self.corpus.shard_rows(split), 0, first * self.rows
        while number < len(sizes) and passed >= sizes[number]:
            number, passed = number + 1, passed - sizes[number]
        shards = range(number, len(sizes))
        for batch in self.corpus.batches(split, ("text", "role"), numbers=shards):
            rows = batch.num_rows
            batch, passed = batch.slice(min(passed, rows)), max(0, passed - rows)
            texts += self._drawn(split, batch.column(0).to_pylist())
            roles += batch.column(1).to_pylist()
            while len(texts) >= self.rows:
                yield texts[: self.rows], roles[: self.rows]
                texts, roles = texts[self.rows :], roles[self.rows :]
        if texts:
            yield texts, roles

    def _drawn(self, split: str, texts: list[str]) -> list[str]:
        if split != "train" or not self.span_share:
            return texts
        return [self.draw(text) for text in texts]

    def draw(self, text: str) -> str:
        """Return what is read of a training text: a span of it, or all."""
        span = draw_span(text, self.span_share)
        return text if span is not text and words_key(span) in self.apart else span

    def number(self, split: str) -> int:
        """Return how many slices a split has."""
        return -(-self.counts[split] // self.rows)

    def rows_of(self, split: str, number: int) -> int:
        """Return how many texts a slice has."""
        return min(self.rows, self.counts[split] - number * self.rows)

    def first(self) -> tuple[list[str], list[Role]]:
        """Return the first slice of the training texts."""
        return next(self.read("train"), ([], []))

    def space(self, dimension: int, width: int, pca_texts: int) -> int:
        """Return the bytes of the labels (fp16), and of the vectors that `fit` keeps (fp32)."""
        train = self.counts["train"]
        sample = min(train, -(-(pca_texts or train) // self.rows) * self.rows)
        return 2 * width * self.texts + (4 * dimension * sample if width != dimension else 0)


class Folders(Protocol):
    """Where a labeller writes: a stage, say.

    Attributes:
        building: for the labels and the projection.
        scratch: for the vectors of the projection's sample.
    """

    building: Path
    scratch: Path


class Labeller:
    """One corpus on its way through one teacher.

    Attributes:
        scratch: where the vectors of the projection's sample are kept.
        explained: share of the vectors' second moment that the projection keeps.
    """

    def __init__(
        self,
        reader: Reader,
        slices: Slices,
        folders: Folders,
        advance: Advance,
        outlet: Outlet = HERE,
    ) -> None:
        """Prepare to label.

        Args:
            reader: the teacher, ready to encode.
            slices: of the corpus.
            folders: where to write.
            advance: called with numbers of texts done.
            outlet: where the shards go.
        """
        self.outlet = outlet
        self.reader, self.slices, self.advance = reader, slices, advance
        self.folder, self.scratch = folders.building, folders.scratch
        self.explained = 1.0

    def fit(self, width: int, texts: int) -> Projection | None:
        """Fit the projection on the first `texts` training texts (0 = all), and save it.

        One that is saved is taken up.

        Returns:
            The projection; None where the teacher is as wide as the labels.

        Raises:
            UserError: the teacher is narrower.
        """
        dimension = self.reader.dimension
        if width == dimension:
            logger.info("the teacher is as wide as the student: no projection")
            return None
        if width > dimension:
            raise UserError(
                f"the student is {width} wide, its teacher {dimension}: choose a narrower student "
                "(--hidden-size of build_and_save_small_modernbert.py) or a wider teacher"
            )
        saved = self.folder / "projection.safetensors"
        if saved.exists():
            projection = Projection(**load_file(saved))
            self.explained = float(projection.explained.sum())
            return projection
        moment, mean, seen = np.zeros((dimension, dimension)), np.zeros(dimension), 0
        for vectors in self._sample(texts):
            moment += vectors.T.astype(np.float64) @ vectors
            mean += vectors.sum(axis=0, dtype=np.float64)
            seen += len(vectors)
        projection = directions_of_moment(
            torch.from_numpy(moment / seen), torch.from_numpy(mean / seen), width
        )
        self.explained = float(projection.explained.sum())
        logger.info(
            "projection %d -> %d fitted on %s texts keeps %.2f %% of the second moment",
            *(dimension, width, f"{seen:,}", 100 * self.explained),
        )
        parts = {name: part.contiguous() for name, part in vars(projection).items()}
        with storage.replacing(saved) as beside:
            save_file(parts, beside)
        return projection

    def _sample(self, texts: int) -> Iterator[np.ndarray]:
        """Yield the vectors of the slices that the projection is fitted on, and keep them."""

        def is_kept(index: int, rows: int) -> bool:
            return open_vectors(self._kept(index), rows) is not None

        every = self.slices.counts["train"]
        number = -(-min(texts or every, every) // self.slices.rows)
        for index, rows, reading in prefetch(self._readings("train", is_kept, 0, number)):
            if reading is None:
                self.advance(rows)
            else:
                vectors = self.reader.encode(reading, self.advance)
                write_vectors(self._kept(index), rows, [vectors])
            yield open_vectors(self._kept(index), rows)

    def label(self, projection: Projection | None, teacher: str) -> dict[str, Any]:
        """Write the missing shards, and the index.

        Args:
            projection: from `fit`.
            teacher: its digest.

        Returns:
            Facts: `tokens` read, texts that were `cut`, texts by `roles`.
        """
        counts = {split: self.slices.number(split) for split in labels.SPLITS}
        for split, slices in counts.items():
            self.label_slices(split, 0, slices, projection)
        paths = (self._shard(split, index) for split in counts for index in range(counts[split]))
        facts = labels.add_facts(paths, self.outlet)
        dimension = self.reader.dimension if projection is None else len(projection.directions)
        index = {
            "teacher": teacher,
            "max_tokens": self.reader.limits["text"],
            "prompts": vars(self.reader.prompts),
            "span_share": self.slices.span_share,
            **{name: facts.get(name, 0) for name in ("roles", "cut", "tokens")},
        }
        labels.write_index(self.folder, dimension, counts, index, self.outlet)
        return index

    def label_slices(
        self, split: str, first: int, last: int, projection: Projection | None
    ) -> None:
        """Write the missing shards of some slices.

        Args:
            split: of the corpus.
            first: number of the first slice.
            last: number of the slice behind the last one.
            projection: from `fit`.
        """

        def is_made(index: int, _: int) -> bool:
            return self.outlet.has(self._shard(split, index))

        for index, rows, reading in prefetch(self._readings(split, is_made, first, last)):
            if reading is None:
                self.advance(rows)
                continue
            vectors = open_vectors(self._kept(index), rows) if split == "train" else None
            if vectors is None:
                vectors = self.reader.encode(reading, self.advance)
            reduced = normalise(vectors) if projection is None else project(vectors, projection)
            facts = {"tokens": reading.tokens, "cut": reading.cut, "roles": Counter(reading.roles)}
            labels.write_shard(
                self._shard(split, index), reading.texts, reduced, reading.roles, facts
            )
            self.outlet.send(self._shard(split, index))

    def _readings(
        self, split: str, is_made: Callable[[int, int], bool], first: int, last: int
    ) -> Iterator[tuple[int, int, Reading | None]]:
        """Yield number, texts and reading of some slices; what is made already is not read."""
        slices = None
        for index in range(first, last):
            rows = self.slices.rows_of(split, index)
            if is_made(index, rows):
                slices = None
                yield index, rows, None
                continue
            slices = slices or self.slices.read(split, index)
            yield index, rows, self.reader.read(*next(slices))

    def _shard(self, split: str, index: int) -> Path:
        return labels.shard_path(self.folder, split, index)

    def _kept(self, index: int) -> Path:
        return self.scratch / f"{index:05d}.npy"


def verify(folder: Path) -> None:
    """Read every shard back; of those that were sent away only look at their sizes.

    Raises:
        UserError: one does not read as it was written.
    """
    labels.open_labels(folder).verify_made()
