"""Which number format the matrix products run in, decided by measuring and said with its reason."""

import logging
import time
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch.nn import functional

from small_modernbert.runs.errors import UserError
from small_modernbert.runs.stages import Stage

logger = logging.getLogger(__name__)
Precision = Literal["auto", "fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TENSOR_CORES = (7, 0)  # compute capability from which fp16 products are faster than fp32


def decide(wanted: Precision, device: torch.device, *, training: bool = True) -> tuple[str, str]:
    """Return "fp32", "bf16" or "fp16", and why: by what the device has, never what it emulates.

    On a CPU "auto" times one matrix product in both formats: with AMX bf16 wins threefold,
    without it bf16 can be half as fast as fp32. fp16 is for GPUs of 2017 to 2019 (Volta, Turing),
    which have no bf16, and for encoding alone: in training its range wants the loss scaled.

    Args:
        wanted: of the user.
        device: that computes.
        training: whether gradients are computed, too.

    Raises:
        UserError: bf16 is wanted of a GPU that has none.
    """
    if device.type != "cpu":
        has = has_bf16(device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        if wanted == "bf16" and not has:
            raise UserError(
                f"PRECISION: {name} only emulates bf16, which is slower than fp32; run with "
                "--precision fp32"
            )
        if wanted == "auto" and has:
            return "bf16", f"{name} has it"
        if wanted == "auto":
            cores = device.type == "cuda" and torch.cuda.get_device_capability(device)
            half = not training and cores and cores >= TENSOR_CORES
            return "fp16" if half else "fp32", f"{name} has no bf16"
    if wanted == "bf16" and device.type == "cpu" and not has_bf16(device):
        return wanted, "as set, though the processor only emulates it"
    if wanted != "auto":
        return wanted, "as set"
    single, half = _seconds(torch.float32), _seconds(torch.bfloat16)
    reason = f"a bf16 matrix product takes {half / single:.2f} x the time of an fp32 one here"
    # Autocast adds casts around each product; a narrow win would be lost to them.
    return ("bf16" if half < 0.7 * single else "fp32"), reason


def has_bf16(device: torch.device) -> bool:
    """Say whether a device multiplies in bf16 itself: GPUs from Ampere on, CPUs with its units."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    units = ("avx512_bf16", "amx_bf16")
    return device.type == "cpu" and any(capabilities.get(unit, False) for unit in units)


def allow_tf32(precision: str, device: torch.device) -> bool:
    """Let a GPU's fp32 products run on its TF32 units, if it has them; say whether it does.

    Ten bits of the mantissa are kept, three more than in bf16, and sums are fp32.
    """
    has = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if has and precision == "fp32":
        torch.set_float32_matmul_precision("high")
        return True
    return False


def settle(stage: Stage, wanted: Precision, device: torch.device, *, training: bool = True) -> str:
    """Decide a stage's precision once and record it: a resumed run keeps the first decision."""
    if stage.record.dtype is None:
        stage.record.device = str(device)
        stage.record.dtype, stage.record.dtype_reason = decide(wanted, device, training=training)
        stage.save_record()
    if allow_tf32(stage.record.dtype, device):
        logger.info("fp32 products run in TF32")
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
    half = precision != "fp32"
    return torch.autocast(
        device.type, dtype=DTYPES[precision] if half else torch.bfloat16, enabled=half
    )


def default_device() -> torch.device:
    """Return the best device there is."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
