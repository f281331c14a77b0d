"""What a process asks of the machine, and of its libraries, before they are loaded."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h, glibc
LARGEST = 32 << 20  # bytes; the largest threshold that glibc takes
KEPT = 1 << 30  # bytes of free memory at the heap's end

# Sleeping at once costs 10 to 15 % where nothing else runs; GNU's OpenMP can be told to spin for
# some microseconds first, which costs a neighbour next to nothing (docs/LOG.md).
GNU_SPINS = "10000"

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
