"""What a process asks of the machine, and of its libraries, before they are loaded."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from small_modernbert.runs.errors import UserError, causes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h, glibc
LARGEST = 32 << 20  # bytes; the largest threshold that glibc takes
KEPT = 1 << 30  # bytes of free memory at the heap's end

# Sleeping at once costs 10 to 15 % where nothing else runs; GNU's OpenMP can be told to spin for
# some microseconds first, which costs a neighbour next to nothing (docs/LOG.md).
GNU_SPINS = "10000"

# What torch says, of a GPU and of its own memory; Python has an error of its own.
MEMORY_USED_UP = ("out of memory", "can't allocate memory", "not enough memory")
# Constants that decide how much of it is wanted at once: the first that a script has is named.
WANTS = ("TOKENS_PER_BATCH", "SEQUENCES_PER_BATCH", "ROWS_PER_BATCH")
SMALL_BATCH = 8_192  # tokens, where a script leaves the number to the device

# A variable that the user has set stays as it is.
ENVIRONMENT = {
    # OpenMP's threads spin while they wait for each other. With one other job on the machine they
    # spin the time away that this job would need: two to seven times slower (docs/LOG.md). GNU's
    # OpenMP (torch's on Linux), LLVM's and Intel's read this once, when they are loaded.
    "OMP_WAIT_POLICY": "passive",
    # The libraries' bars would be written over ours; what takes long has a bar of our own.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # And its tables of weights that it did not need; whether all that are needed are there, and
    # sound, is checked by `models.loading`.
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare() -> None:
    """Set what libraries read from the environment; call it before torch is imported."""
    # Set, this count outweighs the policy: only beside a policy that is ours.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", GNU_SPINS)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def keep_freed() -> None:
    """Let freed memory serve the next allocation instead of going back to the kernel.

    A forward pass frees and takes the same megabytes all the time. By default glibc returns such
    blocks, and the kernel hands them out again page by page, zeroed: 5 % of the time of bf16
    labelling, 14 % of int8's, for the same peak (docs/LOG.md). It holds for the whole process;
    elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


@contextlib.contextmanager
def memory(namespace: Mapping[str, Any]) -> Iterator[None]:
    """Say what to take less of when memory, the GPU's or the machine's own, is used up.

    Args:
        namespace: a script's globals.

    Raises:
        UserError: in place of what torch or Python has raised.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        for link in causes(error):
            said = str(link)
            if isinstance(link, MemoryError) or any(text in said for text in MEMORY_USED_UP):
                where = "the GPU's memory" if "CUDA" in said or "HIP" in said else "the memory"
                raise UserError(f"{where} is used up ({said[:120]}); {_cure(namespace)}") from error
        raise


def _cure(namespace: Mapping[str, Any]) -> str:
    name = next((name for name in WANTS if name in namespace), None)
    if name is None:
        return "close what else uses it, or take a smaller model"
    value = namespace[name] // 2 or SMALL_BATCH
    cure = f"take less at once: --{name.lower().replace('_', '-')} {value}"
    if accumulate := namespace.get("ACCUMULATE"):
        cure += f" --accumulate {2 * accumulate}, which leaves an optimizer step as large as it is"
    return cure
