"""Quality against dimension: the first numbers of a vector are a vector of their own.

Matryoshka representation learning (Kusupati et al., arXiv 2205.13147).
"""

from collections.abc import Sequence
from pathlib import Path

from small_modernbert.runs import report, storage
from small_modernbert.runs.errors import UserError


def at(name: str, dimension: int) -> str:
    """Return what a figure is called at a dimension shorter than the full width."""
    return f"{name}/{dimension}"


def is_headline(name: str) -> bool:
    """Say whether a figure is worth a column: a quality, and not a single set's."""
    others = ("ndcg@10", "judge_scale", "_pearson", "mean_cosine", "effective_rank")
    return name == "retrieval_ndcg@10" or not name.endswith(others)


def check_dimensions(dimensions: Sequence[int], width: int) -> list[int]:
    """Return the dimensions to measure: those trained, and the full width, the longest first.

    Raises:
        UserError: a dimension is not one of a vector of that width, or stands twice.
    """
    wrong = [size for size in dimensions if not 0 < size <= width]
    if wrong or len(set(dimensions)) < len(dimensions):
        fitting = [str(size) for size in dimensions if 0 < size < width]
        raise UserError(
            f"DIMENSIONS {' '.join(map(str, dimensions))} do not suit a student {width} wide; each "
            f"once, and none wider: --dimensions {' '.join(dict.fromkeys([str(width), *fitting]))}"
        )
    return sorted({*dimensions, width}, reverse=True)


def write_dimensions(
    folder: Path, dimensions: Sequence[int], before: dict[str, float], after: dict[str, float]
) -> str:
    """Write dimensions.json, dimensions.md and dimensions.png: quality against dimension.

    Args:
        folder: the model's.
        dimensions: the full width, then those that `Watched.measure` was given.
        before: its figures of the student that came in.
        after: of the trained one.

    Returns:
        The table, in Markdown.
    """
    names = [name for name in after if "/" not in name and is_headline(name)]
    quality: dict[str, dict[int, dict[str, float]]] = {}
    for when, figures in (("before", before), ("after", after)):
        quality[when] = {
            dimension: {name: figures[at(name, dimension) if place else name] for name in names}
            for place, dimension in enumerate(dimensions)
        }
    rows = [
        [dimension, *(quality[when][dimension][name] for name in names for when in quality)]
        for dimension in dimensions
    ]
    table = report.table(
        ["dimension", *(f"{name} {when}" for name in names for when in quality)], rows
    )
    storage.write_json(folder / "dimensions.json", quality)
    storage.write_text(
        folder / "dimensions.md",
        "# Quality against dimension\n\nThe first numbers of a vector are a vector of their own, "
        f"at unit length again:\n\n    SentenceTransformer(folder, truncate_dim={dimensions[-1]})"
        f".encode(texts, normalize_embeddings=True)\n\n{table}\n",
    )
    plot(folder / "dimensions.png", names, **quality)
    return table


def plot(
    path: Path,
    names: Sequence[str],
    before: dict[int, dict[str, float]],
    after: dict[int, dict[str, float]],
) -> None:
    """Draw each figure against the dimension, before (dashed) and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for number, name in enumerate(names):
        for values, style, label in ((before, "--", None), (after, "-", name)):
            dimensions = sorted(values)
            axes.plot(
                dimensions,
                [values[size][name] for size in dimensions],
                style,
                marker="o",
                color=f"C{number % 10}",
                label=label,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(after), [str(size) for size in sorted(after)])
    axes.minorticks_off()
    axes.set_xlabel("dimension")
    axes.set_ylabel("quality (dashed: before)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
