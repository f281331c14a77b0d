"""Charts by matplotlib: pictures in a file, or SVG whose text is text and takes a page's colour."""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.2, 3.6)  # inches: 374 points wide, about as many pixels as a phone shows
LABEL = 9.5  # points
INK = "#010203"  # replaced by the page's own colour, light or dark
COLOURS = ("#3b7dd8", "#d8573b", "#2f9e6e", "#b0782a", "#8a5cd0", "#c2467f", "#5b8a99", "#7f8a2e")
SMOOTHED = 60  # points of a curve that a person can tell apart


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str
) -> str:
    """Return lines of (x, y) by label, each labelled at its right end.

    A series of many points is shown thin, with the mean of its neighbours over it.
    """
    figure, axes = _figure(across, up)
    ends: list[tuple[float, float, str, str]] = []
    for number, (label, (xs, ys)) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        x, y = np.asarray(xs, float), np.asarray(ys, float)
        if len(x) > 2 * SMOOTHED:
            axes.plot(x, y, color=colour, linewidth=0.4, alpha=0.4)
            edges = np.linspace(0, len(x), SMOOTHED + 1).astype(int)
            spans = list(zip(edges[:-1], edges[1:], strict=True))
            x = np.array([x[begin:end].mean() for begin, end in spans])
            y = np.array([y[begin:end].mean() for begin, end in spans])
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(x) < 12 else "", ms=3)
        ends.append((float(x[-1]), float(y[-1]), label, colour))
    _label_at_right(axes, ends)
    return _svg(figure)


def points(
    labelled: Sequence[tuple[str, float, float]],
    across: str,
    up: str,
    levels: Sequence[tuple[str, float]] = (),
    logarithmic: bool = True,
) -> str:
    """Return points (label, x, y) and level lines (label, y), labels apart at the right.

    Points at the same place are rings around each other, and keep a label each.
    """
    return _svg(_points(labelled, across, up, levels, logarithmic, SIZE))


def save_points(
    path: Path,
    labelled: Sequence[tuple[str, float, float]],
    across: str,
    up: str,
    levels: Sequence[tuple[str, float]] = (),
    size: tuple[float, float] = SIZE,
) -> None:
    """Write such points as a picture of so many inches."""
    figure = _points(labelled, across, up, levels, True, size)
    figure.savefig(path, dpi=180, facecolor="white")


def _points(
    labelled: Sequence[tuple[str, float, float]],
    across: str,
    up: str,
    levels: Sequence[tuple[str, float]],
    logarithmic: bool,
    size: tuple[float, float],
) -> "Figure":
    figure, axes = _figure(across, up, size)
    ends = []
    for number, (label, x, y) in enumerate(labelled):
        colour = COLOURS[number % len(COLOURS)]
        size = 30 + 45 * sum(other[1:] == (x, y) for other in labelled[number + 1 :])
        axes.scatter([x], [y], s=size, color=colour, zorder=3)
        ends.append((x, y, label, colour))
    for label, y in levels:
        axes.axhline(y, linestyle=":", linewidth=1, color=INK, alpha=0.6)
        ends.append((float("nan"), y, label, INK))
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.margins(x=0.08, y=0.12)
    _label_at_right(axes, ends)
    return figure


def bars(values: Mapping[str, float], across: str) -> str:
    """Return horizontal bars, the first on top, with their numbers."""
    figure, axes = _figure(across, "", (SIZE[0], max(1.6, 0.3 * len(values) + 0.8)))
    names = list(values)[::-1]
    numbers = [values[name] for name in names]
    axes.barh(names, numbers, color=COLOURS[0], height=0.7)
    for place, number in enumerate(numbers):
        axes.annotate(
            f"{number:,.0f}",
            (number, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL,
            color=INK,
        )
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="y", visible=False)
    return _svg(figure)


def histogram(values: Sequence[int], across: str, up: str) -> str:
    """Return how many of the values are how large."""
    figure, axes = _figure(across, up)
    axes.hist(values, bins=min(40, max(5, len(set(values)))), color=COLOURS[0])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return _svg(figure)


def scatter_map(places: np.ndarray, groups: Sequence[str]) -> str:
    """Return a map of `(points, 2)` places, a colour a group, the largest groups first."""
    figure, axes = _figure("", "")
    names = sorted(set(groups), key=lambda name: (-list(groups).count(name), name))
    groups_of = np.asarray(groups)
    for number, name in enumerate(names[: len(COLOURS)]):
        x, y = places[groups_of == name].T
        axes.scatter(x, y, s=5, color=COLOURS[number], alpha=0.7, linewidths=0, label=name)
    rest = ~np.isin(groups_of, names[: len(COLOURS)])
    if rest.any():
        x, y = places[rest].T
        axes.scatter(x, y, s=5, color="#888888", alpha=0.5, linewidths=0, label="others")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        frameon=False,
        fontsize=LABEL,
        labelcolor=INK,
        markerscale=2,
    )
    return _svg(figure)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return places near the wanted ones, in their order, at least `gap` apart."""
    order = np.argsort(wanted, kind="stable")
    placed = np.asarray(wanted, float)[order]
    for _ in range(200):
        close = np.flatnonzero(np.diff(placed) < gap * 0.999)
        if not len(close):
            break
        for first in close:
            middle = (placed[first] + placed[first + 1]) / 2
            placed[first], placed[first + 1] = middle - gap / 2, middle + gap / 2
        placed = np.sort(placed)
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()


def _label_at_right(axes: "Axes", ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the labels beside the axes, one below the other, each with a line to its point."""
    if not ends:
        return
    axes.figure.canvas.draw()
    height = axes.get_window_extent().height
    to_axes = axes.transData + axes.transAxes.inverted()
    left, right = axes.get_xlim()
    spots = [to_axes.transform((right if np.isnan(x) else x, y)).tolist() for x, y, _, _ in ends]
    # To the left end of the label, or it would run through it and its neighbours.
    line = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)}
    places = spread([spot[1] for spot in spots], gap=1.25 * LABEL / height * axes.figure.dpi / 72)
    for (x, _, label, colour), spot, place in zip(ends, spots, places, strict=True):
        axes.annotate(
            label,
            xy=spot if not np.isnan(x) else (1.0, spot[1]),
            xytext=(1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL,
            color=colour,
            annotation_clip=False,
            arrowprops=line | {"color": colour},
        )
    axes.set_xlim(left, right)


def _figure(across: str, up: str, size: tuple[float, float] = SIZE) -> "tuple[Figure, Axes]":
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(across, color=INK, fontsize=LABEL + 1)
    axes.set_ylabel(up, color=INK, fontsize=LABEL + 1)
    axes.tick_params(colors=INK, labelsize=LABEL)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.grid(alpha=0.18, color=INK, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


_numbers = itertools.count()  # ids must differ within a page, whoever makes the figures


def _svg(figure: "Figure") -> str:
    """Return a figure as an SVG element that scales, with ids that no other figure has."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    number = next(_numbers)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>figure{number}-", body)
    return f"{head}>{body}".replace(INK, "currentColor").replace("'DejaVu Sans'", "inherit")
