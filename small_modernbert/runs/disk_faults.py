"""What a full, read-only or forbidden disk says through many libraries, and what cures it."""

import errno
import re
from pathlib import Path

from small_modernbert.runs.errors import UserError, causes

OTHER_DISK = "check the disk, or keep runs/ on another one with RUNS=/elsewhere"
ELSEWHERE = "free some space, or keep runs/ on another disk with RUNS=/elsewhere"
CURES = {
    errno.ENOSPC: f"the disk is full; {ELSEWHERE}",
    errno.EDQUOT: f"the disk quota is used up; {ELSEWHERE}",
    errno.EFBIG: "a file has reached the size allowed here; raise it with: ulimit -f unlimited",
    errno.EROFS: "it is read-only; keep runs/ on another disk with RUNS=/elsewhere",
    errno.EACCES: "this user has no right to; chown it, or keep runs/ elsewhere with RUNS=",
    errno.EPERM: "this user has no right to; chown it, or keep runs/ elsewhere with RUNS=",
    errno.EIO: "the disk reports an error; check it (dmesg), or use another with RUNS=/elsewhere",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Rust (safetensors, tokenizers) and Arrow put the number into the text, torch and numpy drop it.
_NUMBERED = re.compile(r"(?:os error|[Ee]rrno) (\d+)")
_CUT_SHORT = re.compile(
    r"\d+ requested and \d+ written|PytorchStreamWriter failed writing|iostream error"
    r"|inline_container.*unexpected pos"
)


def explain(error: BaseException, folder: Path | None = None) -> UserError | None:
    """Say what a full, read-only or forbidden disk did, and the cure; None if it was not that.

    Args:
        error: what was raised; what caused it, or was being handled, counts too.
        folder: what to name where the error names no file.
    """
    for link in causes(error):
        if isinstance(link, UserError):
            return None
        number = link.errno if isinstance(link, OSError) else None
        if number is None and (match := _NUMBERED.search(str(link))):
            number = int(match[1])
        cure = CURES.get(number) if link is error or number in FULL else None
        if number is None and _CUT_SHORT.search(str(link)):
            cure = f"the disk is full, or a file as large as ulimit -f allows; {ELSEWHERE}"
        if cure is not None:
            name = getattr(link, "filename", None) or folder or "a file"
            return UserError(f"{name} could not be written or read: {cure}, then run again")
    return None
