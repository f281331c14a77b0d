"""Corpora: the sources they are made of, and the shards of texts they end up as."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from small_modernbert.data import parquet
from small_modernbert.runs import hub, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "corpus.json"
READ_ROWS = 2_000
# Rows of a Parquet row group: what a reader must hold at once.
GROUP_ROWS = 4_096
REMAKE = "run: python mlm/create_dataset.py --overwrite"
COLUMNS: dict[str, parquet.Kind] = {"text": "text", "source": "text", "tokens": "number"}
# A manifest may come from anywhere: no name of it leads out of the corpus.
_SHARD = re.compile(r"(train|held_out)/[\w-]+\.parquet")


@dataclasses.dataclass(frozen=True)
class Source:
    """One row of the table of sources.

    Attributes:
        name: what the corpus calls it.
        id: a dataset of the hub, a folder in the hub's layout, or one Parquet file.
        columns: the text columns.
        config: of a hub dataset; None where there is only one.
        split: of a hub dataset.
        revision: a commit of a hub dataset; None takes the newest and says so.
        join: "each": every column is a text (triplets); "joined": one text from all of them.
        label: a column that says of each row where it is from; None for `name` itself.
        cap: documents to read, 0 for all; a seeded choice, see `read_source`.
        licence: of the texts.
    """

    name: str
    id: str
    columns: tuple[str, ...]
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    join: Literal["each", "joined"] = "each"
    label: str | None = None
    cap: int = 0
    licence: str = "unknown: see the dataset's card"

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The columns to read: those with text, then the label."""
        return self.columns + ((self.label,) if self.label else ())


# Revisions are not pinned: they could not be looked up where this was written.
SOURCES = {
    source.name: source
    for source in (
        Source(
            name="msmarco",
            id="sentence-transformers/msmarco-msmarco-MiniLM-L6-v3",
            config="triplet",
            columns=("query", "positive", "negative"),
            licence="MS MARCO terms: non-commercial research",
        ),
        Source(
            name="philosophy",
            id="johnnyboycurtis/Philosophical-Triplets-Retrieval",
            columns=("query", "positive", "negative", "text_chunk"),
            licence="see the dataset's card; the entries are their authors'",
        ),
        Source(
            name="npr",
            id="sentence-transformers/npr",
            columns=("title", "body"),
            join="joined",
            licence="see the dataset's card; the articles are NPR's",
        ),
        Source(
            name="finewiki",
            id="HuggingFaceFW/finewiki",
            config="en",
            columns=("text",),
            # All of it is some seven million articles, most of them of no more use to a model
            # of 40 million parameters than the first half million.
            cap=500_000,
            licence="CC BY-SA 4.0",
        ),
        Source(
            name="offline",
            id="assets/text/train.parquet",
            columns=("text",),
            label="source",
            licence="boolq CC BY-SA 3.0, hellaswag MIT, socialiqa and winogrande CC BY, "
            "piqa AFL 3.0, others: see their cards",
        ),
    )
}


def select(names: list[str]) -> list[Source]:
    """Return the rows of the table that are named, in the order given.

    Raises:
        UserError: a name is unknown or given twice, or none is given.
    """
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names or len(set(names)) < len(names):
        wrong = f"no such source: {', '.join(unknown)}" if unknown else "name each source once"
        raise UserError(f"{wrong}; --sources takes some of: {' '.join(SOURCES)}")
    return [SOURCES[name] for name in names]


def read_source(source: Source, seed: int) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a source, some thousands at a time, as lists by column.

    Columns are checked before the first row is read. A cap is a seeded choice: of rows, for a
    Parquet file; of the stream after the hub's shuffling (of its files, and in a window of
    rows), for a dataset.

    Raises:
        UserError: the source is not there, or has other columns.
    """
    if source.id.endswith(".parquet"):
        rows = _read_parquet(source, seed)
    else:
        rows = hub.stream_rows(
            source.id,
            source.config,
            source.split,
            source.revision,
            source.all_columns,
            shuffle_seed=seed if source.cap else None,
        )
    left = source.cap or None
    for batch in rows:
        if left is not None:
            batch = {name: values[:left] for name, values in batch.items()}
            left -= len(batch[source.columns[0]])
        yield batch
        if left == 0:
            return


def count_source(source: Source) -> int | None:
    """Return the number of rows to come, for a progress bar; None if it is not known."""
    if source.id.endswith(".parquet"):
        rows = parquet.count_rows(Path(source.id), _cure(source))
        return min(rows, source.cap) if source.cap else rows
    return source.cap or None


def flatten(source: Source, batch: dict[str, list[Any]]) -> Iterator[tuple[Any, str]]:
    """Yield (cell, label) for every text in a batch of rows; cells are as they were found.

    A joined row is one text, its parts on paragraphs of their own; parts that are blank or no
    text are left out, and a row of nothing else is given as its first part.
    """
    columns = [batch[name] for name in source.columns]
    labels = batch[source.label] if source.label else [source.name] * len(columns[0])
    for cells, label in zip(zip(*columns, strict=True), labels, strict=True):
        label = label if isinstance(label, str) and label else source.name
        if source.join == "each":
            for cell in cells:
                yield cell, label
        else:
            parts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
            yield ("\n\n".join(parts) if parts else cells[0]), label


def _cure(source: Source) -> str:
    return f"correct source {source.name!r}, or run: python get_offline_assets.py"


def _read_parquet(source: Source, seed: int) -> Iterator[dict[str, list[Any]]]:
    import numpy as np
    import pyarrow as pa

    path, cure = Path(source.id), _cure(source)
    kinds: dict[str, parquet.Kind] = dict.fromkeys(source.columns, "texts")
    if source.label:
        kinds.setdefault(source.label, "any")
    keep = None
    rows = parquet.count_rows(path, cure)
    if 0 < source.cap < rows:
        keep = np.zeros(rows, dtype=bool)
        keep[np.random.default_rng(seed).choice(rows, source.cap, replace=False)] = True
    begin = 0
    for batch in parquet.read_batches(path, kinds, cure, rows=READ_ROWS):
        end = begin + batch.num_rows
        if keep is not None:
            batch = batch.filter(pa.array(keep[begin:end]))
        begin = end
        yield {name: parquet.to_list(batch.column(name)) for name in source.all_columns}


def check_lost(name: str, read: int, lost: Mapping[str, int], share: float) -> None:
    """Refuse a source of whose rows more than a share is no use.

    Rows that repeat another, or that a cap leaves out, are not lost: do not count them.

    Args:
        name: of the source.
        read: rows, or texts, read.
        lost: reason -> how many of them.
        share: that may be lost; 1 accepts everything.

    Raises:
        UserError: with the reasons, and the flag that accepts it.
    """
    total = sum(lost.values())
    if total > share * read:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in lost.items() if number)
        raise UserError(
            f"{name}: {total:,} of {read:,} rows are no use ({reasons}), more than the share of "
            f"{share:g} that may be lost; is it the right column? Mend the source, or accept it "
            "with --max-lost-share 1 --overwrite"
        )


def shard_schema() -> "pa.Schema":
    """Return the columns of a corpus: the text, where it is from, its number of tokens."""
    import pyarrow as pa

    return pa.schema([("text", pa.string()), ("source", pa.string()), ("tokens", pa.int32())])


def write_shard(path: Path, table: "pa.Table") -> dict[str, Any]:
    """Write one shard with page checksums; return its entry in the manifest."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    storage.check_space(path.parent, table.nbytes)
    pq.write_table(
        table, path, compression="zstd", row_group_size=GROUP_ROWS, write_page_checksum=True
    )
    return {"rows": table.num_rows, "sha256": storage.sha256_file(path)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the corpus.json of a corpus.

    Raises:
        UserError: `folder` holds no corpus, or one whose shards lie elsewhere.
    """
    manifest = storage.read_json(folder / MANIFEST, REMAKE)
    shards = manifest.get("shards") if isinstance(manifest, dict) else None
    if not isinstance(shards, dict):
        raise UserError(f"{folder / MANIFEST} names no shards; {REMAKE}")
    for name, entry in shards.items():
        known = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
        if not known or type(entry.get("rows")) is not int or not _SHARD.fullmatch(name):
            raise UserError(f"{folder / MANIFEST}: shard {name!r} is none of ours; {REMAKE}")
    for split, key in (("train", "rows"), ("held_out", "held_out")):
        rows = sum(entry["rows"] for name, entry in shards.items() if name.startswith(split))
        if rows != manifest.get(key, rows):
            raise UserError(
                f"{folder / MANIFEST}: {key} is {manifest.get(key)!r}, and its shards have "
                f"{rows:,}; {REMAKE}"
            )
    return manifest


def count_rows(folder: Path, split: str = "train") -> int:
    """Return the number of rows of one split of a corpus, from its manifest."""
    return sum(entry["rows"] for _, entry in _shards(folder, split))


def read_texts(
    folder: Path,
    split: str = "train",
    columns: tuple[str, ...] = ("text",),
    batch_rows: int = GROUP_ROWS,
) -> Iterator["pa.RecordBatch"]:
    """Yield the rows of one split of a corpus, in order, in batches.

    Every shard's row count is compared with the manifest before the first batch, its sha256
    before its own first batch, and every page's checksum as it is read.

    Raises:
        UserError: a shard is missing, damaged or not the one that was written.
    """
    shards = _shards(folder, split)
    for name, entry in shards:
        rows = parquet.count_rows(folder / name, REMAKE)
        if rows != entry["rows"]:
            raise _damaged(folder / name, f"{rows:,} rows, not {entry['rows']:,}")
    kinds: dict[str, parquet.Kind] = {name: COLUMNS[name] for name in columns}
    for name, entry in shards:
        path = folder / name
        if storage.sha256_file(path) != entry["sha256"]:
            raise _damaged(path, f"its sha256 is not the one in {MANIFEST}")
        yield from parquet.read_batches(path, kinds, REMAKE, rows=batch_rows, own=True)


def verify(folder: Path) -> None:
    """Read a whole corpus as a stage would.

    Raises:
        UserError: see `read_texts`.
    """
    for split in ("train", "held_out"):
        rows = sum(batch.num_rows for batch in read_texts(folder, split, ("text", "tokens")))
        if rows != count_rows(folder, split):
            raise _damaged(folder / split, f"{rows:,} rows could be read")


def _shards(folder: Path, split: str) -> list[tuple[str, dict[str, Any]]]:
    shards = read_manifest(folder)["shards"]
    return sorted((name, entry) for name, entry in shards.items() if name.startswith(f"{split}/"))


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); {REMAKE}")


def texts(folder: Path, split: str = "train") -> Iterator[str]:
    """Yield the texts of a split in order; see `read_texts`."""
    for batch in read_texts(folder, split):
        yield from batch.column(0).to_pylist()


def sources(folder: Path, split: str = "train") -> list[str]:
    """Return the source of each text of a split, in order; see `read_texts`."""
    return [
        name
        for batch in read_texts(folder, split, columns=("source",))
        for name in batch.column(0).to_pylist()
    ]
