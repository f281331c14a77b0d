"""The files of assets/ that hold text, pairs and evaluation sets: a contract with their readers.

    text/<file>.parquet                     text, source; and role, but for train.parquet
    pairs/<file>.parquet                    anchor, positive, negative (null: none), source
    retrieval/corpus/<set>.parquet          _id, text
    retrieval/queries/<set>.parquet         _id, text
    retrieval/qrels/<set>.parquet           query-id, corpus-id
    sentence_pairs/<set>.parquet            sentence1, sentence2, label (1: same, or it follows)

retrieval/ is at once a dataset of the NanoBEIR layout: its README.md names the files as configs
corpus, queries and qrels with splits NanoSciQ, NanoBoolQ, ... NanoBEIREvaluator reads it after
`register_with_nano_beir()`, because it takes only the names in its own table.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from small_modernbert.data.leaks import LeakFilter, RowCounts
from small_modernbert.data.pairs import Pair
from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.runs import storage

# Set name -> its name in NanoBEIR's style; the split is that name with "Nano" before it.
RETRIEVAL_SETS = {
    "sciq": "SciQ",
    "boolq": "BoolQ",
    "boolq-dev": "BoolQDev",
    "squad": "SQuAD",
    "wiki-leads": "WikiLeads",
    "wiki-descriptions": "WikiDescriptions",
}
SELECTION_SETS = ("boolq-dev", "squad", "wiki-leads", "wiki-descriptions")
ROWS_PER_GROUP = 16_384


class RowWriter:
    """Writes rows of strings (or integers) to a checksummed Parquet file, a group at a time."""

    def __init__(self, path: Path, columns: Sequence[str], integers: Sequence[str] = ()) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = pa.schema(
            [(name, pa.int64() if name in integers else pa.string()) for name in columns]
        )
        self._rows: list[tuple[Any, ...]] = []
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", write_page_checksum=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def append(self, *row: str | int | None) -> None:
        """Add one row, in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(values, field.type)
                for values, field in zip(columns, self._schema, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
            self._rows = []


class TextFile(RowWriter):
    """Writes a file of text/, each row once, without what leaks; counts everything."""

    def __init__(self, path: Path, leaks: LeakFilter, *, roles: bool = False) -> None:
        """Open the file.

        Args:
            path: of the file.
            leaks: knows the evaluation sets.
            roles: with a column that says what each text is: "query", "document" or "text".
        """
        super().__init__(path, ("text", "source", *(("role",) if roles else ())))
        self.counts = RowCounts()
        self._leaks, self._roles = leaks, roles
        self._seen: set[bytes] = set()

    def add(self, text: str, source: str, role: str = "text") -> None:
        """Write a text, unless there is a reason against it."""
        text = clean_text(text)
        self.counts.read[source] += 1
        if not text:
            self.counts.drop(source, "empty")
        elif not _is_new(text, self._seen):
            self.counts.drop(source, "duplicate")
        elif leak := self._leaks.find(text):
            self.counts.drop(source, str(leak))
        else:
            self.append(text, source, *((role,) if self._roles else ()))
            self.counts.kept[source] += 1


class PairFile(RowWriter):
    """Writes a file of pairs/, each row once, without what leaks; counts everything."""

    def __init__(self, path: Path, leaks: LeakFilter) -> None:
        super().__init__(path, ("anchor", "positive", "negative", "source"))
        self.counts = RowCounts()
        self._leaks = leaks
        self._seen: set[bytes] = set()

    def add(self, pair: Pair) -> None:
        """Write a pair, unless there is a reason against one of its texts."""
        anchor, positive = clean_text(pair.anchor), clean_text(pair.positive)
        negative = next(map(clean_text, pair.negatives), "") or None
        sides = (anchor, positive, negative or "")
        self.counts.read[pair.source] += 1
        if not (anchor and positive) or anchor == positive:
            self.counts.drop(pair.source, "empty or equal sides")
        elif not _is_new(f"{anchor}\0{positive}", self._seen):
            self.counts.drop(pair.source, "duplicate")
        elif leak := next(filter(None, map(self._leaks.find, sides)), None):
            self.counts.drop(pair.source, str(leak))
        else:
            self.append(anchor, positive, negative, pair.source)
            self.counts.kept[pair.source] += 1


class TrainingFiles(contextlib.ExitStack):
    """A file of text/ and one of pairs/, open together."""

    def __init__(
        self, folder: Path, leaks: LeakFilter, name: str = "train", *, roles: bool = False
    ) -> None:
        super().__init__()
        file = f"{name}.parquet"
        self.texts = self.enter_context(TextFile(folder / "text" / file, leaks, roles=roles))
        self.pairs = self.enter_context(PairFile(folder / "pairs" / file, leaks))


def _is_new(text: str, seen: set[bytes]) -> bool:
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    new = key not in seen
    seen.add(key)
    return new


def clean_text(text: str) -> str:
    """Return a text that every reader can take: no lone surrogate, no NUL, no blank ends."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", " ").strip()


def make_retrieval_set(name: str, pairs: Iterable[tuple[str, str]]) -> RetrievalSet:
    """Make a retrieval set of (question, document) pairs; equal documents become one."""
    document_ids: dict[str, str] = {}
    queries, relevant = [], {}
    for number, (question, document) in enumerate(pairs):
        document_id = document_ids.setdefault(document, f"d{len(document_ids)}")
        queries.append(question)
        relevant[f"q{number}"] = {document_id: 1}
    return RetrievalSet(
        name=name,
        query_ids=list(relevant),
        queries=queries,
        document_ids=list(document_ids.values()),
        documents=list(document_ids),
        relevant=relevant,
    )


def write_retrieval_set(retrieval_set: RetrievalSet, folder: Path) -> None:
    """Write the three Parquet files of a set below `folder` (retrieval/)."""
    name = f"{retrieval_set.name}.parquet"
    for kind, ids, texts in (
        ("corpus", retrieval_set.document_ids, retrieval_set.documents),
        ("queries", retrieval_set.query_ids, retrieval_set.queries),
    ):
        with RowWriter(folder / kind / name, ("_id", "text")) as writer:
            for key, text in zip(ids, texts, strict=True):
                writer.append(key, text)
    with RowWriter(folder / "qrels" / name, ("query-id", "corpus-id")) as writer:
        for query in retrieval_set.query_ids:
            for document in sorted(retrieval_set.relevant[query]):
                writer.append(query, document)


def write_retrieval_card(folder: Path) -> None:
    """Write retrieval/README.md: which file is which config and split, for `datasets`.

    `datasets` keys its cache by the folder's name and these lines, not by what the files hold: two
    folders, or one made anew, would answer for each other. So the lines carry the files' digest.
    """
    lines = ["---", "configs:"]
    for kind in ("corpus", "queries", "qrels"):
        digest = storage.digest_folder(folder / kind)
        lines += [f"- config_name: {kind}", f"  description: sha256 {digest}", "  data_files:"]
        for name, title in RETRIEVAL_SETS.items():
            lines += [f"  - split: Nano{title}", f"    path: {kind}/{name}.parquet"]
    lines += [
        "---",
        "Offline retrieval sets in the NanoBEIR layout, written by get_offline_assets.py.",
        f"Models are selected on {', '.join(SELECTION_SETS)}; the others are only reported.",
        "Sources: SciQ (CC BY-NC 3.0), BoolQ (CC BY-SA 3.0), SQuAD and Wikipedia (CC BY-SA 4.0).",
    ]
    storage.write_text(folder / "README.md", "\n".join(lines) + "\n")


def register_with_nano_beir() -> None:
    """Tell sentence-transformers' NanoBEIREvaluator the names of our sets.

    It refuses names that are not in its own table, whatever the folder holds. Afterwards
    `NanoBEIREvaluator(["sciq", "boolq"], dataset_id="assets/retrieval")` works, offline too.
    """
    from sentence_transformers.sentence_transformer.evaluation import nano_beir

    nano_beir.DATASET_NAME_TO_HUMAN_READABLE.update(RETRIEVAL_SETS)


def write_sentence_pairs(path: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    """Write labelled sentence pairs: sentence1, sentence2, label."""
    with RowWriter(path, ("sentence1", "sentence2", "label"), integers=("label",)) as writer:
        for first, second, label in rows:
            writer.append(clean_text(first), clean_text(second), label)
