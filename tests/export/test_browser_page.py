"""The page beside an export: what it is made of, and what is refused on the way."""

import hashlib
import io
import re
import tarfile
from pathlib import Path

import pytest

from small_modernbert.export import browser_page
from small_modernbert.export.browser_page import NpmPackage
from small_modernbert.runs.errors import UserError

CONTENT = {"package/dist/engine.mjs": b"export const answer = 42;", "package/LICENSE": b"free"}


def write_archive(path: Path) -> None:
    """Write what npm would bring."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> NpmPackage:
    """Return the only package that the page then needs."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    made = NpmPackage("@made/engine", "1.2.3", digests)
    monkeypatch.setattr(browser_page, "PACKAGES", (made,))
    return made


def test_an_archive_that_lies_there_is_taken(package: NpmPackage, tmp_path: Path) -> None:
    """Without npm; what is whole is not brought again, what is damaged is."""
    assert package.archive == "made-engine-1.2.3.tgz"
    write_archive(tmp_path / package.archive)
    assert not browser_page.is_whole(tmp_path)
    browser_page.bring_runtime(tmp_path)
    assert browser_page.is_whole(tmp_path)
    (tmp_path / "engine.mjs").write_bytes(b"export")
    assert not browser_page.is_whole(tmp_path)
    browser_page.bring_runtime(tmp_path)
    assert (tmp_path / "engine.mjs").read_bytes() == CONTENT["package/dist/engine.mjs"]
    (tmp_path / package.archive).unlink()
    browser_page.bring_runtime(tmp_path)


def test_other_bytes_and_half_archives_are_refused(
    package: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the pinned bytes comes to lie in the folder."""
    archive = tmp_path / package.archive
    write_archive(archive)
    other = NpmPackage(package.name, package.version, dict.fromkeys(CONTENT, "0" * 64))
    monkeypatch.setattr(browser_page, "PACKAGES", (other,))
    with pytest.raises(UserError, match="not the pinned 0000"):
        browser_page.bring_runtime(tmp_path)
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(UserError, match=r"does not read .* remove it"):
        browser_page.bring_runtime(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [package.archive]


@pytest.mark.parametrize("case", ["no npm", "no network"])
def test_the_cure_is_named_where_nothing_comes(
    package: NpmPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Whoever has no npm, or no network, is told where to put the archive."""
    if case == "no npm":
        monkeypatch.setattr("shutil.which", lambda _: None)
        reason = "apt-get install npm"
    else:
        npm = tmp_path / "bin" / "npm"
        npm.parent.mkdir()
        npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", str(npm.parent), prepend=":")
        reason = r"\(code ENOTFOUND\); check the network"
    with pytest.raises(UserError, match=rf"{reason}, or put {package.archive} .*into {tmp_path}"):
        browser_page.bring_runtime(tmp_path)


def test_the_page_names_nothing_that_is_not_beside_it(package: NpmPackage, tmp_path: Path) -> None:
    """Its files are all there and it may ask nobody else; what is typed never becomes markup."""
    write_archive(tmp_path / package.archive)
    browser_page.bring_runtime(tmp_path)
    browser_page.write(tmp_path / "export", tmp_path)
    page = tmp_path / "export" / "browser"
    assert (page / "runtime" / "engine.mjs").is_file()
    html = (page / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="([^":]+)"', html):
        assert (page / name).is_file()
    assert "default-src 'none'" in html and "connect-src 'self'" in html
    scripts = "".join(path.read_text(encoding="utf-8") for path in page.glob("*.js"))
    assert "innerHTML" not in scripts and "http" not in scripts


def test_the_pins_are_those_that_the_page_asks_for() -> None:
    """What the page imports is what the packages bring."""
    brought = {Path(name).name for each in browser_page.PACKAGES for name in each.files}
    source = (browser_page.SOURCE / "encoder.js").read_text(encoding="utf-8")
    assert set(re.findall(r"runtime/([\w.-]+)\"", source)) == brought - {"LICENSE"}
