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
import tempfile
import time
from importlib import util
from pathlib import Path
from typing import Any

import inputs
import measure
import peak
from measure import Contender, Work

from small_modernbert.runs import settings

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
    "student, ONNX fp32": "onnx/model.onnx",
    "student, ONNX int8": "onnx/model_quantized.onnx",
    "student, OpenVINO": "openvino/openvino_model.xml",
}
PEER = ("its teacher", "`SentenceTransformer.encode`, default.")
STUDENT, TEACHER = "student, ours", "teacher, encode"


def main() -> None:
    """Let all ways of encoding work in turn, on documents and on queries, and publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(DOCUMENTS=8, QUERIES=16, ROUNDS=1)
    teacher, source = inputs.locate(inputs.TEACHER), inputs.locate(inputs.TEXT)
    kinds = {
        "documents": (DOCUMENTS, {"seed": SEED, "longest": LONGEST}),
        "queries": (QUERIES, {"seed": SEED + 1, "longest": 48, "median": QUERY_TOKENS}),
    }
    claims, table = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs.make_student(folder / "student", teacher, SEED, PRESET)
        for kind, (size, lengths) in kinds.items():
            texts = inputs.make_texts(source, (ROUNDS + 1) * size, **lengths)
            inputs.write_texts(folder / f"{kind}.parquet", texts)
        exported = export(folder) if EXPORT else None
        for kind, (size, _) in kinds.items():
            path = folder / f"{kind}.parquet"
            ways = contenders(folder / "student", teacher, exported, path, size)
            done = measure.run(ways, ROUNDS, THREADS)
            ceilings = peak.ceilings(done.pop("products"))
            what, sides = f"student encoding, {kind}/s", (STUDENT, TEACHER)
            claims.append(measure.versus(what, done, sides, PEER, ceilings=ceilings))
            for name, rounds in done.items():
                memory = f"{measure.peak_mib(rounds) / 1024:.2f}"
                table.append([kind, name, round(measure.rate(rounds)), memory])
    setting = (
        f"Student {PRESET!r} and teacher {teacher.name}; {DOCUMENTS} documents (median "
        f"{inputs.MEDIAN_TOKENS} tokens) and {QUERIES} queries (median {QUERY_TOKENS:g}) a round."
    )
    tables = {"Ways of encoding": (["texts", "model", "texts/s", "peak memory, GiB"], table)}
    measure.publish(
        __file__, claims, setting=setting, ceilings=ceilings, tables=tables, begun=begun
    )


def export(folder: Path) -> Path | None:
    """Export the student as its user would; None where what that needs is not installed."""
    if not all(util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return None
    os.environ["RUNS"], runs = f"{folder}/runs", os.environ.get("RUNS")
    texts = str(folder / "documents.parquet")
    stage = inputs.run_stage("export_model", "bench", student=str(folder / "student"), texts=texts)
    del os.environ["RUNS"]
    if runs is not None:
        os.environ["RUNS"] = runs
    return stage / "final"


def contenders(
    student: Path, teacher: Path, exported: Path | None, texts: Path, size: int
) -> list[Contender]:
    """Return every way of encoding that there is here."""
    common = {"texts": str(texts), "size": size}
    ours, theirs = common | {"model": str(student)}, common | {"model": str(teacher)}
    ways = [Contender(STUDENT, packed, ours), Contender("student, encode", padded, ours)]
    for name, file in FORMS.items():
        if exported is not None and (exported / file).exists():
            form = common | {"model": str(exported), "file": file}
            ways.append(Contender(name, served, form))
    return [
        *ways,
        Contender("teacher, ours", packed, theirs),
        Contender(TEACHER, padded, theirs),
        Contender("products", peak.products),
    ]


def rounds_of(texts: str, size: int) -> Any:  # noqa: ANN401  a function
    """Return a round's texts as a function of its number; the warm-up has some of the last."""
    pool = inputs.read_texts(Path(texts))
    return lambda number: pool[(number or -1) * size :][: size if number else size // 4 + 1]


def packed(model: str, texts: str, size: int) -> measure.Round:
    """Prepare our encoder: packed for a ModernBERT, sorted and padded for others."""
    from small_modernbert.models.encoders import load_encoder

    encoder = load_encoder(Path(model))
    of_round = rounds_of(texts, size)
    config, tokenizer = encoder.model[0].model.config, encoder.model.tokenizer

    def work(number: int) -> Work:
        chosen = of_round(number)
        begun = time.perf_counter()
        encoder.encode(chosen)
        seconds = time.perf_counter() - begun
        longest = encoder.model.max_seq_length
        ids = tokenizer(chosen, truncation=True, max_length=longest)["input_ids"]
        return Work(len(chosen), seconds, peak.encoder_flops(config, list(map(len, ids))))

    return work


def padded(model: str, texts: str, size: int) -> measure.Round:
    """Prepare `SentenceTransformer.encode`, default."""
    from sentence_transformers import SentenceTransformer

    loaded, of_round = SentenceTransformer(model), rounds_of(texts, size)
    return lambda number: Work(len(loaded.encode(of_round(number))))


def served(model: str, file: str, texts: str, size: int) -> measure.Round:
    """Prepare an exported student, encoded without torch."""
    from small_modernbert.models.onnx_encoder import OnnxEncoder

    encoder = OnnxEncoder(model, file, threads=int(os.environ["OMP_NUM_THREADS"]))
    of_round = rounds_of(texts, size)
    return lambda number: Work(len(encoder.encode(of_round(number))))


if __name__ == "__main__":
    settings.run(globals())
