"""Promises of precision.py: a format is chosen by what the device has, and said with the reason."""

import pytest
import torch

from small_modernbert.models import precision
from small_modernbert.runs.errors import UserError

GPU = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[int, int]:
    """Pretend that there is a GPU of a compute capability; before Ampere it emulates bf16."""
    capability: tuple[int, int] = request.param

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    return capability


@pytest.mark.parametrize(
    ("gpu", "wanted", "chosen"),
    [((8, 0), "auto", "bf16"), ((7, 5), "auto", "fp32"), ((8, 0), "fp32", "fp32")],
    indirect=["gpu"],
)
def test_a_gpu_is_asked_what_it_has(gpu: tuple[int, int], wanted: str, chosen: str) -> None:
    """A GPU that only emulates bf16 runs fp32."""
    assert precision.decide(wanted, GPU)[0] == chosen


@pytest.mark.parametrize(
    ("gpu", "chosen"),
    [((9, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
    indirect=["gpu"],
)
def test_a_gpu_without_bf16_encodes_in_fp16(gpu: tuple[int, int], chosen: str) -> None:
    """Volta and Turing have tensor cores for fp16 alone; older GPUs gain nothing from it."""
    assert precision.decide("auto", GPU, training=False)[0] == chosen
    assert precision.decide("fp32", GPU, training=False)[0] == "fp32"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_products_run_in_the_format_decided(dtype: str) -> None:
    """Autocast gives products in that format, and leaves fp32 alone."""
    with precision.autocast(dtype, torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == precision.DTYPES[dtype]


@pytest.mark.parametrize("gpu", [(7, 5)], indirect=True)
def test_emulated_bf16_is_refused(gpu: tuple[int, int]) -> None:
    """bf16 that would be slower than fp32 is refused with what to type."""
    with pytest.raises(UserError, match="a GPU only emulates bf16.*--precision fp32"):
        precision.decide("bf16", GPU)


@pytest.mark.parametrize(
    ("gpu", "dtype", "allowed"),
    [((8, 0), "fp32", True), ((8, 0), "bf16", False), ((7, 5), "fp32", False)],
    indirect=["gpu"],
)
def test_tf32_where_fp32_runs_on_a_gpu(
    gpu: tuple[int, int], dtype: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 products of a GPU from Ampere on run in TF32; nothing else changes."""
    called: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", called.append)
    assert precision.allow_tf32(dtype, GPU) == allowed
    assert called == (["high"] if allowed else [])
    assert not precision.allow_tf32("fp32", torch.device("cpu"))


def test_a_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the faster format wins, and a narrow win is none."""
    for half, chosen in ((0.5, "bf16"), (0.9, "fp32"), (2.0, "fp32")):
        seconds = {torch.float32: 1.0, torch.bfloat16: half}
        monkeypatch.setattr(precision, "_seconds", seconds.__getitem__)
        dtype, reason = precision.decide("auto", torch.device("cpu"))
        assert dtype == chosen and f"{half:.2f} x" in reason
