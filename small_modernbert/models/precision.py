"""Which number format the matrix products run in, decided by measuring and said with its reason."""

import logging
import time
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch.nn import functional

from small_modernbert.runs.stages import Stage

logger = logging.getLogger(__name__)
Precision = Literal["auto", "fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def decide(wanted: Precision, device: torch.device) -> tuple[str, str]:
    """Return "fp32" or "bf16", and why.

    On a CPU "auto" times one matrix product in both formats: with AMX bf16 wins threefold,
    without it bf16 can be half as fast as fp32.
    """
    if wanted != "auto":
        return wanted, "as set"
    if device.type != "cpu":
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return ("bf16", "the GPU has it") if supported else ("fp32", f"no bf16 on {device.type}")
    single, half = _seconds(torch.float32), _seconds(torch.bfloat16)
    reason = f"a bf16 matrix product takes {half / single:.2f} x the time of an fp32 one here"
    # Autocast adds casts around each product; a narrow win would be lost to them.
    return ("bf16" if half < 0.7 * single else "fp32"), reason


def settle(stage: Stage, wanted: Precision, device: torch.device) -> str:
    """Decide a stage's precision once and record it: a resumed run keeps the first decision."""
    if stage.record.dtype is None:
        stage.record.device = str(device)
        stage.record.dtype, stage.record.dtype_reason = decide(wanted, device)
        stage.save_record()
    logger.info("%s on %s: %s", stage.record.dtype, stage.record.device, stage.record.dtype_reason)
    return stage.record.dtype


def _seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(2048, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        functional.linear(left, right)
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which forward passes run; weights stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def default_device() -> torch.device:
    """Return the best device there is."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
