"""Models side by side: what a row of the benchmark is, its vectors on disk, its table and plot."""

import hashlib
import logging
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from small_modernbert.data.evaluation_sets import RetrievalSet, SentencePairs
from small_modernbert.evaluation import metrics
from small_modernbert.models.encoders import WINDOW_TEXTS, Encoder
from small_modernbert.models.vectors import write_vectors
from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError

SPEED_REPEATS = 3
logger = logging.getLogger(__name__)


@dataclass
class Row:
    """One line of the benchmark; what does not apply (BM25 has no parameters) is None.

    Attributes:
        label: the model's name in tables.
        reference: where it came from.
        retrieval: set -> metric -> value.
        pairs: set of sentence pairs -> Spearman or average precision.
        parameters: weights in the model.
        parameters_without_embeddings: those that are not in an embedding table.
        size_bytes: what the model takes on disk.
        documents_per_second: encoded, on this machine.
        queries_per_second: encoded, on this machine.
        note: what a reader must know about this row.
    """

    label: str
    reference: str
    retrieval: dict[str, dict[str, float]] = field(default_factory=dict)
    pairs: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    size_bytes: int | None = None
    documents_per_second: float | None = None
    queries_per_second: float | None = None
    note: str = ""

    @property
    def quality(self) -> float | None:
        """Mean nDCG@10 over the retrieval sets; None where there are none."""
        return metrics.mean_ndcg(self.retrieval) if self.retrieval else None


@dataclass(frozen=True)
class VectorStore:
    """The vectors of one model, a file for each set and side, kept until the benchmark is done.

    Attributes:
        folder: named after the model's digest, so equal models under two labels share it.
    """

    folder: Path

    def path(self, name: str, side: str) -> Path:
        """Return the file of one side (`queries`, `documents`, `pairs`) of a set."""
        return self.folder / f"{name}.{side}.npy"

    def read(self, name: str, side: str) -> np.ndarray:
        """Return the vectors of one side of a set, memory-mapped."""
        return storage.read_array(self.path(name, side), mapped=True)

    def fill(
        self, encoder: Encoder, sets: Sequence[RetrievalSet], pairs: Sequence[SentencePairs]
    ) -> None:
        """Encode what is not there yet."""
        for name, side, texts in sides(sets, pairs):
            encoder.encode_to(self.path(name, side), texts, f"{encoder.name}: {name} {side}")

    def derive(
        self,
        source: "VectorStore",
        transform: Callable[[np.ndarray], np.ndarray],
        sets: Sequence[RetrievalSet],
        pairs: Sequence[SentencePairs],
    ) -> None:
        """Make the vectors that are not there yet out of another model's, window by window."""
        for name, side, _ in sides(sets, pairs):
            if not self.path(name, side).exists():
                given = source.read(name, side)
                starts = range(0, len(given), WINDOW_TEXTS)
                windows = (transform(given[start : start + WINDOW_TEXTS]) for start in starts)
                write_vectors(self.path(name, side), len(given), windows)


def sides(
    sets: Sequence[RetrievalSet], pairs: Sequence[SentencePairs]
) -> list[tuple[str, str, Sequence[str]]]:
    """List what there is to encode: (set, side, texts)."""
    found: list[tuple[str, str, Sequence[str]]] = []
    for one in sets:
        found += [(one.name, "queries", one.queries), (one.name, "documents", one.documents)]
    return found + [(one.name, "pairs", one.first + one.second) for one in pairs]


def digest_texts(sets: Sequence[RetrievalSet], pairs: Sequence[SentencePairs]) -> str:
    """Return one digest of all there is to encode."""
    digest = hashlib.sha256()
    for name, side, texts in sides(sets, pairs):
        for text in (name, side, str(len(texts)), *texts):
            digest.update(text.encode("utf-8") + b"\0")
    return digest.hexdigest()


def score(
    row: Row,
    queries: VectorStore,
    documents: VectorStore,
    sets: Sequence[RetrievalSet],
    pairs: Sequence[SentencePairs],
) -> None:
    """Fill a row's metrics from stored vectors; for a symmetric model both stores are one.

    Raises:
        UserError: the model's vectors are not finite.
    """
    for one in sets:
        asked, held = queries.read(one.name, "queries"), documents.read(one.name, "documents")
        try:
            row.retrieval[one.name] = metrics.retrieval_metrics(asked, held, one)
        except ValueError as error:
            raise UserError(f"{row.label} on {one.name}: {error}") from error
    for one in pairs:
        vectors = queries.read(one.name, "pairs")
        cosines = metrics.pair_scores(vectors[: len(one.first)], vectors[len(one.first) :])
        measure = metrics.spearman if one.graded else metrics.average_precision
        row.pairs[one.name] = measure(cosines, one.gold)


def describe(encoder: Encoder, reference: str) -> Row:
    """Start the row of a loaded model."""
    return Row(
        label=encoder.name,
        reference=reference,
        parameters=encoder.parameters,
        parameters_without_embeddings=encoder.parameters_without_embeddings,
        size_bytes=encoder.size_bytes,
    )


def asymmetric(
    queries: tuple[Row, VectorStore],
    documents: tuple[Row, VectorStore],
    sets: Sequence[RetrievalSet],
) -> Row | None:
    """Make the row of one model's queries over another's documents, out of stored vectors.

    Returns:
        The row; None, and a line in the log, where the two are not equally wide.
    """
    (asking, asking_store), (holding, holding_store) = queries, documents
    widths = [
        store.read(sets[0].name, side).shape[1]
        for store, side in ((asking_store, "queries"), (holding_store, "documents"))
    ]
    label = f"{asking.label} > {holding.label}"
    if widths[0] != widths[1]:
        logger.info("%s: no row, the widths are %s and %s", label, *widths)
        return None
    row = Row(
        label=label,
        reference=f"{asking.reference} > {holding.reference}",
        documents_per_second=holding.documents_per_second,
        queries_per_second=asking.queries_per_second,
        note=f"queries by {asking.label}, documents by {holding.label}",
    )
    score(row, asking_store, holding_store, sets, [])
    return row


def speed_sample(
    sets: Sequence[RetrievalSet], documents: int, queries: int, seed: int
) -> tuple[list[str], list[str]]:
    """Draw the documents and queries that every model's speed is measured on."""
    chosen = []
    for number, texts in (
        (documents, [one.documents for one in sets]),
        (queries, [one.queries for one in sets]),
    ):
        places = [(i, row) for i, column in enumerate(texts) for row in _some(column, number, seed)]
        random.Random(seed).shuffle(places)
        chosen.append([texts[i][row] for i, row in places[:number]])
    return chosen[0], chosen[1]


def measure_speed(encoder: Encoder, texts: list[str]) -> float:
    """Return distinct texts encoded per second, tokenising included: warm-up, median of three."""
    encoder.encode(texts)
    seconds = []
    for _ in range(SPEED_REPEATS):
        begun = time.perf_counter()
        encoder.encode(texts)
        seconds.append(time.perf_counter() - begun)
    return len(set(texts)) / statistics.median(seconds)


def speeds(path: Path, encoder: Encoder, sample: tuple[list[str], list[str]]) -> list[float]:
    """Return documents and queries per second, measured once per model: kept in the file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, [round(measure_speed(encoder, texts), 2) for texts in sample])
    return storage.read_json(path, "remove it")


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


def summary_table(rows: Sequence[Row], teacher: Row | None) -> str:
    """Return the table of one line a model: quality, its share of the teacher's, size, speed."""
    set_names = list(rows[0].retrieval)
    pair_names = list(dict.fromkeys(name for row in rows for name in row.pairs))
    headers = ["model", "quality", "of teacher", *set_names, *pair_names]
    headers += ["parameters", "not embeddings", "MB", "documents/s", "queries/s"]
    lines = []
    for row in rows:
        share = _share(row, teacher)
        lines.append(
            [
                row.label,
                row.quality,
                None if share is None else f"{100 * share:.1f} %",
                *(row.retrieval[name]["ndcg@10"] for name in set_names),
                *(row.pairs.get(name) for name in pair_names),
                row.parameters,
                row.parameters_without_embeddings,
                None if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}",
                None if row.documents_per_second is None else round(row.documents_per_second),
                None if row.queries_per_second is None else round(row.queries_per_second),
            ]
        )
    return report.table(headers, lines)


def markdown(
    rows: Sequence[Row],
    teacher: Row | None,
    sets: Sequence[RetrievalSet],
    pairs: Sequence[SentencePairs],
    where: dict[str, Any],
) -> str:
    """Return the whole report: the summary, then every metric on every set."""
    sizes = "; ".join(f"{s.name}: {len(s.queries):,} queries, {len(s.documents):,}" for s in sets)
    parts = [
        "# Benchmark",
        f"Quality is nDCG@10 averaged over the retrieval sets ({sizes} documents).",
        summary_table(rows, teacher),
        f"Speed on {where['device']}, {where['processor']}, {where['threads']} threads: a fixed "
        f"sample, tokenising included, median of {SPEED_REPEATS}.",
    ]
    if pairs:
        kinds = (f"{p.name}: {'Spearman' if p.graded else 'average precision'}" for p in pairs)
        parts.append(f"Sentence pairs: {'; '.join(kinds)}.")
    parts += [f"- {row.label}: {row.note}" for row in rows if row.note]
    for one in sets:
        lines = [
            [row.label, *(row.retrieval[one.name][metric] for metric in metrics.METRICS)]
            for row in rows
        ]
        parts += [f"## {one.name}", report.table(["model", *metrics.METRICS], lines)]
    return "\n\n".join(parts) + "\n"


def read_results(folder: Path) -> Any:  # noqa: ANN401  JSON
    """Read a benchmark's results back.

    Raises:
        UserError: they are not there, or broken.
    """
    return storage.read_json(folder / "results.json", "run: python benchmark_hotpotqa.py")


def record(row: Row, teacher: Row | None) -> dict[str, Any]:
    """Return a row as results.json holds it."""
    return vars(row) | {"quality": row.quality, "share_of_teacher": _share(row, teacher)}


def plot(rows: Sequence[Row], path: Path, where: dict[str, Any]) -> None:
    """Draw quality against documents per second; rows without a speed become level lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for number, row in enumerate(rows):
        colour = f"C{number % 10}"
        if row.documents_per_second is None:
            axes.axhline(row.quality, linestyle=":", color=colour, label=row.label)
        else:
            axes.scatter(row.documents_per_second, row.quality, color=colour, label=row.label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"documents per second ({where['device']}, {where['threads']} threads)")
    axes.set_ylabel("mean nDCG@10")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _share(row: Row, teacher: Row | None) -> float | None:
    if teacher is None or not teacher.quality or row.quality is None:
        return None
    return row.quality / teacher.quality


def _some(column: Sequence[str], number: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(len(column)), min(number, len(column)))
