"""Where finished shards go: they stay in the stage's folder, or are sent to a URL one by one.

What was sent leaves a note in the stage's scratch/ (rows, bytes, sha256, columns, facts), by which
a killed run knows that it is made, and from which the index is written. So at most one shard lies
on this disk; the index, cards and run.json stay in the stage's folder, and the index says the URL.
A copy of it stands at the URL, which then is a folder of shards for anyone.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from small_modernbert.data import parquet
from small_modernbert.runs import places, storage
from small_modernbert.runs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Outlet:
    """Where the shards of one folder go.

    Attributes:
        url: of the folder that takes them; "" lets them stay.
        notes: folder on this disk for the notes of what was sent.
    """

    url: str = ""
    notes: Path = Path()

    def has(self, path: Path) -> bool:
        """Say whether a shard is made; one that a kill kept from being sent is sent now."""
        if path.exists():
            self.send(path)
            return True
        return self._was_sent(path)

    def send(self, path: Path) -> None:
        """Bring a finished shard to the URL, and leave its note; nothing where shards stay.

        Raises:
            UserError: it cannot be written there.
        """
        if not self.url:
            return
        note = self.describe(path, "run the same command again")
        self._put(path, f"{path.parent.name}/{path.name}")
        self._note(path).parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(self._note(path), note)
        storage.remove(path)

    def finish(self, index: Path) -> None:
        """Copy the index to the URL."""
        self._put(index, index.name)

    def describe(self, path: Path, cure: str) -> dict[str, Any]:
        """Return rows, bytes, sha256, columns and facts of a shard, from its note if it was sent.

        Raises:
            UserError: it is missing, or no Parquet file.
        """
        if self._was_sent(path):
            return storage.read_json(self._note(path), cure)
        schema = parquet.read_schema(path, cure)
        return {
            "rows": parquet.count_rows(path, cure),
            "bytes": path.stat().st_size,
            "sha256": storage.sha256_file(path),
            "columns": {field.name: str(field.type) for field in schema},
            "facts": _facts(schema),
        }

    def facts_of(self, path: Path, cure: str) -> dict[str, Any]:
        """Return what a shard's writer put beside its rows; see `describe`."""
        if self._was_sent(path):
            return self.describe(path, cure)["facts"]
        return _facts(parquet.read_schema(path, cure))

    def _was_sent(self, path: Path) -> bool:
        return bool(self.url) and not path.exists() and self._note(path).exists()

    def _note(self, path: Path) -> Path:
        return self.notes / path.parent.name / f"{path.stem}.json"

    def _put(self, path: Path, name: str) -> None:
        target = places.open_url(self.url, "OUTPUT_URL") / name
        with places.explained(str(target)):
            target.fs.makedirs(
                target.parent.path, exist_ok=True
            )  # of buckets there is none to make
            target.fs.put_file(str(path), target.path)


def open_outlet(url: str, index: str, resumed: bool, notes: Path) -> Outlet:
    """Return where shards go, once it is known that they may.

    Args:
        url: see `Outlet`.
        index: name of the file that makes a folder of shards complete.
        resumed: whether this run may have written one there before it was killed.
        notes: see `Outlet`.

    Raises:
        UserError: no shards can be sent there, or there are finished ones of another run.
    """
    if not url:
        return Outlet()
    place = places.open_url(url, "OUTPUT_URL")
    if not places.is_remote(place):
        raise UserError(f"OUTPUT_URL: {url} is on this disk; RUNS=/elsewhere moves all of runs/")
    with places.explained(f"OUTPUT_URL: {url}"):
        there = (place / index).exists()
    if there and not resumed:
        raise UserError(
            f"OUTPUT_URL: {url} holds finished shards ({index}), which are never overwritten; "
            "remove them there, or give another --output-url"
        )
    return Outlet(url.rstrip("/"), notes)


def _facts(schema: pa.Schema) -> dict[str, Any]:
    return json.loads((schema.metadata or {}).get(b"facts", b"{}"))
