"""The page of a run: what stands on it is what the stages wrote down, and nothing runs from it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import browse, needs_browser

from small_modernbert.reporting import page, run_folder
from small_modernbert.runs.errors import UserError


def write_stage(folder: Path, name: str, *sources: str, **record: Any) -> None:  # noqa: ANN401
    """Write what a finished stage leaves."""
    inputs = {
        source: {"path": f"/final/{folder.name}/runs/{folder.name}/{source}/final", "digest": "x"}
        for source in sources
    }
    stage = folder / name
    (stage / "final").mkdir(parents=True)
    whole = {"script": name, "status": "finished", "seconds": 100.0, "inputs": inputs, **record}
    (stage / "run.json").write_text(json.dumps(whole), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of four stages with hostile names in its figures."""
    folder = tmp_path / "final" / "toy"  # what stands above the runs does not matter
    write_stage(folder, "mlm/create_dataset", status="failed", error="a <b>bold</b> reason")
    write_stage(folder, "create_distil_dataset", "mlm/create_dataset", rows={"train": 900})
    figures = {"before": {"held_out_cosine": 0.2}, "after": {"held_out_cosine": 0.9}}
    write_stage(folder, "distil_modernbert", "create_distil_dataset", metrics=figures, steps=40)
    write_stage(folder, "benchmark_hotpotqa", "distil_modernbert", "create_distil_dataset")
    lines = [{"step": step, "loss": 1 / (step + 1)} for step in range(40)]
    lines += [{"step": step, "held_out_cosine": 0.2 + step / 100} for step in (0, 20, 40)]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 41, "lo'
    (folder / "distil_modernbert" / "metrics.jsonl").write_text(text, encoding="utf-8")
    rows = [
        {
            "label": label,
            "quality": quality,
            "share_of_teacher": quality / 0.9,
            "retrieval": {"sciq": {"ndcg@10": quality}},
            "parameters": 10,
            "documents_per_second": speed,
            "size_bytes": 4_000_000 if speed else None,
            "share_by_words": {"new": quality / 0.96, "known": None},
        }
        for label, quality, speed in (
            ("teacher", 0.9, 50.0),
            ("<script>alert(1)</script>", 0.88, 120.0),
            ("BM25", 0.7, None),
        )
    ]
    rows[2]["parameters"] = None
    results = {"rows": rows, "averaged": ["sciq"], "machine": {}, "remarks": ["Worth it."]}
    final = folder / "benchmark_hotpotqa" / "final"
    (final / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_stages_come_in_the_order_in_which_they_read_each_other(run: Path) -> None:
    """Also where runs/ has been moved since: what counts is the place within the recipe."""
    stages = run_folder.read_stages(run)
    assert [(stage.name, stage.depth) for stage in stages] == [
        ("mlm/create_dataset", 0),
        ("create_distil_dataset", 1),
        ("distil_modernbert", 2),
        ("benchmark_hotpotqa", 3),
    ]
    assert not stages[0].finished
    assert len(stages[2].metrics) == 43, "the line that a kill cut is left out"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """With the command that makes one."""
    with pytest.raises(UserError, match="make run"):
        run_folder.read_stages(tmp_path)


def test_the_page_shows_what_was_written_down(run: Path) -> None:
    """Figures, changes, remarks and the failure; markup in them is text."""
    html = page.render("toy", run_folder.read_stages(run), None, [])
    assert "0.2000 → 0.9000" in re.sub(r"<wbr>", "", html)
    assert "97.8 %" in html
    assert "2.4" in html
    assert "<td>93.8 %</td><td>–</td>" in html, "of the teacher on queries with a new word"
    assert "Worth it." in html
    assert "Not finished: mlm/create_dataset." in html
    assert "<b>bold</b>" not in html
    assert "<script>" not in html
    assert html.count("<figure") == 4


class References(HTMLParser):
    """Collects whatever a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note scripts, and attributes that name another place."""
        if tag in ("script", "link", "iframe", "img"):
            self.outside.append(tag)
        for name, value in attrs:
            inside = (value or "").startswith("#")
            if name in ("src", "href", "xlink:href", "action") and not inside:
                self.outside.append(f"{name}={value}")


def test_the_page_needs_no_network(run: Path) -> None:
    """Nothing is fetched from anywhere, and no script runs."""
    parser = References()
    parser.feed(page.render("toy", run_folder.read_stages(run), None, []))
    assert parser.outside == []


@needs_browser
def test_a_browser_draws_every_figure_within_the_window(run: Path, tmp_path: Path) -> None:
    """No error on the console, every chart has a size, and nothing is wider than the window.

    On a telephone and on a desk: one browser shows both, a frame each.
    """
    html = page.render("toy", run_folder.read_stages(run), None, [])
    probe = """<script>addEventListener("load", () => {
      const sizes = [...document.querySelectorAll("figure.chart svg")]
        .map(svg => svg.getBoundingClientRect()).map(box => box.width > 200 && box.height > 100);
      parent.postMessage([innerWidth, document.documentElement.scrollWidth, sizes], "*");
    });</script>"""
    told = """<script>const told = []; addEventListener("message", message => {
      told.push(message.data); document.title = JSON.stringify(told);
    });</script>"""
    (tmp_path / "page.html").write_text(html.replace("</body>", f"{probe}</body>"), "utf-8")
    frames = [
        f'<iframe src="page.html" width="{width}" height="2000" style="border: 0"></iframe>'
        for width in (400, 1400)
    ]
    both = tmp_path / "both.html"
    both.write_text(f"<title>none</title>{told}{''.join(frames)}", encoding="utf-8")
    dom = browse(both.as_uri(), tmp_path, "--window-size=2000,2200", "--virtual-time-budget=5000")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None, dom[:500]
    seen = sorted(json.loads(title[1]))
    assert [width for width, _, _ in seen] == [400, 1400]
    for width, needed, sizes in seen:
        assert needed <= width
        assert sizes == [True] * 4
