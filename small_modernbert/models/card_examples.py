"""How a model's folder is used, as programs that a card shows; a test runs them."""

from typing import TYPE_CHECKING

from sentence_transformers.sentence_transformer import modules
from torch import nn

if TYPE_CHECKING:
    from small_modernbert.models.students import Student

FOLDER = "path/to/this/folder"  # or the name of the repository


def with_sentence_transformers(student: "Student") -> str:
    """Return a program that encodes with sentence-transformers, prompts included."""
    prompts = student.prompts
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{FOLDER}")',
    ]
    if prompts.query or prompts.document:
        lines += [
            'queries = model.encode_query(["how do tides work"])',
            'documents = model.encode_document(["The moon pulls at the oceans."])',
            "print(model.similarity(queries, documents))",
        ]
    else:
        lines += [
            'vectors = model.encode(["how do tides work", "The moon pulls at the oceans."])',
            "print(model.similarity(vectors, vectors))",
        ]
    return _fenced(lines)


def with_transformers(student: "Student") -> str:
    """Return a program that does the same with transformers alone; "" where it would be long."""
    head = [module for module in student.head if not isinstance(module, modules.Dropout)]
    if not all(isinstance(module, modules.Dense) for module in head):
        return ""
    prompt = student.prompts.text
    texts = [f"{prompt}how do tides work", f"{prompt}The moon pulls at the oceans."]
    lines = [
        "import torch",
        *(["from safetensors.torch import load_file"] if head else []),
        "from transformers import AutoModel, AutoTokenizer",
        "",
        f'folder = "{FOLDER}"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModel.from_pretrained(folder).eval()",
        f"texts = {texts!r}",
        "batch = tokenizer(",
        "    texts, padding=True, truncation=True,",
        f'    max_length={student.max_tokens}, return_tensors="pt",',
        ")",
        "with torch.no_grad():",
        "    tokens = model(**batch).last_hidden_state",
    ]
    if student.pooling == "cls":
        lines.append("vectors = tokens[:, 0]")
    else:
        lines.append('mask = batch["attention_mask"][..., None]')
        lines.append("vectors = (tokens * mask).sum(1) / mask.sum(1)")
    for index, module in enumerate(student.head, start=2):
        if isinstance(module, modules.Dense):
            lines += _dense(index, module)
    if student.normalised:
        lines.append("vectors = torch.nn.functional.normalize(vectors)")
    return _fenced(lines)


def with_onnx(student: "Student", graph: str) -> str:
    """Return a program that runs an exported graph: tokens in, vectors out."""
    prompt = student.prompts.text
    texts = [f"{prompt}how do tides work", f"{prompt}The moon pulls at the oceans."]
    return _fenced(
        [
            "import numpy as np",
            "from onnxruntime import InferenceSession",
            "from tokenizers import Tokenizer",
            "",
            f'folder = "{FOLDER}"',
            'tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")',
            f"tokenizer.enable_truncation({student.max_tokens})",
            f"tokenizer.enable_padding(pad_id={student.tokenizer.pad_token_id})",
            f"batch = tokenizer.encode_batch({texts!r})",
            "inputs = {",
            '    "input_ids": np.array([text.ids for text in batch]),',
            '    "attention_mask": np.array([text.attention_mask for text in batch]),',
            "}",
            f'session = InferenceSession(f"{{folder}}/{graph}")',
            "vectors = session.run(None, inputs)[0]",
        ]
    )


def _dense(index: int, module: modules.Dense) -> list[str]:
    bias = ', dense["linear.bias"]' if module.linear.bias is not None else ""
    lines = [
        f'dense = load_file(f"{{folder}}/{index}_Dense/model.safetensors")',
        f'vectors = torch.nn.functional.linear(vectors, dense["linear.weight"]{bias})',
    ]
    if not isinstance(module.activation_function, nn.Identity):
        lines.append(f"vectors = torch.nn.{type(module.activation_function).__name__}()(vectors)")
    return lines


def _fenced(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
