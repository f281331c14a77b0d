"""What a benchmark says: rows of a measured figure against its bound, printed and kept as JSON.

A script's rows go to runs/bench/<script>.json, from where run_all.py takes them.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from document import markdown_of_script, within
from harness import Result, Spread, compare, share

from small_modernbert.runs import references, report, storage


@dataclasses.dataclass(frozen=True)
class Check:
    """A condition beside the figure: equal vectors, less memory.

    Attributes:
        what: is measured.
        value: what came out.
        least: bound from below, if there is one.
        most: bound from above, if there is one.
    """

    what: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value is inside its bounds; NaN never is."""
        return within(self.value, self.least, self.most)


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        claim: what is claimed, with its unit.
        peer: whom it is measured against, in a few words.
        wording: what the peer runs, as its own documentation writes it.
        wall: the figure by wall time.
        cpu: the figure by CPU time; None where there is none.
        least: bound of the figure's median by wall time; with no bound it is reported only.
        most: bound from above.
        rates: amount a second, ours and the peer's.
        padding: real over processed tokens, ours and the peer's.
        memory_mib: peak, ours and the peer's.
        shares: share of the machine's matrix-product rate by format.
        checks: what else must hold.
        reason: why it is not met, from a profile.
    """

    claim: str
    peer: str
    wall: Spread
    cpu: Spread | None = None
    wording: str = ""
    least: float | None = None
    most: float | None = None
    rates: tuple[float, float] | None = None
    padding: tuple[float | None, float | None] = (None, None)
    memory_mib: tuple[float, float] | None = None
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Return "met", "not met", or "reported" for a row without any bound."""
        bounded = self.least is not None or self.most is not None
        if not bounded and not self.checks:
            return "reported"
        met = within(self.wall.median, self.least, self.most)
        return "met" if met and all(check.met for check in self.checks) else "not met"


def versus(
    claim: str,
    ours: Result,
    peer: Result,
    named: tuple[str, str],
    *,
    least: float | None = None,
    ceilings: dict[str, float] | None = None,
    checks: Sequence[Check] = (),
    reason: str = "",
) -> Row:
    """Return the row that compares two results of one run; `named` is (peer, wording) of `Row`."""
    return Row(
        claim,
        named[0],
        compare(ours, peer, "seconds"),
        compare(ours, peer, "cpu_seconds"),
        named[1],
        least,
        rates=(ours.rate, peer.rate),
        padding=(ours.padding, peer.padding),
        memory_mib=(ours.peak_mib, peer.peak_mib),
        shares={name: share(ours, rate).median for name, rate in (ceilings or {}).items()},
        checks=tuple(checks),
        reason=reason,
    )


def of_ceiling(
    claim: str, result: Result, ceilings: dict[str, float], least: float, reason: str = ""
) -> Row:
    """Return the row that holds a result against the machine's bf16 matrix-product rate."""
    return Row(
        f"{claim}, share of the bf16 matrix-product rate",
        "the machine",
        share(result, ceilings["bf16"]),
        least=least,
        padding=(result.padding, None),
        shares={name: share(result, rate).median for name, rate in ceilings.items()},
        reason=reason,
    )


def ceilings(result: Result) -> dict[str, float]:
    """Return the best rate of each format in any round of a `ceiling.gemm` contender."""
    rounds = [sample.work.figures for sample in result.samples]
    return {name: max(figures[name] for figures in rounds) for name in rounds[0]}


def publish(
    script: str,
    rows: Sequence[Row],
    *,
    setting: str,
    ceilings: dict[str, float] | None = None,
    tables: dict[str, tuple[list[str], list[list[Any]]]] | None = None,
    seconds: float = 0.0,
) -> None:
    """Print a script's rows and tables, and write them to runs/bench/<script>.json.

    Args:
        script: file name of the script; its stem names the file.
        rows: the claims.
        setting: model, data and sizes in one line.
        ceilings: operations a second by format.
        tables: title -> headers and rows, for what is no ratio.
        seconds: that the script took.
    """
    name = Path(script).stem
    found = {
        "setting": setting,
        "seconds": round(seconds),
        "ceilings": ceilings or {},
        "load": round(os.getloadavg()[0], 2),
        "rows": [{**dataclasses.asdict(row), "verdict": row.verdict} for row in rows],
        "tables": {
            title: {"headers": headers, "rows": cells}
            for title, (headers, cells) in (tables or {}).items()
        },
    }
    print(markdown_of_script(name, found))
    path = result_path(name)
    storage.write_json(path, found)
    print(f"{name}: {report.minutes(seconds)} · {path}")


def failure(name: str, why: str) -> dict[str, Any]:
    """Return what stands in the place of a script that published nothing."""
    nothing = dataclasses.asdict(Row(name, "–", Spread(math.nan, math.nan, math.nan)))
    row = nothing | {"wall": None, "verdict": "failed"}
    empty: dict[str, Any] = {"seconds": 0, "ceilings": {}, "load": 0.0, "tables": {}}
    return {"setting": f"Did not finish: {why}.", "rows": [row], **empty}


def result_path(name: str) -> Path:
    """Return where a script leaves its rows."""
    return references.runs_folder() / "bench" / f"{name}.json"
