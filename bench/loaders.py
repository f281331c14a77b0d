r"""Whether older and newer releases read our folders alike: the same vectors, to 1e-5.

Reads: the tokenizer of assets/models (make assets), and exports that are named, if any.
Writes: docs/LOADERS.md, to be committed with what was found; prints it.

    make loaders
    python bench/loaders.py
    python bench/loaders.py --folders runs/offline/export_model/final

Each release is installed beside its own transformers, tokenizers and huggingface-hub into a folder
of its own, without dependencies: torch and the rest are those of the environment that runs this.
The folders that are read are made here, with random weights: a ModernBERT with a sliding window of
64 on both sides, one with [CLS], a Dense layer and prompts, and a BERT with a Dense layer. Texts go
beyond the window. Servers are not asked: what text-embeddings-inference, vLLM and transformers.js
want to find is held by tests/models/test_students.py, and golden_vectors.py asks one that runs.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import inputs

from small_modernbert.runs import references, report, settings, storage
from small_modernbert.runs.errors import UserError

if TYPE_CHECKING:
    from small_modernbert.models.students import Student

FOLDERS: list[str] = []  # exports to read beside the made ones
ONLY: list[str] = []  # some of the environments, by name
TOKENS: int = 256  # that the made students read
OUTPUT: str = "docs/LOADERS.md"  # where the table goes, from the repository
SEED: int = 42  # of the random weights

OWN = "this environment"
# What is put before the packages of this environment; nothing for its own.
ENVIRONMENTS = {
    "sentence-transformers 5.1": (
        "sentence-transformers==5.1.2",
        "transformers==4.57.3",
        "tokenizers==0.22.1",
        "huggingface-hub==0.36.0",
        "datasets==3.6.0",  # a newer one asks that hub client for what it has not
    ),
    "sentence-transformers 5.7": (
        "sentence-transformers==5.7.0",
        "transformers==5.5.4",
        "tokenizers==0.22.2",
        "huggingface-hub==1.33.0",
        "datasets==4.8.4",
        "httpx==0.28.1",  # of that hub client
        "httpcore==1.0.9",
    ),
    "fastembed 0.9": (
        "fastembed==0.9.1",
        "loguru==0.7.3",
        "mmh3==5.3.1",
        "py-rust-stemmers==0.1.8",
    ),
    OWN: (),
}
READERS = ("sentence-transformers", "transformers", "onnx/model.onnx")
SHOWN = ("sentence-transformers", "transformers", "tokenizers", "huggingface-hub", "torch")
# Runs in the other environment: one process, every folder, every reader.
ASK = """
import importlib.metadata, json, pathlib, sys
from small_modernbert.export import golden_vectors
shown, readers, folders = json.loads(sys.argv[1])
print(json.dumps({name: importlib.metadata.version(name) for name in shown}))
for folder in folders:
    for reader in readers:
        if "/" in reader and not (pathlib.Path(folder) / reader).exists():
            continue
        try:
            equal, line = golden_vectors.check(pathlib.Path(folder), reader)
        except Exception as error:
            equal, line = False, f"{reader}: {type(error).__name__}: {error}"
        print(json.dumps([folder, reader, equal, line]))
"""


def main() -> None:
    """Make the folders, make the environments, ask each, write the table."""
    if unknown := set(ONLY) - ENVIRONMENTS.keys():
        raise UserError(f"no such environment: {', '.join(unknown)}; {', '.join(ENVIRONMENTS)}")
    given = {str(inputs.locate(folder)): folder for folder in FOLDERS}
    rows, versions = [], []
    with tempfile.TemporaryDirectory() as place:
        named = make_folders(Path(place)) | given
        for name in ONLY or ENVIRONMENTS:
            found, answers = ask(name, list(named))
            versions.append([name, *(found.get(package) for package in SHOWN)])
            for folder, reader, equal, line in answers:
                said = line.removeprefix(f"{reader}: ")
                rows.append([name, named[folder], reader, "equal" if equal else "NOT", said])
    text = markdown(versions, rows)
    storage.write_text(references.ROOT / OUTPUT, text)
    print(text)
    if any(row[3] != "equal" for row in rows):
        sys.exit(1)


def make_folders(place: Path) -> dict[str, str]:
    """Save the students with their golden vectors; return folder -> what it is."""
    from small_modernbert.export import golden_vectors, onnx_export, parity
    from small_modernbert.models.loading import load_backend

    named = {}
    for number, (name, student) in enumerate(make_students().items()):
        folder = place / str(number)
        student.save(folder)
        backend = load_backend(folder, 1 << 30)
        probes = parity.probes(list(parity.SENTENCES), backend, TOKENS, 48)
        onnx_export.export_onnx(student, folder / onnx_export.GRAPH)
        golden_vectors.write(folder, student, probes)
        named[str(folder)] = name
    return named


def make_students() -> "dict[str, Student]":
    """Return students of the kinds that readers treat differently, with random weights."""
    import torch
    from sentence_transformers.sentence_transformer import modules
    from torch import nn
    from transformers import BertConfig, BertModel, ModernBertModel

    from small_modernbert.models import architecture, students
    from small_modernbert.models.prompts import Prompts

    tokenizer = students.load_tokenizer(inputs.locate(inputs.TEACHER))
    torch.manual_seed(SEED)
    config = architecture.configure(architecture.choose("offline"), tokenizer)
    plain = students.Student(ModernBertModel(config), tokenizer, TOKENS)
    head = nn.Sequential(modules.Dense(config.hidden_size, 96, activation_function=nn.Tanh()))
    other = students.Student(ModernBertModel(config), tokenizer, TOKENS, "cls", head)
    other.prompts = Prompts(text="clustering: ", query="query: ", document="passage: ")
    shape = {"num_hidden_layers": 3, "hidden_size": 384, "intermediate_size": 1280}
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False)
    dense = nn.Sequential(modules.Dense(384, 256, activation_function=nn.Identity()))
    return {
        "ModernBERT, mean": plain,
        "ModernBERT, [CLS], Dense, prompts": other,
        "BERT, mean, Dense": students.Student(bert, tokenizer, TOKENS, "mean", dense),
    }


def ask(name: str, folders: list[str]) -> tuple[dict[str, str], list[Any]]:
    """Return an environment's versions, and what its readers make of the folders.

    Raises:
        UserError: it cannot be made, or does not start.
    """
    target = install(name) if ENVIRONMENTS[name] else None
    path = [str(target)] if target else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*path, str(references.ROOT)]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    readers = ("fastembed",) if name.startswith("fastembed") else READERS
    question = json.dumps([SHOWN, readers, folders])
    done = subprocess.run(
        [sys.executable, "-c", ASK, question], env=environment, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "[{"]
    if done.returncode or not lines:
        raise UserError(f"{name} does not start: {done.stderr.strip()[-600:]}")
    return lines[0], lines[1:]


def install(name: str) -> Path:
    """Return the folder of an environment's packages, installed if it is not there.

    Raises:
        UserError: pip cannot have them.
    """
    target = references.runs_folder() / "bench" / "loaders" / name.replace(" ", "-")
    wanted = "\n".join(ENVIRONMENTS[name])
    mark = target / "installed.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return target
    storage.remove(target)
    command = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [sys.executable, *command, "--target", str(target), *ENVIRONMENTS[name]],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{name} cannot be installed: {done.stderr.strip()[-600:]}")
    storage.write_text(mark, wanted)
    return target


def markdown(versions: list[list[Any]], rows: list[list[Any]]) -> str:
    """Return the document."""
    equal = sum(row[3] == "equal" for row in rows)
    parts = [
        "# Who reads our folders",
        "Written by `make loaders`: the same texts, from one token to as many as the model reads, "
        "through each release; largest difference of a number of a unit vector to what torch gave "
        "when the folder was written. Equal is 1e-5 or less.",
        f"{equal} of {len(rows)} are equal.",
        report.table(["environment", *SHOWN], versions),
        report.table(["environment", "folder", "reader", "equal?", "what was found"], rows),
        "text-embeddings-inference, vLLM and transformers.js have not been run here: what their "
        "readers ask of a folder is held, field by field, by tests/models/test_students.py. Once a "
        "server runs, this asks it: `python -m small_modernbert.export.golden_vectors FOLDER URL`.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    settings.run(globals())
