"""What the stages of a recipe make once and share: tokens and label arrays, memory-mapped.

    runs/<recipe>/.cache/
        lock
        <digest>/       one entry: whatever its maker puts there

An entry is named after everything that decides its content, so it is never out of date, and stages
that need the same find it. The `KEPT` used last stay; to remove the folder costs the making alone.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from small_modernbert.runs import storage

# The labels' tokens and vectors and the corpus' tokens are what a recipe's stages share; one more
# for a run with other lengths beside it.
KEPT = 4
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def entry(cache: Path, key: object) -> Iterator[Path]:
    """Hold the cache while an entry is made or opened; yield the entry's folder.

    Another process waits meanwhile, since it most likely wants the same. Entries beyond the bound
    are removed afterwards, even if a stage still maps them: their files stay until it ends.

    Args:
        cache: the folder; created if needed.
        key: JSON of everything that decides the content.

    Raises:
        UserError: the file system has no locks.
    """
    cache.mkdir(parents=True, exist_ok=True)
    busy = f"{cache} is in use by {{owner}}; waiting for what it makes there"
    with storage.take_lock(cache / "lock", busy, wait=lambda said: logger.info("%s", said)):
        folder = cache / storage.digest_json(key)[:16]
        folder.mkdir(exist_ok=True)
        yield folder
        folder.touch()
        entries = sorted(
            (path for path in cache.iterdir() if path.is_dir()),
            key=lambda path: path.stat().st_mtime_ns,
        )
        for old in entries[:-KEPT]:
            if old != folder:
                storage.remove(old)
