r"""Student encoding, texts/s: the student beside its teacher, packed, padded, ONNX and int8.

Reads: assets/text/train.parquet and the teacher of assets/models (make assets).
Writes: runs/bench/encoding.json; prints the table.

    python bench/encoding.py
    python bench/encoding.py --quick
    python bench/encoding.py --no-export

The student is of random weights: its speed does not depend on them. Offline its teacher is
all-MiniLM-L6-v2 itself, so the two rows that are wanted of it are one.
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path
from typing import Any

import ceiling
import claims
import harness
import inputs

from small_modernbert.runs import references, settings

# Models
PRESET: str = "offline"  # the student
EXPORT: bool = True  # also its exports by export_model.py, where what that needs is installed

# Data
DOCUMENTS: int = 200  # of a round, of realistic lengths
QUERIES: int = 800  # of a round
QUERY_TOKENS: float = 12.0  # of the median query
LONGEST: int = 256  # tokens at most: what the teacher takes

# Rounds
ROUNDS: int = 3  # counted, after one warm-up
THREADS: int = 0  # 0 = all processors
QUICK: bool = False  # one round of few texts, to see that it works
SEED: int = 42  # of texts and weights

FORMS = {
    "ONNX fp32": "onnx/model.onnx",
    "ONNX int8": "onnx/model_int8.onnx",
    "OpenVINO": "openvino/openvino_model.xml",
}
PEER = ("its teacher", "`SentenceTransformer.encode`, default.")
STUDENT, TEACHER = "student, ours", "teacher, encode"


def main() -> None:
    """Let all ways of encoding work in turn, on documents and on queries, and publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(DOCUMENTS=8, QUERIES=16, ROUNDS=1)
    teacher = inputs.locate(inputs.TEACHER)
    source = inputs.locate(inputs.TEXT)
    kinds = {
        "documents": inputs.make_texts(
            source, (ROUNDS + 1) * DOCUMENTS, seed=SEED, longest=LONGEST
        ),
        "queries": inputs.make_texts(
            source, (ROUNDS + 1) * QUERIES, seed=SEED + 1, longest=48, median=QUERY_TOKENS
        ),
    }
    rows, table = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs.make_student(folder / "student", PRESET, teacher, SEED)
        for kind, texts in kinds.items():
            inputs.write_texts(folder / f"{kind}.parquet", texts)
        exported = export(folder, folder / "documents.parquet") if EXPORT else None
        for kind, texts in kinds.items():
            size = len(texts) // (ROUNDS + 1)
            results = harness.run(
                contenders(folder / "student", teacher, exported, folder / f"{kind}.parquet", size),
                ROUNDS,
                THREADS,
            )
            rates = claims.ceilings(results.pop("ceiling"))
            rows.append(
                claims.versus(
                    f"student encoding, {kind}/s",
                    results[STUDENT],
                    results[TEACHER],
                    PEER,
                    ceilings=rates,
                )
            )
            table += [[kind, name, *figures(one)] for name, one in results.items()]
    setting = (
        f"Student {PRESET!r} and teacher {teacher.name}; {DOCUMENTS} documents (median "
        f"{inputs.MEDIAN_TOKENS} tokens) and {QUERIES} queries (median {QUERY_TOKENS:g}) a round."
    )
    headers = ["texts", "model", "texts/s", "tokens/s", "padding", "peak memory, GiB"]
    claims.publish(
        __file__,
        rows,
        setting=setting,
        ceilings=rates,
        tables={"Ways of encoding": (headers, table)},
        seconds=time.monotonic() - begun,
    )


def export(folder: Path, texts: Path) -> Path | None:
    """Export the student as its user would; None where what that needs is not installed."""
    if not all(util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return None
    command = [sys.executable, str(references.ROOT / "export_model.py"), "--recipe", "bench"]
    command += ["--student", str(folder / "student"), "--texts", str(texts)]
    subprocess.run(command, check=True, env={**os.environ, "RUNS": str(folder / "runs")})
    return folder / "runs" / "bench" / "export_model" / "final"


def contenders(
    student: Path, teacher: Path, exported: Path | None, texts: Path, size: int
) -> list[harness.Contender]:
    """Return every way of encoding that there is here."""
    common = {"texts": str(texts), "size": size}
    ours, theirs = common | {"model": str(student)}, common | {"model": str(teacher)}
    found = [
        harness.Contender(STUDENT, packed, ours),
        harness.Contender("student, encode", padded, ours),
    ]
    for name, file in FORMS.items():
        if exported is not None and (exported / file).exists():
            form = common | {"model": str(exported), "file": file}
            found.append(harness.Contender(f"student, {name}", served, form))
    return [
        *found,
        harness.Contender("teacher, ours", packed, theirs),
        harness.Contender(TEACHER, padded, theirs),
        harness.Contender("ceiling", ceiling.gemm),
    ]


def figures(result: harness.Result) -> list[Any]:
    """Return a result's cells of the table."""
    seconds = sum(sample.seconds for sample in result.samples)
    tokens = sum(sample.work.tokens for sample in result.samples)
    padding = result.padding
    return [
        round(result.rate),
        round(tokens / seconds) if tokens else None,
        "–" if padding is None else f"{padding:.2f}",
        f"{result.peak_mib / 1024:.2f}",
    ]


def rounds_of(texts: str, size: int) -> Any:  # noqa: ANN401  a function
    """Return a round's texts as a function of its number; the warm-up has some of the last."""
    found = inputs.read_texts(Path(texts))
    return lambda number: found[(number or -1) * size :][: size if number else size // 4 + 1]


def packed(model: str, texts: str, size: int) -> harness.Round:
    """Prepare our encoder: packed for a ModernBERT, sorted and padded for others."""
    from small_modernbert.models.encoders import load_encoder

    encoder = load_encoder(Path(model))
    of_round = rounds_of(texts, size)
    config = encoder.model[0].model.config

    def work(number: int, clock: harness.Clock) -> harness.Work:
        found = of_round(number)
        clock.start()
        encoder.encode(found)
        clock.stop()
        # Counted by its tokenizer afterwards: our packed pass does not call the model's forward.
        ids = encoder.model.tokenizer(
            found, truncation=True, max_length=encoder.model.max_seq_length
        )
        lengths = [len(one) for one in ids["input_ids"]]
        return harness.Work(len(found), sum(lengths), flops=ceiling.encoder_flops(config, lengths))

    return work


def padded(model: str, texts: str, size: int) -> harness.Round:
    """Prepare `SentenceTransformer.encode`, default."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model)
    count = inputs.count_tokens(loaded[0])
    of_round = rounds_of(texts, size)

    def work(number: int, clock: harness.Clock) -> harness.Work:
        found = of_round(number)
        count.real = count.processed = 0
        clock.start()
        loaded.encode(found)
        clock.stop()
        return harness.Work(len(found), count.real, count.processed)

    return work


def served(model: str, file: str, texts: str, size: int) -> harness.Round:
    """Prepare an exported student, encoded without torch."""
    from small_modernbert.export.onnx_encoder import OnnxEncoder

    encoder = OnnxEncoder(model, file, threads=int(os.environ["OMP_NUM_THREADS"]))
    of_round = rounds_of(texts, size)

    def work(number: int, clock: harness.Clock) -> harness.Work:
        found = of_round(number)
        clock.start()
        encoder.encode(found)
        return harness.Work(len(found))

    return work


if __name__ == "__main__":
    settings.run(globals())
