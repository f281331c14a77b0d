"""Promises of shared_cache.py: what stages share is made once, by one process, and bounded."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from small_modernbert.data import token_store
from small_modernbert.models.loading import load_backend
from small_modernbert.runs import references, shared_cache
from small_modernbert.runs.stages import Stage

Open = Callable[..., Stage]


def test_one_entry_a_key(tmp_path: Path) -> None:
    """Equal keys have one folder and what is in it, other keys have another."""
    with shared_cache.entry(tmp_path / ".cache", ["digest", "tokens"]) as folder:
        (folder / "made").touch()
    with shared_cache.entry(tmp_path / ".cache", ["digest", "tokens"]) as again:
        assert (again / "made").exists()
    with shared_cache.entry(tmp_path / ".cache", ["digest", "vectors"]) as other:
        assert other != folder and not list(other.iterdir())


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    """Beyond the bound the entry that was used least recently goes; arrays mapped of it stay."""
    cache = tmp_path / ".cache"
    with shared_cache.entry(cache, 0) as first:
        np.arange(5, dtype=np.int32).tofile(first / "ids")
        mapped = np.memmap(first / "ids", dtype=np.int32, mode="r")
    for key in range(1, shared_cache.KEPT):
        with shared_cache.entry(cache, key):
            pass
    with shared_cache.entry(cache, 0) as first:  # used again: now 1 is the oldest
        pass
    with shared_cache.entry(cache, "new"):
        pass
    assert sum(path.is_dir() for path in cache.iterdir()) == shared_cache.KEPT
    assert first.exists()
    for key in range(2, 2 + shared_cache.KEPT):
        with shared_cache.entry(cache, f"newer {key}"):
            pass
    assert not first.exists()
    assert mapped.tolist() == [0, 1, 2, 3, 4]


def hold(cache: Path, seconds: float) -> None:
    """Make an entry slowly."""
    with shared_cache.entry(cache, "slow") as folder:
        (folder / "begun").touch()
        time.sleep(seconds)
        (folder / "made").touch()


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    """Who comes second waits and gets the whole; a maker that was killed keeps nobody waiting."""
    cache = tmp_path / ".cache"
    context = multiprocessing.get_context("fork")
    maker = context.Process(target=hold, args=(cache, 0.5))
    maker.start()
    while not list(cache.glob("*/begun")):
        time.sleep(0.01)
    with shared_cache.entry(cache, "slow") as folder:
        assert (folder / "made").exists()
    maker.join()
    killed = context.Process(target=hold, args=(tmp_path / "other", 60))
    killed.start()
    while not list((tmp_path / "other").glob("*/begun")):
        time.sleep(0.01)
    os.kill(killed.pid, 9)
    killed.join()
    with shared_cache.entry(tmp_path / "other", "slow") as folder:
        assert not (folder / "made").exists()


def test_tokens_are_shared_by_what_decides_them(open_stage: Open, wordpiece_folder: Path) -> None:
    """Two stages of a recipe tokenise an input once; another input or length is another entry."""
    backend = load_backend(wordpiece_folder, 64)
    reads: list[str] = []

    def texts(split: str) -> Iterator[str]:
        reads.append(split)
        yield from ["sun and rain", "wind"] if split == "train" else ["sun"]

    def tokens(**constants: str) -> dict[str, token_store.TokenStore]:
        with open_stage({"corpus": "hub/corpus"}, **constants) as stage:
            return token_store.store_splits(stage, "corpus", texts, backend)

    first, second = tokens(VARIANT="one"), tokens(VARIANT="two")
    assert reads == ["train", "held_out"]
    assert [ids.tolist() for ids in first["train"]] == [ids.tolist() for ids in second["train"]]
    assert len(second["held_out"]) == 1
    backend.enable_truncation(3)
    assert max(tokens(VARIANT="short")["train"].lengths) == 3
    assert len(reads) == 4
    tokens(RECIPE="another", VARIANT="one")
    assert len(reads) == 6
    assert len(list((references.runs_folder() / "toys" / ".cache").glob("*/train"))) == 2
