"""Promises of references.py: what is there is never taken for a hub id, nor what can be none."""

from pathlib import Path

import pytest

from small_modernbert.runs import references
from small_modernbert.runs.errors import UserError


@pytest.mark.parametrize("name", ["my.jsonl", "MY.PARQUET", "my/own.tsv", "notes", "a b.txt.gz"])
def test_a_file_that_is_there_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever it is called, from the working directory or by its whole path."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("", encoding="utf-8")
    assert references.find_file(name, "PAIRS", "") == path
    assert references.find_file(str(path), "PAIRS", "") == path
    with pytest.raises(
        UserError, match="is a file, where a folder, .* wanted; name its folder, "
    ) as no:
        references.locate(name, "toys")
    assert references.locate(str(no.value).rpartition(", ")[2], "toys") == path.parent


@pytest.mark.parametrize(
    "reference",
    ["my.jsonl", "no/such.CSV", "/no/such", "~/no/such", "./such", "../such/", "a/b/c"],
)
def test_what_can_be_no_hub_id_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """A path that is spelt wrong is told as such, not looked for on the hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"PAIRS: .* is not there; check it"):
        references.find_file(reference, "PAIRS", "check it")


@pytest.mark.parametrize(
    "reference",
    ["gpt2", "owner/name", "owner/name-v1.5", "owner/name@abc", "distil_modernbert/a/b"],
)
def test_hub_ids_and_stages_are_no_paths(reference: str) -> None:
    """They are looked for elsewhere."""
    assert references.find_file(reference, "PAIRS", "") is None


def test_a_folder_here_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`owner/name` that lies in the working directory is that folder."""
    monkeypatch.chdir(tmp_path)
    assert references.locate("owner/name", "toys") is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert references.locate("owner/name", "toys") == tmp_path / "owner" / "name"


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with ~ means the user's own; of somebody who is nobody here nothing is found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "my own.jsonl").touch()
    wanted = tmp_path / "texts" / "my own.jsonl"
    assert references.find_file("~/texts/my own.jsonl", "TEXT", "x") == wanted.resolve()
    assert references.locate("~/texts", "r") == (tmp_path / "texts").resolve()
    assert references.find("~nobody-here/texts") is None
    monkeypatch.setenv("RUNS", "~/runs")
    assert references.runs_folder() == (tmp_path / "runs").resolve()


@pytest.mark.parametrize("recipe", ["", " ", "..", "a/../../b", "/tmp/x"])
def test_a_recipe_is_a_folder_in_runs(recipe: str) -> None:
    """A name that leads elsewhere is refused before anything is written."""
    with pytest.raises(UserError, match="--recipe small_v2"):
        references.recipe_folder(recipe)
