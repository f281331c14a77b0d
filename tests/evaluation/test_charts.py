"""Charts are SVG that scales, whose labels are text and never lie over one another."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from small_modernbert.evaluation import charts


def texts_of(svg: str) -> list[str]:
    """Return the texts of an SVG element, which must parse."""
    root = ElementTree.fromstring(svg)
    return [node.text.strip() for node in root.iter() if node.tag.endswith("text") and node.text]


def test_points_keep_every_label_also_at_one_place() -> None:
    """Equal points share a place and keep their labels; level lines have theirs."""
    svg = charts.points(
        [("first", 100, 0.9), ("second", 100, 0.9), ("third", 101, 0.9001)],
        "documents a second",
        "quality",
        [("BM25", 0.9)],
    )
    assert {"first", "second", "third", "BM25", "quality"} <= set(texts_of(svg))
    assert "width=" not in svg[: svg.index(">")]
    assert "viewBox" in svg[: svg.index(">")]
    assert charts.INK not in svg
    assert "currentColor" in svg


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_spread_in_their_order(seed: int) -> None:
    """Places end at least a gap apart, in the order that was wanted."""
    wanted = np.random.default_rng(seed).uniform(0, 1, 9)
    wanted[3] = wanted[4]
    placed = np.array(charts.spread(wanted.tolist(), 0.08))
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) > 0.07).all()
    assert np.allclose(charts.spread([0.1, 0.5, 0.9], 0.08), [0.1, 0.5, 0.9])


def test_a_long_curve_is_smoothed_and_a_short_one_is_not() -> None:
    """A curve of thousands of steps shows the means of its neighbours over it."""
    steps = np.arange(5000)
    long = charts.curves({"loss": (steps, np.sin(steps))}, "step", "loss")
    short = charts.curves({"loss": ([1, 2], [3.0, 2.0])}, "step", "loss")
    assert len(long) > 4 * len(short)
    assert "loss" in texts_of(short)


def test_ids_differ_between_charts() -> None:
    """Two figures on one page do not borrow each other's clip paths."""
    first, second = (charts.bars({"kept": 3, "read": 5}, "texts") for _ in range(2))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]


def test_the_map_names_its_groups() -> None:
    """Every group has its colour and its name; those beyond the colours are others."""
    places = np.random.default_rng(1).normal(size=(60, 2))
    groups = [f"group {number % 10}" for number in range(60)]
    named = texts_of(charts.scatter_map(places, groups))
    assert "others" in named
    assert "group 0" in named
