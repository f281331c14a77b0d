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

import ceiling
import claims
import harness
import inputs

from small_modernbert.runs import settings

# Data
TEXTS: int = 1_000  # of a round, of realistic lengths; two batches of the peer's map
WARMUP_TEXTS: int = 64  # of the round that is not counted
LONGEST: int = 512  # tokens of a text at most; the teacher truncates by itself

# Ours
TOKENS_PER_BATCH: int = 2_048  # tokens per forward pass, as create_distil_dataset.py on a CPU

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
REASONS = {
    "fp32": "",
    "default": "",
    "second mark": (
        "packing gives 1.9 x and bf16 the other 1.6 x; matrix products run near the processor's "
        "bf16 rate, and what is left is attention over short texts, norms and GELU. int8 is "
        "a row of its own"
    ),
    "encode": "",
    "ceiling": (
        "a profile (one thread) has 66 % of the time in the linear layers, attention's softmax 8 "
        "and products 8, copies 5, GELU 5, additions and norms 4"
    ),
}


def main() -> None:
    """Write the texts, let the four and the ceiling work in turn, compare vectors, publish."""
    begun = time.monotonic()
    if QUICK:
        globals().update(TEXTS=64, WARMUP_TEXTS=8, ROUNDS=1)
    teacher = str(inputs.locate(inputs.TEACHER))
    texts = inputs.make_texts(
        inputs.locate(inputs.TEXT), (ROUNDS + 1) * TEXTS, seed=SEED, longest=LONGEST
    )
    with tempfile.TemporaryDirectory() as place:
        inputs.write_texts(Path(place) / "texts.parquet", texts)
        common = {"folder": place, "teacher": teacher, "texts": TEXTS, "warmup": WARMUP_TEXTS}
        budget = common | {"tokens_per_batch": TOKENS_PER_BATCH}
        rounded = has_int8()
        opt_in = [harness.Contender("ours int8", ours, budget | {"wanted": "int8"})]
        results = harness.run(
            [
                harness.Contender("ours fp32", ours, budget | {"wanted": "fp32"}),
                harness.Contender("ours default", ours, budget | {"wanted": "auto"}),
                *(opt_in if rounded else []),
                harness.Contender("map", mapped, common),
                harness.Contender("encode", encoded, common),
                harness.Contender("ceiling", ceiling.gemm),
            ],
            ROUNDS,
            THREADS,
        )
        checks = compare_vectors(Path(place), range(1, ROUNDS + 1), rounded)
    single, default = results["ours fp32"], results["ours default"]
    rates = claims.ceilings(results["ceiling"])
    by_default = "teacher labels, our default precision, texts/s"
    rows = [
        claims.versus(
            "teacher labels, fp32 to fp32, texts/s",
            single,
            results["map"],
            MAP,
            least=1.3,
            ceilings=rates,
            checks=[checks["fp32"]],
            reason=REASONS["fp32"],
        ),
        claims.versus(
            by_default,
            default,
            results["map"],
            MAP,
            least=2.5,
            ceilings=rates,
            checks=[checks["default"]],
            reason=REASONS["default"],
        ),
        claims.versus(
            f"{by_default}, second mark",
            default,
            results["map"],
            MAP,
            least=3.5,
            ceilings=rates,
            reason=REASONS["second mark"],
        ),
        claims.versus(
            by_default,
            default,
            results["encode"],
            ENCODE,
            least=1.8,
            ceilings=rates,
            reason=REASONS["encode"],
        ),
        claims.of_ceiling("labelling", default, rates, 0.6, REASONS["ceiling"]),
    ]
    if rounded:
        rows.append(
            claims.versus(
                "teacher labels, int8, opt-in, texts/s",
                results["ours int8"],
                results["map"],
                MAP,
                ceilings=rates,
                checks=[checks["int8"]],
            )
        )
    setting = (
        f"{Path(teacher).name}; {TEXTS:,} texts a round, of log-normal lengths, median "
        f"{inputs.MEDIAN_TOKENS} tokens, as the teacher truncates them. Default precision: "
        f"{'bf16' if default.samples[0].work.figures['bf16'] else 'fp32'}."
    )
    claims.publish(
        __file__, rows, setting=setting, ceilings=rates, seconds=time.monotonic() - begun
    )


def has_int8() -> bool:
    """Say whether this machine can run the opt-in row."""
    import torch

    from small_modernbert.models import precision

    return precision.has_int8(torch.device("cpu")) and not torch.cuda.is_available()


def slice_of(texts: Sequence[str], number: int, size: int, warmup: int) -> list[str]:
    """Return a round's texts; every contender gets the same."""
    return list(texts[number * size :][: size if number else warmup])


def ours(
    folder: str,
    teacher: str,
    texts: int,
    warmup: int,
    tokens_per_batch: int,
    wanted: Any,  # noqa: ANN401  a precision
) -> harness.Round:
    """Prepare our labelling: one shard a round."""
    import numpy as np

    from small_modernbert.data import labels
    from small_modernbert.models import inference, precision
    from small_modernbert.models.teachers import load_teacher, normalise, token_ids
    from small_modernbert.runs import machine

    machine.keep_freed()
    loaded = load_teacher(Path(teacher))
    found = inputs.read_texts(Path(folder) / "texts.parquet")
    chosen, _ = precision.decide(wanted, loaded.device)
    probes = token_ids(loaded, found[-inference.PROBES :])
    engine = inference.load_engine(loaded, chosen, probes)
    count = inputs.count_tokens(loaded[0])
    place = Path(folder) / f"ours-{wanted}"

    def work(number: int, clock: harness.Clock) -> harness.Work:
        rows = slice_of(found, number, texts, warmup)
        count.processed = 0
        clock.start()
        ids = token_ids(loaded, rows)
        vectors = normalise(engine.encode(ids, tokens_per_batch=tokens_per_batch))
        labels.write_shard(labels.shard_path(place, "train", number), rows, vectors)
        clock.stop()
        np.save(Path(folder) / f"{place.name}-{number}.npy", vectors)
        lengths = [len(one) for one in ids]
        flops = ceiling.encoder_flops(loaded[0].model.config, lengths)
        figures = {"bf16": float(engine.precision == "bf16")}
        processed = sum(lengths) if engine.packed else count.processed
        return harness.Work(len(rows), sum(lengths), processed, flops, figures)

    return work


def peer(folder: str, teacher: str) -> tuple[Any, Any, list[str]]:
    """Return the teacher as a user loads it, its token counter, and the texts."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(teacher)
    count = inputs.count_tokens(loaded[0])
    return loaded, count, inputs.read_texts(Path(folder) / "texts.parquet")


def mapped(folder: str, teacher: str, texts: int, warmup: int) -> harness.Round:
    """Prepare the peer that labels inside `dataset.map`."""
    import numpy as np
    from datasets import load_dataset

    loaded, count, found = peer(folder, teacher)

    def work(number: int, clock: harness.Clock) -> harness.Work:
        rows = slice_of(found, number, texts, warmup)
        path = Path(folder) / f"map-{number}.parquet"
        inputs.write_texts(path, rows)
        dataset = load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=f"{folder}/cache"
        )
        count.real = count.processed = 0
        clock.start()
        labelled = dataset.map(
            lambda b: {"label": loaded.encode(b["text"], batch_size=128)},
            batched=True,
            batch_size=500,
        )
        clock.stop()
        vectors = np.asarray(labelled.with_format("numpy")["label"], dtype=np.float32)
        np.save(Path(folder) / f"map-{number}.npy", vectors)
        return harness.Work(len(rows), count.real, count.processed)

    return work


def encoded(folder: str, teacher: str, texts: int, warmup: int) -> harness.Round:
    """Prepare the peer that encodes the whole list and writes nothing."""
    loaded, count, found = peer(folder, teacher)

    def work(number: int, clock: harness.Clock) -> harness.Work:
        rows = slice_of(found, number, texts, warmup)
        count.real = count.processed = 0
        clock.start()
        loaded.encode(rows)
        clock.stop()
        return harness.Work(len(rows), count.real, count.processed)

    return work


def compare_vectors(folder: Path, rounds: Sequence[int], rounded: bool) -> dict[str, claims.Check]:
    """Hold our vectors against those of the peer's map, over all rounds; int8's if `rounded`."""
    import numpy as np

    def load(name: str) -> Any:  # noqa: ANN401  an array
        return np.concatenate([np.load(folder / f"{name}-{number}.npy") for number in rounds])

    wanted = load("map")

    def cosine(name: str, least: float) -> claims.Check:
        value = float((load(name) * wanted).sum(axis=1).mean())
        return claims.Check("mean cosine to the peer's vectors", value, least=least)

    return {
        "fp32": claims.Check(
            "largest difference of a component",
            float(abs(load("ours-fp32") - wanted).max()),
            most=1e-5,
        ),
        "default": cosine("ours-auto", 0.9995),
        **({"int8": cosine("ours-int8", 0.99)} if rounded else {}),
    }


if __name__ == "__main__":
    settings.run(globals())
