"""docs/BENCHMARKS.md: the claims of every machine, as Markdown, from docs/benchmarks.json.

Works on plain JSON, so that figures of a machine that is out of reach can still be written out.
"""

import datetime
import math
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import processors

from small_modernbert.runs import lineage, report


def within(value: float, least: float | None, most: float | None) -> bool:
    """Say whether a value is inside its bounds; NaN never is."""
    return (
        not math.isnan(value)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, memory, GPU, versions, commit, date."""
    processor = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        found = re.search(r"model name\s*:\s*(.+)", described.read_text(encoding="utf-8"))
        processor = found[1].strip() if found else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "name": gpu or processor,
        "processor": processor,
        "cores": len(processors()),
        "memory_gib": round(memory),
        "gpu": gpu,
        "versions": lineage.versions(),
        "git": lineage.git_state(),
        "date": datetime.date.today().isoformat(),
    }


def markdown(runs: dict[str, dict[str, Any]]) -> str:
    """Return docs/BENCHMARKS.md: a section a machine, from what docs/benchmarks.json holds."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; do not edit. Ours and the peer work in turn, each in a process",
        "of its own, on the same inputs and threads. A ratio is how many times as much work a",
        "second ours does: the median over the rounds, and in brackets the lowest and the highest.",
        "Padding is real over processed tokens, memory the largest resident size; both are given",
        "as ours / peer.",
    ]
    for found in runs.values():
        where = found["machine"]
        lines += ["", f"## {where['name']}, {where['cores']} cores", "", _described(found)]
        for script, rows in found["scripts"].items():
            lines += ["", markdown_of_script(script, rows).rstrip()]
    return "\n".join(lines) + "\n"


def _described(found: dict[str, Any]) -> str:
    where = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    best: dict[str, float] = {}
    for script in found["scripts"].values():
        for name, rate in script["ceilings"].items():
            best[name] = max(rate, best.get(name, 0.0))
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in best.items())
    commit = (where["git"]["commit"] or "unknown")[:12] + (
        " with changes" if where["git"]["dirty"] else ""
    )
    seconds = sum(script["seconds"] for script in found["scripts"].values())
    return (
        f"{where['date']}, commit {commit}, {where['memory_gib']} GiB, "
        f"{report.minutes(seconds)} in all. Matrix products: {rates or 'not measured'}. "
        f"{versions[0].upper()}{versions[1:]}."
    )


def markdown_of_script(script: str, found: dict[str, Any]) -> str:
    """Return one script's section: setting, table of claims, checks, reasons, further tables."""
    lines = [f"### {script}", "", found["setting"], ""]
    if found["rows"]:
        headers = ["claim", "peer", "bound", "by wall", "by CPU", "rate", "padding"]
        headers += ["memory, GiB", "of bf16 / fp32 rate", "verdict"]
        lines.append(report.table(headers, [_cells(row) for row in found["rows"]]))
    wordings = {row["peer"]: row["wording"] for row in found["rows"] if row["wording"]}
    notes = [f"- Peer “{name}”: {wording}" for name, wording in wordings.items()]
    notes += [note for row in found["rows"] for note in _notes(row)]
    if notes:
        lines += ["", *notes]
    for title, table in found["tables"].items():
        lines += ["", f"{title}:", "", report.table(table["headers"], table["rows"])]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    rates, memory, shares = row["rates"], row["memory_mib"], row["shares"]
    return [
        row["claim"],
        row["peer"],
        _bound(row) or "report",
        _spread(row["wall"]),
        _spread(row["cpu"]),
        " / ".join(f"{rate:,.0f}" for rate in rates) if rates else "–",
        _pair(row["padding"], "{:.2f}"),
        _pair([mib / 1024 for mib in memory] if memory else [], "{:.2f}"),
        _pair([shares.get(name) for name in ("bf16", "fp32")], "{:.0%}"),
        row["verdict"],
    ]


def _notes(row: dict[str, Any]) -> list[str]:
    notes = [
        f"- {row['claim']}: {check['what']} {check['value']:.6g} ({_bound(check)}): "
        + ("met" if within(check["value"], check["least"], check["most"]) else "not met")
        for check in row["checks"]
    ]
    if row["verdict"] != "met" and row["reason"]:
        notes.append(f"- {row['claim']}: {row['reason']}")
    return notes


def _bound(bounds: dict[str, Any]) -> str:
    signs = {"least": "≥", "most": "≤"}
    return ", ".join(
        f"{sign} {bounds[name]:g}" for name, sign in signs.items() if bounds[name] is not None
    )


def _spread(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def _pair(values: Sequence[float | None], form: str) -> str:
    if not any(value is not None for value in values):
        return "–"
    return " / ".join("–" if value is None else form.format(value) for value in values)
