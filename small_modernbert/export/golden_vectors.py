r"""Texts with their vectors beside an exported model, and whether a reader gives the same.

    python -m small_modernbert.export.golden_vectors FOLDER sentence-transformers
    python -m small_modernbert.export.golden_vectors FOLDER transformers
    python -m small_modernbert.export.golden_vectors FOLDER onnx/model.onnx
    python -m small_modernbert.export.golden_vectors FOLDER fastembed
    python -m small_modernbert.export.golden_vectors FOLDER http://127.0.0.1:8080/v1/embeddings
    python -m small_modernbert.export.golden_vectors FOLDER http://127.0.0.1:8080/embed

The last two ask a server: OpenAI's form (vLLM, text-embeddings-inference and others) and that of
text-embeddings-inference. Texts go from one token to as many as the model reads: beyond 128 a
reader without the sliding window gives other vectors, and nothing shorter shows it. What is read
needs numpy and the reader alone, so that any environment can be asked.
"""

import argparse
import json
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from small_modernbert.models.students import Student

FILE = "golden_vectors.json"
TEXTS = 16
TOLERANCE = 1e-5  # largest difference of a number of a vector, for fp32 on one machine
SERVER_TOLERANCE = 2e-3  # a server may compute in half precision
SECONDS = 120  # that a server may take for one text
Encode = Callable[[list[str]], np.ndarray]


def write(folder: Path, student: "Student", texts: Sequence[str]) -> None:
    """Write the file: some of the texts, evenly by length, and their vectors by torch.

    Args:
        folder: of the saved student.
        student: whose default prompt stands in front of each text, since servers add none.
        texts: of any length; those that the student would cut are left out, as are blank ones.
    """
    from small_modernbert.export import parity
    from small_modernbert.runs import storage

    prompted = [student.prompts.text + text for text in texts if text.strip()]
    backend = student.cut_at(student.max_tokens + 1)
    known = sorted((len(backend.encode(text).ids), text) for text in prompted)
    read = [pair for pair in known if pair[0] <= student.max_tokens]
    places = np.linspace(0, len(read) - 1, min(TEXTS, len(read)))
    chosen = [read[place] for place in np.unique(places.round().astype(int))]
    encode = parity.torch_encoder(folder, student.max_tokens, prompt="")
    vectors = encode([text for _, text in chosen])
    rows = [
        {"tokens": tokens, "text": text, "vector": [round(float(value), 8) for value in vector]}
        for (tokens, text), vector in zip(chosen, vectors, strict=True)
    ]
    storage.write_json(folder / FILE, {"texts": rows})


def check(folder: Path, reader: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """Encode the texts with a reader; return whether it gives the vectors, and one line on it.

    Args:
        folder: an export.
        reader: "sentence-transformers", "transformers", "fastembed", a graph of the folder, or a
            URL.
        tolerance: largest difference of a number that still counts as equal; 0 = what suits.
    """
    rows = json.loads((folder / FILE).read_text(encoding="utf-8"))["texts"]
    wanted = np.array([row["vector"] for row in rows], dtype=np.float64)
    served = reader.startswith(("http://", "https://"))
    tolerance = tolerance or (SERVER_TOLERANCE if served else TOLERANCE)
    got = np.asarray(_reader(folder, reader)([row["text"] for row in rows]), dtype=np.float64)
    if got.shape != wanted.shape:
        return False, f"{reader}: vectors of shape {got.shape}, not {wanted.shape}"
    got /= np.maximum(np.linalg.norm(got, axis=1, keepdims=True), 1e-12)
    errors, cosines = np.abs(got - wanted).max(axis=1), (got * wanted).sum(axis=1)
    told = f"largest difference {errors.max():.1e}, least cosine {cosines.min():.6f}"
    lengths = [row["tokens"] for row in rows]
    over = f"{reader}: {len(rows)} texts of {lengths[0]} to {lengths[-1]} tokens, {told}"
    off = [length for length, error in zip(lengths, errors, strict=True) if not error <= tolerance]
    if off:
        return False, f"{over}: off by more than {tolerance:g} from {off[0]} tokens on"
    return True, f"{over}: equal"


def _reader(folder: Path, reader: str) -> Encode:
    if reader.startswith(("http://", "https://")):
        return _server(reader)
    if reader == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return lambda texts: model.encode(texts, prompt="", batch_size=4, show_progress_bar=False)
    if reader in ("transformers", "fastembed"):
        return _transformers(folder) if reader == "transformers" else _fastembed(folder)
    return _onnx(folder, reader)


def _transformers(folder: Path) -> Encode:
    """Return what the folder's modules.json says, by transformers and torch alone."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.eval()
    modules = json.loads((folder / "modules.json").read_text())
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    by_cls = json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode_cls_token"]

    def encode(texts: list[str]) -> np.ndarray:
        batch = tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        with torch.no_grad():
            tokens = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        vectors = tokens[:, 0] if by_cls else (tokens * mask).sum(1) / mask.sum(1)
        for module in modules[2:]:
            kind, place = module["type"].rpartition(".")[2], folder / module["path"]
            if kind == "Normalize":
                vectors = torch.nn.functional.normalize(vectors)
            elif kind == "Dense":
                config = json.loads((place / "config.json").read_text())
                state = load_file(place / "model.safetensors")
                weights = state["linear.weight"], state.get("linear.bias")
                vectors = torch.nn.functional.linear(vectors, *weights)
                name = config["activation_function"].rpartition(".")[2]
                vectors = getattr(torch.nn, name)()(vectors)
            elif kind != "Dropout":
                raise SystemExit(f"{folder}: a {kind} is no part that this reader knows")
        return vectors.numpy()

    return encode


def _onnx(folder: Path, file: str) -> Encode:
    """Return an exported graph: pooling and what comes after are inside."""
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer.enable_truncation(longest)
    session = InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])

    def encode(texts: list[str]) -> np.ndarray:
        rows = []
        for text in texts:
            ids = np.array([tokenizer.encode(text).ids])
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            rows.append(session.run(None, inputs)[0][0])
        return np.array(rows)

    return encode


def _fastembed(folder: Path) -> Encode:
    """Return fastembed's vectors: its own tokenizer, lengths and batches, on our graph."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    name = str(folder)
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.DISABLED,  # the graph pools
        normalization=False,  # and normalises
        sources=ModelSource(hf=name),
        dim=len(json.loads((folder / FILE).read_text(encoding="utf-8"))["texts"][0]["vector"]),
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding(name, specific_model_path=name)
    return lambda texts: np.array(list(model.embed(texts)))


def _server(url: str) -> Encode:
    """Return a server's embeddings: OpenAI's form, or text-embeddings-inference's own."""

    def ask(address: str, content: object = None) -> object:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)

    if url.rstrip("/").endswith("/embed"):
        return lambda texts: np.array([ask(url, {"inputs": [text]})[0] for text in texts])
    try:
        name = ask(url.removesuffix("/embeddings") + "/models")["data"][0]["id"]
    except (OSError, KeyError, IndexError, ValueError):
        name = "model"  # most servers have one, whatever it is called

    def encode(texts: list[str]) -> np.ndarray:
        answers = [ask(url, {"model": name, "input": [text]}) for text in texts]
        return np.array([answer["data"][0]["embedding"] for answer in answers])

    return encode


def main() -> int:
    """Check one reader; return 0 where it gives the vectors, 1 where not."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, help="an export, or any folder with its file")
    parser.add_argument(
        "reader", help="sentence-transformers, transformers, fastembed, a graph, a URL"
    )
    parser.add_argument("--tolerance", type=float, default=0.0, help="0 = 1e-5; 2e-3 of a server")
    given = parser.parse_args()
    if not (given.folder / FILE).is_file():
        print(f"{given.folder / FILE} is not there; run: python export_model.py", file=sys.stderr)
        return 1
    try:
        equal, line = check(given.folder, given.reader, given.tolerance)
    except OSError as error:
        equal, line = False, f"{given.reader}: {error}; is that where it answers?"
    print(line)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
