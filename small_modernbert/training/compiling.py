"""Whether a training step is compiled: torch.compile costs a minute before it saves anything.

Only what is regular is compiled, for any number of tokens at once: what follows attention in a
layer (`forward.compiled_end`) on a CPU, the feed-forward module of transformers on a GPU. Attention
goes by each text's length in Python and stays as it is. No module is wrapped, so saved weights keep
their names.
"""

import logging
import os
import shutil
from typing import Literal

from transformers import ModernBertModel

from small_modernbert.models import forward
from small_modernbert.runs.errors import UserError

LEAST_STEPS = 2_000  # a minute's start-up is a tenth of such a run at 0.3 s a step
logger = logging.getLogger(__name__)
Compile = Literal["auto", "on", "off"]


def settle(wanted: Compile, model: ModernBertModel, steps: int) -> bool:
    """Decide for a run of so many steps, log the reason, and prepare a model on a GPU.

    Args:
        wanted: "auto" compiles long runs on a GPU.
        model: on its device.
        steps: about how many the run has.

    Returns:
        Whether to pass `compiled=True` to `forward.hidden_states`, or what calls it.

    Raises:
        UserError: "on" where a CPU has no C++ compiler, or the model's pass is not our own.
    """
    on_gpu = model.device.type == "cuda"
    compiled, reason = _decide(wanted, on_gpu, steps)
    logger.info("torch.compile %s: %s", "on" if compiled else "off", reason)
    if not compiled:
        return False
    if on_gpu:
        for layer in model.layers:
            layer.mlp.compile(dynamic=True)
        return True
    if not forward.supports(model):
        raise UserError(
            "COMPILE is on, but this student has dropout or another activation than GELU, and only "
            "our own pass is compiled on a CPU; run with --compile off"
        )
    if not has_compiler():
        raise UserError(
            "COMPILE is on, but there is no C++ compiler here; install g++ (apt-get install g++), "
            "name another one in CXX, or run with --compile off"
        )
    return True


def _decide(wanted: Compile, on_gpu: bool, steps: int) -> tuple[bool, str]:
    if wanted != "auto":
        return wanted == "on", "as set"
    if not on_gpu:
        return False, "on a CPU it gains nothing over our own pass (docs/LOG.md)"
    if steps < LEAST_STEPS:
        return False, f"{steps:,} steps are too few to earn its start-up back ({LEAST_STEPS:,})"
    return True, f"{steps:,} steps earn its start-up back"


def has_compiler() -> bool:
    """Say whether torch finds a C++ compiler: CXX, or one of the usual names."""
    names = (os.environ.get("CXX"), "g++", "clang++", "clang", "c++")
    return any(name and shutil.which(name) for name in names)
