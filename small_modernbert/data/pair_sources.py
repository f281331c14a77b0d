"""Where pairs come from: rows of a table for the hub's datasets, Parquet files of one's own."""

import dataclasses
import re
from pathlib import Path

from small_modernbert.data import corpora, parquet
from small_modernbert.runs.errors import UserError

INDEX = "triplets.json"
_NEGATIVE = re.compile(r"negative(?:_(\d+))?")


@dataclasses.dataclass(frozen=True)
class PairSource:
    """One row of the table of pairs.

    Attributes:
        name: what reports call it.
        id: a dataset of the hub, a folder in the hub's layout, or one Parquet file.
        anchor: the column with the anchors.
        positive: the column with the positives.
        negatives: columns with negatives, of texts or of lists of texts; none for pairs.
        config: of a hub dataset; None where there is only one.
        split: of a hub dataset.
        revision: a commit of a hub dataset; None takes the newest and says so.
        label: a column that says of each row where it is from; None for `name` itself.
        cap: rows to read, 0 for all; a seeded choice, see `corpora.read_source`.
        licence: of the texts.
    """

    name: str
    id: str
    anchor: str = "anchor"
    positive: str = "positive"
    negatives: tuple[str, ...] = ()
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    label: str | None = None
    cap: int = 0
    licence: str = "unknown: see the dataset's card"

    @property
    def rows(self) -> corpora.Source:
        """The source as `corpora.read_source` reads it."""
        shared = {field.name for field in dataclasses.fields(corpora.Source)} - {"columns", "join"}
        same = {name: getattr(self, name) for name in shared}
        return corpora.Source(columns=(self.anchor, self.positive, *self.negatives), **same)


# Revisions are not pinned, and columns and licences are from memory: the hub was out of reach where
# this was written. A wrong column is refused by name; of licences, the dataset's card decides.
SOURCES = {
    source.name: source
    for source in (
        PairSource(
            name="all-nli",
            id="sentence-transformers/all-nli",
            config="triplet",
            negatives=("negative",),
            licence="SNLI CC BY-SA 4.0, MultiNLI OANC and others",
        ),
        PairSource(
            name="quora-duplicates",
            id="sentence-transformers/quora-duplicates",
            config="triplet",
            negatives=("negative",),
            licence="Quora's terms: non-commercial",
        ),
        PairSource(
            name="natural-questions",
            id="sentence-transformers/natural-questions",
            anchor="query",
            positive="answer",
            licence="CC BY-SA 3.0",
        ),
        PairSource(
            name="trivia-qa",
            id="sentence-transformers/trivia-qa-triplet",
            config="triplet",
            negatives=("negative",),
            licence="see the dataset's card; the passages are Wikipedia's, CC BY-SA",
        ),
        PairSource(
            name="gooaq",
            id="sentence-transformers/gooaq",
            anchor="question",
            positive="answer",
            # Three million rows of one kind would drown the others.
            cap=250_000,
            licence="Apache-2.0; the answers are of web pages",
        ),
        PairSource(
            name="msmarco",
            id="sentence-transformers/msmarco-msmarco-distilbert-base-v3",
            config="triplet",
            anchor="query",
            negatives=("negative",),
            licence="MS MARCO terms: non-commercial research",
        ),
    )
}


def find_sources(reference: str | Path) -> list[PairSource]:
    """Turn a reference into rows like those of the table.

    Args:
        reference: a name in SOURCES, a Parquet file with the columns anchor and positive (and, if
            it has them, negative, negative_1 ... or the list negatives, and source), or a folder
            of such files. In the folder of relabel_triplets.py, its training shards are meant.

    Raises:
        UserError: it is none of these, or a file lacks a column.
    """
    if str(reference) in SOURCES:
        return [SOURCES[str(reference)]]
    place = Path(reference)
    if place.is_dir():
        inside = place / "train" if (place / INDEX).exists() else place
        files = sorted(inside.glob("*.parquet"))
    else:
        files = [place] if place.is_file() else []
    if not files:
        raise UserError(
            f"no such pairs: {reference}; give a Parquet file, a folder of them, or a name of: "
            f"{', '.join(SOURCES)}"
        )
    return [_describe(path) for path in files]


def _describe(path: Path) -> PairSource:
    names = parquet.read_schema(path, "give other pairs").names
    for column in ("anchor", "positive"):
        if column not in names:
            raise UserError(f"{path} has no column {column!r}; it has: {', '.join(names)}")
    numbered = [(name, _NEGATIVE.fullmatch(name)) for name in names if name != "negatives"]
    found = sorted((int(match[1] or 0), name) for name, match in numbered if match)
    listed = ["negatives"] if "negatives" in names else []
    return PairSource(
        name=path.stem,
        id=str(path),
        negatives=tuple([name for _, name in found] + listed),
        label="source" if "source" in names else None,
        licence=f"of the texts in {path.name}",
    )
