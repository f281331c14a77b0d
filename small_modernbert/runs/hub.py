"""The hub: its data sets as batches of rows, its models as folders, its failures in one line."""

import functools
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from small_modernbert.runs import report
from small_modernbert.runs.errors import UserError, causes

BATCH_ROWS = 1_000
SHUFFLE_WINDOW = 10_000
SHUFFLE_FILES = 100  # that a window is filled from: files are sorted, by subject or by date
RETRIES, RETRY_SECONDS = 5, 10  # beyond the library's own, which last some two minutes
KNOCK_SECONDS = 15
# What loading a model needs, and its card; neither its other exports nor any code of it.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
IN_TABLE = "correct it in its row of the tables in small_modernbert/data/hub_datasets.py"
_COMMIT = re.compile(r"\b[0-9a-f]{40}\b")
# id -> what was read of it in this process, "main at <commit>": a run.json has them all.
revisions: dict[str, str] = {}
logger = logging.getLogger(__name__)


def stream_rows(
    id: str,
    config: str | None,
    split: str,
    revision: str | None,
    columns: Sequence[str],
    *,
    batch_rows: int = BATCH_ROWS,
    shuffle_seed: int | None = None,
) -> Iterator[dict[str, list[Any]]]:
    """Yield batches of rows of a dataset as lists by column, without downloading it first.

    Args:
        id: a dataset of the hub, or a local folder in the hub's layout (Parquet or JSON lines).
        config: of the dataset; None where there is only one.
        split: "train", say.
        revision: a commit; None takes the newest and says so, once.
        columns: the columns to return; checked before anything is read in bulk.
        batch_rows: rows a batch.
        shuffle_seed: shuffles the dataset's files, and its rows in a window of
            `SHUFFLE_WINDOW`; None keeps the order.

    Raises:
        UserError: it cannot be reached, is not there, is gated, or has other columns; the
            message is one line with the cure.
    """
    local = Path(id).expanduser().is_dir()
    name = f"{id} (config {config})" if config else id
    if not local:
        warn_unpinned(id, revision)
    rows = failures = 0
    while True:
        try:
            if not local:
                _knock()
                # What is taken up after a break must be the very same rows.
                revision = _settle_revision(id, revision)
            stream = _open(id, config, split, None if local else revision, columns, shuffle_seed)
            # The order is the same each time: what was given is passed over.
            for batch in (stream.skip(rows) if rows else stream).iter(batch_size=batch_rows):
                yield batch
                rows, failures = rows + len(next(iter(batch.values()))), 0
            return
        except UserError:
            raise
        except Exception as error:  # whatever the hub's many libraries raise, with the cure
            failures += 1
            if not rows or failures > RETRIES or not _is_unreachable(error):
                raise explain(error, f"dataset {name}", split) from error
            logger.warning("dataset %s broke off after %s rows, and is taken up", name, f"{rows:,}")
            time.sleep(RETRY_SECONDS)


def _open(
    id: str,
    config: str | None,
    split: str,
    revision: str | None,
    columns: Sequence[str],
    shuffle_seed: int | None,
) -> Any:  # noqa: ANN401  a streaming dataset; the library is imported only here
    """Return some columns of a dataset as a stream; see `stream_rows`.

    Raises:
        UserError: it has others.
    """
    import datasets

    datasets.disable_progress_bars()
    asked = {"name": config, "split": split, "revision": revision, "streaming": True}
    stream = datasets.load_dataset(id, **asked)
    # JSON lines say what columns they have only when a row is read.
    names = stream.column_names or list(next(iter(stream.take(1)), {}))
    if missing := [column for column in columns if column not in names]:
        name = f"{id} (config {config})" if config else id
        raise UserError(
            f"dataset {name}, split {split}: no column {', '.join(missing)}; it has: "
            f"{', '.join(names)}; {IN_TABLE}"
        )
    # Of Parquet only these are fetched at all; other kinds know no `columns` and say so.
    with suppress(ValueError):
        stream = datasets.load_dataset(id, columns=list(columns), **asked)
    stream = stream.select_columns(list(columns))
    if shuffle_seed is None:
        return stream
    return stream.shuffle(
        seed=shuffle_seed, buffer_size=SHUFFLE_WINDOW, max_buffer_input_shards=SHUFFLE_FILES
    )


def _knock() -> None:
    """Raise at once if the hub is out of reach; its own client would try for half a minute."""
    from huggingface_hub import constants, utils

    if not constants.HF_HUB_OFFLINE:
        utils.get_session().head(constants.ENDPOINT, timeout=KNOCK_SECONDS)


@functools.cache
def warn_unpinned(id: str, revision: str | None) -> None:
    """Say, once a process, that a hub id without a commit means whatever is newest, or can move."""
    if revision is None:
        logger.warning("%s: no revision is pinned, the newest is taken", id)
    elif not _COMMIT.fullmatch(revision):
        logger.warning(
            "%s: revision %r can move, it is no commit; 40 hex digits pin it", id, revision
        )


def _settle_revision(id: str, revision: str | None) -> str | None:
    """Return the commit of a dataset that a revision means now, and note it."""
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(id, revision=revision).sha
    note_commit(id, revision, str(commit))
    return commit or revision


def note_commit(id: str, revision: str | None, place: object) -> None:
    """Note, and say once, which commit was read where the revision can move.

    Args:
        id: of the model or dataset.
        revision: that was asked for.
        place: the commit, or what names it: the path of a file in a cache.
    """
    commit = _COMMIT.search(str(place))
    if commit is None or revision == commit[0]:
        return
    read = f"{revision or 'main'} at {commit[0]}"
    if revisions.get(id) != read:
        revisions[id] = read
        logger.info("%s: revision %s; %s@%s pins it", id, read, id, commit[0])


def note_cached(id: str, revision: str | None, name: str) -> None:
    """Note the commit of a model's file that some library has fetched."""
    from huggingface_hub import try_to_load_from_cache

    note_commit(id, revision, try_to_load_from_cache(id, name, revision=revision))


@contextmanager
def cached_if_unreachable(reference: Path | str, revision: str | None = None) -> Iterator[None]:
    """Load inside this: with the hub out of reach, what is cached is taken or missed at once.

    The hub's clients would try each file for half a minute, and say so in many lines.

    Args:
        reference: what is loaded; nothing happens for a folder.
        revision: the commit asked for; a hub id without one is warned about.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not Path(reference).is_dir():
        warn_unpinned(str(reference), revision)
        try:
            _knock()
        except Exception:  # out of reach, in whichever library's words
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch_file(id: str, revision: str | None, name: str) -> Path:
    """Return the path of one file of a model of the hub; the cached one if it is out of reach.

    Raises:
        UserError: see `stream_rows`.
    """
    warn_unpinned(id, revision)
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        try:
            _knock()
        except Exception:  # out of reach, in whichever library's words: what is cached will do
            cached = try_to_load_from_cache(id, name, revision=revision)
            if not isinstance(cached, str):
                raise
            path = cached
        else:
            path = hf_hub_download(id, name, revision=revision)
        note_commit(id, revision, path)
        return Path(path)
    except Exception as error:  # whatever the hub's many libraries raise, with the cure
        raise explain(error, f"{name} of {id}") from error


def fetch_model(id: str, revision: str | None) -> Path:
    """Return the folder of a hub model: weights in safetensors, configuration, tokenizer; no code.

    Raises:
        UserError: it can't be had; the message names `make run`.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    asked = {"revision": revision, "allow_patterns": MODEL_FILES, "tqdm_class": report.bar_class()}
    try:
        with cached_if_unreachable(id, revision):
            folder = Path(snapshot_download(id, **asked))
            # Out of reach, the folder is whatever was fetched before: a tokenizer alone, say.
            if constants.HF_HUB_OFFLINE and not any(folder.glob("*.safetensors")):
                raise ConnectionError("only a part of it is cached")
            note_commit(id, revision, folder)
            return folder
    except HFValidationError:
        raise UserError(
            f"{id!r} is neither a folder, a stage, nor a hub id; correct it: owner/name"
        ) from None
    except Exception as error:  # whatever the hub's many libraries raise, with the cure
        raise explain(error, f"model {id}") from error


def _is_unreachable(error: Exception) -> bool:
    kinds = {kind.__name__ for link in causes(error) for kind in type(link).__mro__}
    return bool(kinds & _UNREACHABLE)


def explain(error: Exception, what: str, split: str = "") -> UserError:
    """Turn a failure of the hub's libraries into one line that says what to do.

    Args:
        error: what was raised.
        what: "dataset x", "tokenizer y": the subject of the sentence.
        split: that was asked for, if any.
    """
    chain = list(causes(error))
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    said = " ".join(str(error).split()) or type(error).__name__
    # datasets tells by its words alone: "Dataset 'x/y' is a gated dataset on the Hub".
    if "GatedRepoError" in kinds or any("is a gated" in str(link).lower() for link in chain):
        return UserError(
            f"{what} is gated: accept its terms on its page on the hub, then run: hf auth login"
        )
    if kinds & _NO_REPOSITORY and "revision '" not in said.lower():
        # The hub does not tell a stranger which of the two it is.
        return UserError(f"{what} is not there, or is private; check the id, or run: hf auth login")
    if "unknown split" in said.lower() or "bad split" in said.lower():
        return UserError(f"{what} has no split {split!r} ({said}); {IN_TABLE}")
    if "BuilderConfig" in said or "config name" in said.lower():
        return UserError(f"{what}: no such config ({said}); {IN_TABLE}")
    if kinds & _UNREACHABLE:
        return UserError(f"{what} cannot be reached ({said}); for a run without a hub: make run")
    if kinds & _NOT_THERE:
        return UserError(
            f"{what} is not there ({said}); check the id and the revision (owner/name@commit)"
        )
    return UserError(
        f"{what} cannot be read ({type(error).__name__}: {said}); run the same command again, or "
        "name another one; for a run without a hub: make run"
    )


# By name: the libraries that define them take seconds to import.
_UNREACHABLE = {
    "ConnectionError",
    "ConnectError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "TimeoutException",
    "TimeoutError",
    "TransportError",
    "SocketBlockedError",
    "SocketConnectBlockedError",
    "gaierror",
}
_NO_REPOSITORY = {"DatasetNotFoundError", "RepositoryNotFoundError"}
_NOT_THERE = _NO_REPOSITORY | {
    "RevisionNotFoundError",
    "EntryNotFoundError",
    "EmptyDatasetError",
    "DataFilesNotFoundError",
    "FileNotFoundError",
}


def split_revision(reference: str) -> tuple[str, str | None]:
    """Split `owner/name@revision` into the hub id and the revision, None if not given."""
    name, _, revision = reference.partition("@")
    return name, revision or None
