r"""Labelling with a teacher, ours against `dataset.map` and `SentenceTransformer.encode`, texts/s.

Reads: assets/text/train.parquet and the teacher of assets/models (make assets).
Writes: runs/bench/teacher_labels.json; prints the table.

    python bench/teacher_labels.py
    python bench/teacher_labels.py --quick

Everything between a text and its stored label is timed: tokenising, encoding, writing a shard
(ours) or the data set's cache (the peer's map). Our vectors are compared with the peer's.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import inputs
import measure
import numpy as np
import peak
from measure import Contender, Work

from small_modernbert.runs import settings

# Data
TEXTS: int = 1_000  # of a round, of realistic lengths; two batches of the peer's map
WARMUP_TEXTS: int = 64  # of the round that is not counted
LONGEST: int = 512  # tokens of a text at most; the teacher truncates by itself

# Rounds
ROUNDS: int = 3  # counted, after one warm-up
THREADS: int = 0  # 0 = all processors
QUICK: bool = False  # one round of few texts, to see that it works
SEED: int = 42  # of the texts

MAP = (
    "dataset.map, fp32",
    '`dataset.map(lambda b: {"label": teacher.encode(b["text"], batch_size=128)}, batched=True, '
    "batch_size=500)`.",
)
ENCODE = ("encode, fp32", "`SentenceTransformer.encode` over the whole list, default.")
# From profiles on the machine of docs/BENCHMARKS.md; shown where the bound is missed.
SECOND_MARK = (
    "packing gives 1.9 x and bf16 the other 1.6 x; matrix products run near the processor's bf16 "
    "rate, and what is left is attention over short texts, norms and GELU"
)
OF_PEAK = (
    "a profile (one thread) has 66 % of the time in the linear layers, attention's softmax 8 and "
    "products 8, copies 5, GELU 5, additions and norms 4"
)


def main() -> None:
    """Write the texts, let the four and the products work in turn, compare vectors, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(TEXTS=64, WARMUP_TEXTS=8, ROUNDS=1)
    teacher = str(inputs.locate(inputs.TEACHER))
    number = (ROUNDS + 1) * TEXTS
    texts = inputs.make_texts(inputs.locate(inputs.TEXT), number, seed=SEED, longest=LONGEST)
    with tempfile.TemporaryDirectory() as place:
        inputs.write_texts(Path(place) / "texts.parquet", texts)
        common = {"folder": place, "teacher": teacher, "texts": TEXTS, "warmup": WARMUP_TEXTS}
        contenders = [
            Contender("fp32", ours, common | {"wanted": "fp32"}),
            Contender("default", ours, common | {"wanted": "auto"}),
            Contender("map", mapped, common),
            Contender("encode", encoded, common),
            Contender("products", peak.products),
        ]
        done = measure.run(contenders, ROUNDS, THREADS)
        equal, near = compare_vectors(Path(place), range(1, ROUNDS + 1))
    ceilings = peak.ceilings(done["products"])
    what = "teacher labels, our default precision, texts/s"
    claims = [
        measure.versus(
            "teacher labels, fp32 to fp32, texts/s",
            *(done, ("fp32", "map"), MAP),
            least=1.3,
            ceilings=ceilings,
            checks=[equal],
        ),
        measure.versus(
            what, done, ("default", "map"), MAP, least=2.5, ceilings=ceilings, checks=[near]
        ),
        measure.versus(
            f"{what}, second mark", done, ("default", "map"), MAP, least=3.5, reason=SECOND_MARK
        ),
        measure.versus(what, done, ("default", "encode"), ENCODE, least=1.8, ceilings=ceilings),
        measure.of_peak("labelling", done["default"], ceilings, OF_PEAK),
    ]
    half = done["default"][0].figures["bf16"]
    setting = (
        f"{Path(teacher).name}; {TEXTS:,} texts a round, of log-normal lengths, median "
        f"{inputs.MEDIAN_TOKENS} tokens, as the teacher truncates them. Default precision: "
        f"{'bf16' if half else 'fp32'}."
    )
    measure.publish(__file__, claims, setting=setting, ceilings=ceilings, begun=begun)


def slice_of(texts: Sequence[str], number: int, size: int, warmup: int) -> list[str]:
    """Return a round's texts; every contender gets the same."""
    return list(texts[number * size :][: size if number else warmup])


def ours(folder: str, teacher: str, texts: int, warmup: int, wanted: str) -> measure.Round:
    """Prepare our labelling: one shard a round."""
    from small_modernbert.data import labels
    from small_modernbert.labelling.teacher_reading import Reader
    from small_modernbert.models import precision
    from small_modernbert.models.prompts import Prompts
    from small_modernbert.models.teachers import load_teacher
    from small_modernbert.models.vectors import normalise
    from small_modernbert.runs import machine

    machine.keep_freed()
    reader = Reader(load_teacher(Path(teacher)), Prompts())
    pool = inputs.read_texts(Path(folder) / "texts.parquet")
    chosen, _ = precision.decide(wanted, reader.teacher.device)
    probes = pool[-64:]
    reader.prepare(chosen, (probes, ["text"] * len(probes)))
    place = Path(folder) / f"ours-{wanted}"

    def work(number: int) -> Work:
        rows = slice_of(pool, number, texts, warmup)
        begun = time.perf_counter()
        reading = reader.read(rows, ["text"] * len(rows))
        vectors = normalise(reader.encode(reading))
        labels.write_shard(labels.shard_path(place, "train", number), rows, vectors)
        seconds = time.perf_counter() - begun
        np.save(f"{place}-{number}.npy", vectors)
        flops = peak.encoder_flops(reader.teacher[0].model.config, list(map(len, reading.ids)))
        half = float(reader.engine.precision == "bf16")
        return Work(len(rows), seconds, flops, {"bf16": half})

    return work


def mapped(folder: str, teacher: str, texts: int, warmup: int) -> measure.Round:
    """Prepare the peer that labels inside `dataset.map`."""
    from datasets import load_dataset
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(teacher)
    pool = inputs.read_texts(Path(folder) / "texts.parquet")

    def work(number: int) -> Work:
        path = Path(folder) / f"map-{number}.parquet"
        inputs.write_texts(path, slice_of(pool, number, texts, warmup))
        dataset = load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=f"{folder}/cache"
        )
        begun = time.perf_counter()
        labelled = dataset.map(
            lambda b: {"label": loaded.encode(b["text"], batch_size=128)},
            batched=True,
            batch_size=500,
        )
        seconds = time.perf_counter() - begun
        vectors = np.asarray(labelled.with_format("numpy")["label"], dtype=np.float32)
        np.save(Path(folder) / f"map-{number}.npy", vectors)
        return Work(len(vectors), seconds)

    return work


def encoded(folder: str, teacher: str, texts: int, warmup: int) -> measure.Round:
    """Prepare the peer that encodes the whole list and writes nothing."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(teacher)
    pool = inputs.read_texts(Path(folder) / "texts.parquet")
    return lambda number: Work(len(loaded.encode(slice_of(pool, number, texts, warmup))))


def compare_vectors(folder: Path, rounds: Sequence[int]) -> list[dict[str, Any]]:
    """Hold our vectors against those of the peer's map: fp32 by component, the default's cosine."""
    single, default, wanted = (
        np.concatenate([np.load(folder / f"{name}-{number}.npy") for number in rounds])
        for name in ("ours-fp32", "ours-auto", "map")
    )
    difference = float(abs(single - wanted).max())
    cosine = float((default * wanted).sum(axis=1).mean())
    return [
        measure.check("largest difference of a component", difference, most=1e-5),
        measure.check("mean cosine to the peer's vectors", cosine, least=0.9995),
    ]


if __name__ == "__main__":
    settings.run(globals())
