"""docs/BENCHMARKS.md: the claims of every machine, as Markdown, from docs/benchmarks.json.

Works on plain JSON, so that figures of a machine that is out of reach can still be written out.
"""

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

from small_modernbert.runs import lineage, report

HEAD = """# Benchmarks

Written by `make bench`; do not edit. Ours and the peer work in turn, each in a process of its own,
on the same inputs and threads. A ratio is how many times as much work a second ours does: the
median over the rounds, and in brackets the lowest and the highest. Rates and memory (largest
resident size) are given as ours / peer.
"""


def machine(cores: int) -> dict[str, Any]:
    """Return what the figures depend on: processor, memory, GPU, versions, commit, date."""
    import torch

    listing = Path("/proc/cpuinfo")
    named = listing.exists() and re.search(
        r"model name\s*:\s*(.+)", listing.read_text(encoding="utf-8")
    )
    processor = named[1].strip() if named else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "name": gpu or processor,
        "processor": processor,
        "cores": cores,
        "memory_gib": round(memory),
        "gpu": gpu,
        "versions": lineage.versions(),
        "git": lineage.git_state(),
        "date": datetime.date.today().isoformat(),
    }


def markdown(machines: dict[str, dict[str, Any]]) -> str:
    """Return docs/BENCHMARKS.md: a section a machine, from what docs/benchmarks.json holds."""
    parts = [HEAD]
    for run in machines.values():
        where = run["machine"]
        parts.append(f"## {where['name']}, {where['cores']} cores\n\n{machine_line(run)}\n")
        parts += [markdown_of_script(name, result) for name, result in run["scripts"].items()]
    return "\n".join(parts)


def machine_line(run: dict[str, Any]) -> str:
    """Return a machine in one line: when, which commit, how fast, which versions."""
    where, best = run["machine"], {}
    for script in run["scripts"].values():
        for name, rate in script["ceilings"].items():
            best[name] = max(rate, best.get(name, 0.0))
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in best.items())
    changed = " with changes" if where["git"]["dirty"] else ""
    commit = (where["git"]["commit"] or "unknown")[:12] + changed
    seconds = sum(script["seconds"] for script in run["scripts"].values())
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{where['date']}, commit {commit}, {where['memory_gib']} GiB, {report.minutes(seconds)} "
        f"in all. Matrix products: {rates or 'not measured'}. Versions: {versions}."
    )


def markdown_of_script(name: str, result: dict[str, Any]) -> str:
    """Return one script's section: setting, claims, checks, reasons, further tables."""
    parts = [f"### {name}", result["setting"]]
    if result["rows"]:
        headers = ["claim", "peer", "bound", "ratio", "rate", "memory, GiB", "of bf16 / fp32 rate"]
        cells = [_cells(row) for row in result["rows"]]
        parts.append(report.table([*headers, "verdict"], cells))
    wordings = {row["peer"]: row["wording"] for row in result["rows"] if row["wording"]}
    notes = [f"- Peer “{peer}”: {wording}" for peer, wording in wordings.items()]
    for row in result["rows"]:
        notes += [
            f"- {row['claim']}: {each['what']} {each['value']:.6g} ({bound(each)})"
            for each in row["checks"]
        ]
        if row["verdict"] != "met" and row["reason"]:
            notes.append(f"- {row['claim']}: {row['reason']}")
    parts += ["\n".join(notes)] if notes else []
    for title, table in result["tables"].items():
        parts += [f"{title}:", report.table(table["headers"], table["rows"])]
    return "\n\n".join(parts) + "\n"


def bound(bounds: dict[str, Any]) -> str:
    """Return what bounds a figure, "" where nothing does."""
    signs = {"least": "≥", "most": "≤"}
    given = {sign: bounds[name] for name, sign in signs.items() if bounds[name] is not None}
    return ", ".join(f"{sign} {value:g}" for sign, value in given.items())


def _cells(row: dict[str, Any]) -> list[str]:
    figure, rates, memory, shares = (
        row[name] for name in ("wall", "rates", "memory_mib", "shares")
    )
    return [
        row["claim"],
        row["peer"],
        bound(row) or "report",
        f"{figure['median']:.2f} ({figure['low']:.2f}–{figure['high']:.2f})" if figure else "–",
        " / ".join(f"{rate:,.0f}" for rate in rates) if rates else "–",
        " / ".join(f"{mib / 1024:.2f}" for mib in memory) if memory else "–",
        " / ".join(f"{shares[name]:.0%}" for name in ("bf16", "fp32")) if shares else "–",
        row["verdict"],
    ]
