"""Ask for known vulnerabilities of the packages that are installed here.

    .venv/bin/python .ci/audit.py

Exits with 1 if one of them has a vulnerability with a fix. Where pip-audit or its databases (the
package index's own, then OSV) are out of reach, or know none of the packages, it says so and exits
with 0: pip-audit itself calls that "No known vulnerabilities found".
"""

import json
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

TOOL = "pip-audit==2.10.1"  # in an environment of its own: its dependencies are none of ours
OURS = "small-modernbert"
BESIDE = ("pip", "setuptools")  # of the interpreter that made the environment, not ours to pin
SECONDS = 300


def main() -> int:
    """Audit, report, and return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pins = folder / "installed.txt"
        # A local version ("2.13.0+cpu") is in no database.
        found = {
            f"{package.name}=={package.version.partition('+')[0]}"
            for package in metadata.distributions()
            if package.name not in (OURS, *BESIDE)
        }
        pins.write_text("\n".join(sorted(found)) + "\n", encoding="utf-8")
        venv.create(folder / "tool", with_pip=True)
        python = folder / "tool" / "bin" / "python"
        installed = run([python, "-m", "pip", "install", "--quiet", TOOL])
        if installed.returncode:
            return skip(f"{TOOL} cannot be installed: {last_line(installed.stderr)}")
        reasons = []
        for service in ("pypi", "osv"):
            flags = ["-s", service, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
            command = [python, "-m", "pip_audit", "-r", pins, "-f", "json", "--timeout", "15"]
            answer = run([*command, *flags])
            try:
                packages = json.loads(answer.stdout)["dependencies"]
            except (ValueError, KeyError):
                reasons.append(f"{service}: {last_line(answer.stderr)}")
                continue
            known = [package for package in packages if "skip_reason" not in package]
            if known:
                return judge(service, known, len(packages))
            reasons.append(f"{service}: knows none of the {len(packages)} packages")
        return skip("; ".join(reasons))


def judge(service: str, packages: list[dict], total: int) -> int:
    """Print what is known of the packages; return 1 if something has a fix."""
    code = 0
    print(f"audit: {len(packages)} of {total} packages checked against {service}")
    for package in packages:
        for one in package["vulns"]:
            fixes = ", ".join(one["fix_versions"])
            cure = f"fixed in {fixes}" if fixes else "no fix yet"
            print(f"audit: {package['name']} {package['version']}: {one['id']}, {cure}")
            code = 1 if fixes else code
    return code


def skip(reason: str) -> int:
    """Say why nothing was checked; that is no failure."""
    print(f"audit: skipped ({reason})")
    return 0


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a command within SECONDS; one that takes longer has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {SECONDS} s")


def last_line(text: str) -> str:
    """Return the last line that says something, shortened."""
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
