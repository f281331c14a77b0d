"""Training rows of which only a window is at hand: of all others the number of tokens is known.

A `StreamedRows` stands where a `TokenStore` does when a split has more rows than one window. Its
texts are read once to be measured (five bytes a row stay on this disk), and again, window by
window, to be trained on: the shards of a window are fetched, tokenised into files below the
stage's scratch/, and dropped with it, while the next window is made in a thread. All ranks of a
run on one file system share these files.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from small_modernbert.data import token_store
from small_modernbert.data.shards import ShardFolder
from small_modernbert.data.token_store import TokenStore
from small_modernbert.runs import processes, report, storage
from small_modernbert.runs.stages import Stage

# Of every row: its tokens, and whether its text is longer.
MEASURE = np.dtype([("tokens", "<i4"), ("cut", "?")])
CLOSE_SECONDS = 60  # a shard may be on its way over the network
logger = logging.getLogger(__name__)
Shards = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """How the rows of a folder of shards become what is trained on.

    Attributes:
        folder: of the shards.
        columns: that make a text.
        to_texts: those columns of some rows -> their texts.
        tokenizer: see `token_store.store_splits`.
        vectors: the column with vectors that come with the texts; "" for none.
        split: that is streamed.
    """

    folder: ShardFolder
    columns: tuple[str, ...]
    to_texts: Callable[[pa.RecordBatch], list[str]]
    tokenizer: Tokenizer
    vectors: str = ""
    split: str = "train"

    def texts(self, split: str) -> Iterator[str]:
        """Yield all the texts of a split in order."""
        for batch in self.folder.batches(split, self.columns):
            yield from self.to_texts(batch)


@dataclass(frozen=True)
class _AtHand:
    """Rows of some shards, one after the other."""

    tokens: TokenStore
    vectors: np.ndarray | None
    folder: Path


def open_splits(
    stage: Stage, name: str, reading: Reading, window_rows: int, *more: str
) -> "dict[str, TokenStore | StreamedRows]":
    """Tokenise an input of a stage: all of it, or windows where it has more rows than one holds.

    Args:
        stage: that trains.
        name: of the input.
        reading: of it.
        window_rows: training rows that are at hand at once; 0 = all.
        more: what else decides the texts.
    """
    rows = reading.folder.counts[reading.split]
    if not window_rows or rows <= window_rows:
        return token_store.store_splits(stage, name, reading.texts, reading.tokenizer, *more)
    logger.info(
        "%s training texts are streamed, %s at a time (--window-rows)",
        *(f"{rows:,}", f"{window_rows:,}"),
    )
    key = reading.tokenizer.to_str()
    with stage.shared(name, "held-out tokens", key, *more) as folder:
        texts = reading.texts("held_out")
        held_out = token_store.store(texts, reading.tokenizer, folder, "by the folder's name")
    with stage.shared(name, "lengths", key, *more) as folder:
        measured = measure(reading, folder / f"{reading.split}.measured")
    streamed = StreamedRows(reading, measured, window_rows, stage.scratch / "windows")
    return {"train": streamed, "held_out": held_out}


def measure(reading: Reading, path: Path) -> np.ndarray:
    """Return every row's `MEASURE`, memory-mapped; a killed call goes on at the next shard.

    Args:
        reading: what is measured.
        path: of the file; its folder is named after all that decides its content.
    """
    sizes = reading.folder.shard_rows(reading.split)
    starts = np.cumsum([0, *sizes])
    stored = path.stat().st_size // MEASURE.itemsize if path.exists() else 0
    first = int(np.searchsorted(starts, stored, side="right")) - 1
    with path.open("ab") as stream:
        stream.truncate(int(starts[first]) * MEASURE.itemsize)
        missing = report.progress(range(first, len(sizes)), description="measuring", unit="shards")
        for number in missing:
            encoded = token_store.encode(_texts(reading, [number]), reading.tokenizer)
            rows = [(len(ids), is_cut) for ids, is_cut in encoded]
            stream.write(np.array(rows, dtype=MEASURE).tobytes())
    return np.memmap(path, dtype=MEASURE, mode="r")


class StreamedRows:
    """Rows whose lengths are known and whose tokens are at hand for some shards.

    Attributes:
        sizes: rows of each shard.
        starts: `(shards + 1,)` int64: the first row of each.
        lengths: `(rows,)` int32 tokens of each row, memory-mapped.
        window_rows: rows of a window, at most.
        cut: texts that were longer than the tokenizer keeps.
    """

    def __init__(
        self, reading: Reading, measured: np.ndarray, window_rows: int, cache: Path
    ) -> None:
        """Prepare to stream.

        Args:
            reading: of the rows.
            measured: from `measure`.
            window_rows: rows of a window, at most; a larger shard is one of its own.
            cache: where windows lie while they are at hand.
        """
        self.reading, self.window_rows, self.cache = reading, window_rows, cache
        self.sizes = reading.folder.shard_rows(reading.split)
        self.starts = np.cumsum([0, *self.sizes])
        self.lengths, self.cut = measured["tokens"], int(np.count_nonzero(measured["cut"]))
        self.vectors = _Vectors(self)
        self._held: dict[Shards, _AtHand] = {}
        self._coming: dict[Shards, Future[_AtHand]] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        # By shard, its first row among those that are at hand with it.
        self._places: dict[int, tuple[Shards, int]] = {}
        if not processes.rank():
            storage.remove(cache)  # of a killed run; the other ranks begin when this one trains

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the tokens of a row that is at hand."""
        window, place = self._find(int(row))
        return window.tokens[place]

    def rows_of(self, shards: Shards) -> np.ndarray:
        """Return the numbers of the rows of some shards, `(rows,)` int64."""
        return np.concatenate([np.arange(*self.starts[number : number + 2]) for number in shards])

    def hold(self, windows: Sequence[Shards], following: Shards | None) -> None:
        """Have some windows at hand and no others; begin to fetch the one that follows.

        Raises:
            UserError: a shard cannot be read, or the disk has no room.
        """
        self._stop.clear()
        for shards in self._held.keys() - set(windows):
            folder = self._held.pop(shards).folder
            for number in shards:
                del self._places[number]
            if not processes.rank():
                storage.remove(folder)  # what another rank has mapped stays until it lets go
        for shards in windows:
            if shards not in self._held:
                coming = self._coming.pop(shards, None)
                self._held[shards] = coming.result() if coming else self._make(shards)
                begins = np.cumsum([0, *(self.sizes[number] for number in shards)])
                self._places |= {
                    number: (shards, int(begin))
                    for number, begin in zip(shards, begins, strict=False)
                }
        if following and following not in self._held and following not in self._coming:
            self._coming = {following: self._start(following)}

    def close(self) -> None:
        """Stop fetching ahead: nothing may be written where the stage tidies up."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _start(self, shards: Shards) -> Future[_AtHand]:
        """Make a window in a thread; the end of the process does not wait for it."""
        future: Future[_AtHand] = Future()

        def work() -> None:
            try:
                future.set_result(self._make(shards))
            except BaseException as error:  # whoever waits for the window gets it
                future.set_exception(error)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        return future

    def _make(self, shards: Shards) -> _AtHand:
        """Fetch and tokenise a window, or open what another rank has made of it."""
        key = storage.digest_json(shards)[:16]
        self.cache.mkdir(parents=True, exist_ok=True)
        folder, reading = self.cache / key, self.reading
        rows = sum(self.sizes[number] for number in shards)
        with storage.take_lock(self.cache / f"{key}.lock", "", wait=lambda _: None):
            folder.mkdir(exist_ok=True)
            vectors = folder / "vectors.f16"
            tokens = sum(
                int(self.lengths[self.starts[number] : self.starts[number + 1]].sum())
                for number in shards
            )
            if not (folder / "tokens").exists():
                width = reading.folder.index["dimension"] if reading.vectors else 0
                storage.check_space(folder, 4 * tokens + 2 * width * rows)
            texts = _texts(reading, shards, vectors if reading.vectors else None)
            texts = itertools.takewhile(self._goes_on, texts)
            stored = token_store.store(texts, reading.tokenizer, folder / "tokens", key)
        if not reading.vectors:
            return _AtHand(stored, None, folder)
        mapped = np.memmap(vectors, dtype=np.float16, mode="r").reshape(rows, -1)
        return _AtHand(stored, mapped, folder)

    def _goes_on(self, _: str) -> bool:
        if self._stop.is_set():
            raise InterruptedError("what was fetched ahead is not wanted any more")
        return True

    def _find(self, row: int) -> tuple[_AtHand, int]:
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        shards, begin = self._places[shard]
        return self._held[shards], begin + row - int(self.starts[shard])


class _Vectors:
    """The vectors of streamed rows: what is at hand of `(rows, dimension)` float16."""

    def __init__(self, rows: StreamedRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        places = (self._rows._find(int(row)) for row in rows)
        return np.stack([window.vectors[place] for window, place in places])


def _texts(reading: Reading, numbers: Iterable[int], vectors: Path | None = None) -> Iterator[str]:
    """Yield the texts of some shards; on the way, write their vectors to a file."""
    columns = [*reading.columns, *([reading.vectors] if vectors else [])]
    batches = reading.folder.batches(reading.split, columns, numbers=numbers)
    if vectors is None:
        yield from itertools.chain.from_iterable(map(reading.to_texts, batches))
        return
    with vectors.open("wb") as stream:
        for batch in batches:
            values = batch.column(reading.vectors).flatten().to_numpy(zero_copy_only=False)
            stream.write(values.astype(np.float16, copy=False).tobytes())
            yield from reading.to_texts(batch)
