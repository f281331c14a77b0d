"""How fast a model encodes, on which machine: every model on the same texts."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from small_modernbert.data.retrieval_sets import RetrievalSet
from small_modernbert.models.encoders import Encoder
from small_modernbert.models.prompts import Role
from small_modernbert.runs import storage

REPEATS = 3


def draw_sample(
    sets: Sequence[RetrievalSet], documents: int, queries: int, seed: int
) -> tuple[list[str], list[str]]:
    """Draw the documents and queries that every model's speed is measured on."""
    chosen = []
    for number, texts in (
        (documents, [each.documents for each in sets]),
        (queries, [each.queries for each in sets]),
    ):
        places = [(i, row) for i, column in enumerate(texts) for row in _some(column, number, seed)]
        random.Random(seed).shuffle(places)
        chosen.append([texts[i][row] for i, row in places[:number]])
    return chosen[0], chosen[1]


def texts_per_second(encode: Callable[[list[str]], Any], texts: list[str]) -> float:
    """Return distinct texts encoded per second, tokenising included: warm-up, median of three."""
    encode(texts)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        encode(texts)
        seconds.append(time.perf_counter() - begun)
    return len(set(texts)) / statistics.median(seconds)


def measured(path: Path, encoder: Encoder, sample: tuple[list[str], list[str]]) -> list[float]:
    """Return documents and queries per second, measured once per model: kept in the file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        roles: tuple[Role, Role] = ("document", "query")
        numbers = [
            round(texts_per_second(partial(encoder.encode, role=role), texts), 2)
            for texts, role in zip(sample, roles, strict=True)
        ]
        storage.write_json(path, numbers)
    return storage.read_json(path, "remove it")


def _some(column: Sequence[str], number: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(len(column)), min(number, len(column)))


def machine() -> dict[str, Any]:
    """Name what the speeds were measured on."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name
        )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
