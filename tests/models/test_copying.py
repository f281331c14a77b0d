"""Teachers whose layers cannot become a student are refused before anything is labelled."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from small_modernbert.models import copying
from small_modernbert.runs.errors import UserError


def changed(folder: Path, source: Path, file: str, **fields: object) -> Path:
    """Return a copy of a model folder with other fields in one of its files."""
    shutil.copytree(source, folder)
    config = json.loads((folder / file).read_text(encoding="utf-8")) | fields
    (folder / file).write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_teacher_that_will_do(teacher_folder: Path) -> None:
    """How much it reads is all that is told."""
    assert copying.check_teacher(teacher_folder, 2) == 64


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            "config.json",
            {"model_type": "distilbert"},
            "a distilbert model, .* of one of these: bert",
        ),
        ("config.json", {}, "has 2 layers, and a student takes 3"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "only mean or cls pooling"),
    ],
)
def test_a_teacher_that_will_not(
    teacher_folder: Path, tmp_path: Path, file: str, fields: dict[str, object], message: str
) -> None:
    """Family, depth and pooling are told by name, from the files alone."""
    folder = changed(tmp_path / "teacher", teacher_folder, file, **fields)
    with pytest.raises(UserError, match=message):
        copying.check_teacher(folder, 3)


def test_prompts_that_only_the_card_names(
    teacher_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """E5's folder names none, and its labels would be others; a folder that does is let be."""
    said, name = {"prompts": {}}, "config_sentence_transformers.json"
    shutil.copytree(teacher_folder, tmp_path / "plain")
    (tmp_path / "plain" / name).write_text(json.dumps(said), encoding="utf-8")
    (tmp_path / "plain" / "README.md").write_text('Start with "query: " or "passage: ".\n')
    with caplog.at_level(logging.WARNING):
        copying.check_teacher(tmp_path / "plain", 2)
    assert "--query-prompt" in caplog.text
    caplog.clear()
    prompts = {"query": "query: ", "document": "passage: "}
    copying.check_teacher(changed(tmp_path / "named", tmp_path / "plain", name, prompts=prompts), 2)
    assert not caplog.text
