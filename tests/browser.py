"""Pages in a real browser: Debian's chromium, without a window, where the machine has one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def browse(address: str, folder: Path, *flags: str) -> str:
    """Return the document that a page has become; an error on its console fails the test.

    Args:
        address: of the page.
        folder: for the browser's own files.
        flags: of the browser.
    """
    assert CHROMIUM is not None
    finished = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            *flags,
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(folder), "no_proxy": "127.0.0.1"},
    )
    assert "CONSOLE" not in finished.stderr
    return finished.stdout
