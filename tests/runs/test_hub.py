"""hub.py: local folders in the hub's layout, and what is said when the hub fails."""

import json
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_modernbert.runs import hub
from small_modernbert.runs.errors import UserError

ROWS = [{"query": f"q{i}", "positive": f"p{i}", "negative": None} for i in range(25)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each shuffled stream the seconds that the library leaves to its threads."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A dataset of 25 JSON lines, in the hub's layout."""
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    return str(tmp_path)


def read(folder: str, *columns: str, **options: Any) -> list[Any]:  # noqa: ANN401  passed on
    """Return the first column's values."""
    batches = hub.stream_rows(folder, None, "train", None, columns, batch_rows=10, **options)
    return [value for batch in batches for value in batch[columns[0]]]


def test_reads_a_local_folder(folder: str) -> None:
    """Rows come in order, in batches, with the columns asked for and None where there is None."""
    batches = list(
        hub.stream_rows(folder, None, "train", None, ["query", "negative"], batch_rows=10)
    )
    assert [len(batch["query"]) for batch in batches] == [10, 10, 5]
    assert all(set(batch) == {"query", "negative"} for batch in batches)
    assert [v for batch in batches for v in batch["query"]] == [row["query"] for row in ROWS]
    assert batches[0]["negative"] == [None] * 10


def test_shuffles_by_the_seed(folder: str) -> None:
    """A seed decides the order, and nothing is lost."""
    first = read(folder, "query", shuffle_seed=1)
    assert first == read(folder, "query", shuffle_seed=1)
    assert first != read(folder, "query", shuffle_seed=2)
    assert sorted(first) == sorted(row["query"] for row in ROWS)


def test_names_a_missing_column(folder: str) -> None:
    """A wrong column is refused before any row is read, and those that exist are named."""
    with pytest.raises(UserError, match="no column body; it has: query, positive, negative"):
        next(hub.stream_rows(folder, None, "train", None, ["query", "body"]))


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (None, "test", "no split 'test'"),  # a split that is not there
        ("en", "train", "no such config"),  # a config that is not there
    ],
)
def test_names_what_is_wrong(folder: str, config: str | None, split: str, message: str) -> None:
    """A wrong split or config is one line that names it."""
    with pytest.raises(UserError, match=message):
        next(hub.stream_rows(folder, config, split, None, ["query"]))


def test_says_that_a_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: one line that names `make run`; the unpinned revision is warned of."""
    warned: list[str] = []
    monkeypatch.setattr(hub.logger, "warning", lambda line, *values: warned.append(line % values))
    with (
        pytest.warns(UserWarning, match="socket"),
        pytest.raises(UserError, match="x/y cannot be reached.*make run") as caught,
    ):
        next(hub.stream_rows("x/y", None, "train", None, ["text"]))
    assert "\n" not in str(caught.value)
    assert warned == ["x/y: no revision is pinned, the newest is taken"]


def test_file_out_of_reach_and_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's file that can't be fetched is one line too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with (
        pytest.warns(UserWarning, match="socket"),
        pytest.raises(UserError, match="tokenizer.json of x/y cannot be reached"),
    ):
        hub.fetch_file("x/y", "abc", "tokenizer.json")


@pytest.mark.parametrize("kind", ["tokenizer", "teacher", "donor"])
def test_model_out_of_reach_is_one_line_at_once(kind: str) -> None:
    """A model's hub id without a network: no minute of retries, one line that names `make run`."""
    from huggingface_hub import constants

    from small_modernbert.models import students, teachers

    load = {
        "tokenizer": students.load_tokenizer,
        "teacher": teachers.load_teacher,
        "donor": lambda id: students.load_donor(id),
    }[kind]
    begun = time.monotonic()
    with (
        pytest.warns(UserWarning, match="socket"),
        pytest.raises(UserError, match=r"x/y.*make run") as caught,
    ):
        load("x/y")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 10
    assert not constants.HF_HUB_OFFLINE  # as it was before


class GatedRepoError(Exception):
    """Named like the hub's own."""


class DatasetNotFoundError(FileNotFoundError):
    """Named like the datasets library's own."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        # the library's own words, or its class somewhere in the chain
        (DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub"), "hf auth login"),
        (GatedRepoError("403"), "hf auth login"),
        (DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub"), "is not there"),
        (ConnectionError("reset\nby peer"), "cannot be reached .reset by peer."),
        (ValueError("odd"), "cannot be read .ValueError: odd."),
    ],
)
def test_explains(error: Exception, message: str) -> None:
    """Every failure becomes one line with its cure."""
    said = str(hub.explain(error, "dataset x"))
    assert "\n" not in said
    with pytest.raises(UserError, match=message):
        raise UserError(said)


def write_files(folder: Path, files: int, rows: int = 20) -> str:
    """Write a dataset of Parquet files whose rows name their file, with a wide column beside."""
    (folder / "data").mkdir(parents=True)
    for number in range(files):
        table = {"text": [f"{number} {row}" for row in range(rows)], "wide": ["x" * 999] * rows}
        name = f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(pa.table(table), folder / "data" / name)
    return str(folder)


def test_a_capped_choice_comes_from_many_files(tmp_path: Path) -> None:
    """The first rows after shuffling are of more than a file or two."""
    folder = write_files(tmp_path / "files", 30)
    chosen = read(folder, "text", shuffle_seed=1)[:60]
    assert len({text.split()[0] for text in chosen}) > 15


def test_only_the_columns_asked_for_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet is asked for the columns by name, so that a wide one beside them costs nothing."""
    asked = []
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *given, **named: asked.append(named.get("columns")) or load(*given, **named),
    )
    assert read(write_files(tmp_path / "files", 2), "text")[:2] == ["0 0", "0 1"]
    assert asked[-1] == ["text"]


def test_a_stream_that_breaks_off_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row arrives once and in its order, shuffled or not; a hub that stays away is said."""
    folder = write_files(tmp_path / "files", 4)
    whole = {seed: read(folder, "text", shuffle_seed=seed) for seed in (None, 3)}
    monkeypatch.setattr(hub, "RETRY_SECONDS", 0)
    opened = hub._open

    class Broken:
        """A stream whose connection is lost after some batches."""

        def __init__(self, stream: Any, batches: int) -> None:  # noqa: ANN401  a library's
            self.stream, self.batches = stream, batches

        def shuffle(self, **options: Any) -> "Broken":  # noqa: ANN401  passed on
            return Broken(self.stream.shuffle(**options), self.batches)

        def skip(self, rows: int) -> "Broken":
            return Broken(self.stream.skip(rows), self.batches)

        def iter(self, batch_size: int) -> Any:  # noqa: ANN401  a library's
            for number, batch in enumerate(self.stream.iter(batch_size=batch_size)):
                if number == self.batches:
                    raise ConnectionError("lost")
                yield batch

    monkeypatch.setattr(hub, "_open", lambda *asked: Broken(opened(*asked), 2))
    for seed, rows in whole.items():
        assert read(folder, "text", shuffle_seed=seed) == rows
    monkeypatch.setattr(hub, "_open", lambda *asked: Broken(opened(*asked), 0))
    with pytest.raises(UserError, match="cannot be reached"):
        read(folder, "text")
