"""What the C library does with freed memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h, glibc
LARGEST = 32 << 20  # bytes; the largest threshold that glibc takes
KEPT = 1 << 30  # bytes of free memory at the heap's end


def keep_freed() -> None:
    """Let freed memory serve the next allocation instead of going back to the kernel.

    A forward pass frees and takes the same megabytes all the time. By default glibc returns such
    blocks, and the kernel hands them out again page by page, zeroed: 5 % of the time of bf16
    labelling, for the same peak (docs/LOG.md). It holds for the whole process;
    elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)
