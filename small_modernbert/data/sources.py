"""Sources of rows: datasets of the hub and files, described by rows of tables, read here."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from small_modernbert.data import file_rows, parquet
from small_modernbert.data.file_rows import DataFile
from small_modernbert.runs import hub, references
from small_modernbert.runs.errors import UserError

READ_ROWS = file_rows.READ_ROWS
# Rows of larger files are not counted ahead: only Parquet says their number without being read.
COUNTED_BYTES = 1 << 26
# What part a text plays in a search, which decides the prompt that a teacher puts before it.
Role = Literal["query", "document", "text"]
ROLES: tuple[Role, ...] = ("query", "document", "text")
ANCHOR_ROLES: tuple[Role, ...] = ("query", "text")


def answer_role(anchor: Role) -> Role:
    """Return the role of a pair's other texts: where nobody asks, nothing answers."""
    return "document" if anchor == "query" else "text"


class Cell(NamedTuple):
    """A cell of a source as it was read.

    Attributes:
        value: whatever stood there; not always text.
        label: where it is from.
        role: what part it plays.
    """

    value: Any
    label: str
    role: Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What every row of a table says.

    Attributes:
        name: what corpora and reports call it.
        id: a dataset of the hub, or a file or folder, see `file_rows`.
        config: of a hub dataset; None where there is only one.
        split: of a hub dataset.
        revision: a commit of a hub dataset; None takes the newest and says so.
        label: a column that says of each row where it is from; None for `name` itself.
        cap: rows to read, 0 for all; a seeded choice, see `read_source`.
        licence: of the texts.
        places: files and folders, where more than the one that `id` can name are meant.
    """

    name: str
    id: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    label: str | None = None
    cap: int = 0
    licence: str = "unknown: see the dataset's card"
    places: tuple[Path, ...] = ()

    # What the columns hold.
    kind: ClassVar[parquet.Kind] = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns with text."""
        raise NotImplementedError

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The columns to read: those with text, then the label."""
        return self.columns + ((self.label,) if self.label else ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """A source of texts.

    Attributes:
        texts: the text columns.
        join: "each": every column is a text (triplets); "joined": one text from all of them.
        roles: of each text column; none given = "text" for all.
        role: a column that says it of each row, where it names a role.
    """

    texts: tuple[str, ...]
    join: Literal["each", "joined"] = "each"
    roles: tuple[Role, ...] = ()
    role: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns with text."""
        return self.texts

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The columns to read: those with text, then the label, then the role."""
        return super().all_columns + ((self.role,) if self.role else ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSource(Source):
    """A source of pairs or triplets.

    Attributes:
        anchor: the column with the anchors.
        positive: the column with the positives.
        negatives: columns with negatives, of texts or of lists of texts; none for pairs.
        anchor_role: "query": anchors ask, and all other texts are documents; "text": both sides are
            alike (paraphrases, inference, duplicates), and neither asks.
        role: a column that says it of each row, where it says one of these two.
    """

    kind: ClassVar[parquet.Kind] = "texts"

    anchor: str = "anchor"
    positive: str = "positive"
    negatives: tuple[str, ...] = ()
    anchor_role: Role = "query"
    role: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns with text."""
        return (self.anchor, self.positive, *self.negatives)

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The columns to read: those with text, then the label, then the role."""
        return super().all_columns + ((self.role,) if self.role else ())


class Part(NamedTuple):
    """A share of a source's rows, which one task reads.

    Attributes:
        file: place of its file among those of the source; None for all rows of the source.
        begin: its first row in that file.
        end: the row behind its last one; None for the file's end.
    """

    file: int | None = None
    begin: int = 0
    end: int | None = None


def split_source(source: Source, rows: int) -> list[Part]:
    """Return the parts of a source, in the order of its rows.

    A Parquet file is cut anywhere, since its rows need not be read to be counted; another file is
    a part of its own, and so is a dataset of the hub, or a source that a cap chooses rows of.

    Args:
        source: to be cut.
        rows: of a part, at most, where it can be cut.
    """
    files = find_files(source)
    if files is None or source.cap:
        return [Part()]
    parts = []
    for number, file in enumerate(files):
        if file_rows.ending_of(file.path) not in (".parquet", ".pq"):
            parts.append(Part(number))
            continue
        total = file_rows.count_rows(file.path, _cure(source))
        parts += [Part(number, begin, min(begin + rows, total)) for begin in range(0, total, rows)]
    return parts


def read_part(source: Source, part: Part, seed: int) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a part as `read_source` would.

    Raises:
        UserError: see `read_source`.
    """
    files = find_files(source)
    if part.file is None or files is None:
        yield from read_source(source, seed)
        return
    left = None if part.end is None else part.end - part.begin
    for batch in _read_files(source, [files[part.file]], seed, part.begin):
        batch = {name: cells[:left] for name, cells in batch.items()}
        yield batch
        if left is not None:
            left -= len(batch[source.columns[0]])
            if left <= 0:
                return


def read_source(source: Source, seed: int) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a source, some thousands at a time, as lists by column.

    A cap is a seeded choice: of all rows, for files; of the stream after the hub's shuffling (of
    its files, and in a window of rows), for a dataset. Rows of files that do not say where they
    are from are labelled with the name of their file.

    Raises:
        UserError: the source is not there, or has other columns.
    """
    if (files := find_files(source)) is not None:
        yield from _read_files(source, files, seed)
        return
    batches = hub.stream_rows(
        source.id,
        source.config,
        source.split,
        source.revision,
        source.all_columns,
        shuffle_seed=seed if source.cap else None,
    )
    left = source.cap or None
    for batch in batches:
        if left is not None:
            batch = {name: values[:left] for name, values in batch.items()}
            left -= len(batch[source.columns[0]])
        yield batch
        if left == 0:
            return


def find_files(source: Source) -> list[DataFile] | None:
    """Return the files of a source; None for a dataset of the hub, or a folder that is like one.

    Raises:
        UserError: it is a file or folder that is not there, or holds nothing that is read.
    """
    place = Path(source.id).expanduser()
    places = source.places or ((place,) if place.exists() else ())
    split = file_rows.split_named(source.split)
    if not places and references.is_path(source.id):
        raise UserError(f"{source.id} is not there; {_cure(source)}")
    if not places or source.config is not None or split is None:
        return None
    return file_rows.select_split(
        file_rows.find_files(*places, cure=_cure(source)), split, _cure(source)
    )


def count_source(source: Source) -> int | None:
    """Return the number of rows to come, for a progress bar; None if it is not known."""
    files = find_files(source)
    if files is None or sum(file.path.stat().st_size for file in files) > COUNTED_BYTES:
        return source.cap or None
    rows = sum(file_rows.count_rows(file.path, _cure(source)) for file in files)
    return min(rows, source.cap) if source.cap else rows


def flatten(source: TextSource, batch: dict[str, list[Any]]) -> Iterator[Cell]:
    """Yield every text in a batch of rows, as it was read.

    A joined row is one text, its parts on paragraphs of their own; parts that are blank or no
    text are left out, and a row of nothing else is given as its first part.
    """
    columns = [batch[name] for name in source.columns]
    rows = len(columns[0])
    labels = batch[source.label] if source.label else [source.name] * rows
    stated = batch[source.role] if source.role else [None] * rows
    roles = source.roles or ("text",) * len(columns)
    for cells, label, own in zip(zip(*columns, strict=True), labels, stated, strict=True):
        label = label if isinstance(label, str) and label else source.name
        parts: Iterable[tuple[Any, Role]] = zip(cells, roles, strict=True)
        if source.join == "joined":
            texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
            parts = [("\n\n".join(texts) if texts else cells[0], roles[0])]
        for cell, role in parts:
            yield Cell(cell, label, own if own in ROLES else role)


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


def _cure(source: Source) -> str:
    if source.places:
        return "give other --offline-text or --text-column, or run: python get_offline_assets.py"
    return f"correct source {source.name!r}, or run: python get_offline_assets.py"


def _read_files(
    source: Source, files: list[DataFile], seed: int, first_row: int = 0
) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of files; of the first file, those from `first_row` on."""
    cure = _cure(source)
    keep = _choose_rows(source, files, seed)
    columns: dict[str, parquet.Kind] = dict.fromkeys(source.columns, source.kind)
    optional = [name for name in source.all_columns if name not in columns]
    begin = 0
    for file in files:
        row = first_row if file is files[0] else 0
        for batch in file_rows.read_rows(file.path, columns, cure, optional=optional, begin=row):
            rows = len(batch[source.columns[0]])
            for name in optional:
                batch.setdefault(name, [None] * rows)
            if source.label:
                labels = batch[source.label]
                batch[source.label] = [label or file.name for label in labels]
            chosen = keep[begin : begin + rows] if keep is not None else None
            begin += rows
            if chosen is not None:
                batch = {name: list(compress(cells, chosen)) for name, cells in batch.items()}
            yield batch


def _choose_rows(source: Source, files: list[DataFile], seed: int) -> NDArray[np.bool_] | None:
    """Say of every row whether the cap takes it; None where there is no cap."""
    if not source.cap:
        return None
    rows = sum(file_rows.count_rows(file.path, _cure(source)) for file in files)
    keep = np.ones(rows, dtype=np.bool_)
    if source.cap < rows:
        keep[:] = False
        keep[np.random.default_rng(seed).choice(rows, source.cap, replace=False)] = True
    return keep
