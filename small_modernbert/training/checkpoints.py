"""Checkpoints: written beside, described by a manifest, renamed; read again only if they are whole.

    checkpoints/
        step-00000500/  model.safetensors, optimizer.pt, progress.json, manifest.json
        best/           model.safetensors, best.json, manifest.json
        *.partial       what a kill left; removed by the next run

The manifest (file, size, sha256, step) is written last. What is not as it says, is not finite or
does not fit the model is named and passed over. optimizer.pt is torch's own format, read with
`weights_only=True`: it can hold tensors and numbers, and can't run anything.
"""

import json
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from small_modernbert.runs import storage
from small_modernbert.runs.errors import UserError
from small_modernbert.training.schedule import Progress

MODEL, OPTIMIZER, PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"
BEST, MANIFEST = "best.json", "manifest.json"
KEPT = 2  # checkpoints beside the best model: one to go on from, one in case it is damaged
logger = logging.getLogger(__name__)
_seen_whole: dict[Path, list[tuple[Any, ...]]] = {}


class _Unfit(Exception):
    """A checkpoint that can't be gone on from; the message says why."""


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write `folder`/step-N, then remove all but the newest two whole ones.

    Raises:
        UserError: the disk has no room for it.
    """
    state = {"optimizer": optimizer.state_dict(), "random": random_state()}

    def fill(beside: Path) -> None:
        save_model(model, str(beside / MODEL))
        torch.save(state, beside / OPTIMIZER)
        storage.write_json(beside / PROGRESS, asdict(progress))

    _write(_of_step(folder, progress.step), progress.step, fill, [model.state_dict(), state])
    _retain(folder)


def save_best(folder: Path, model: nn.Module, step: int, figure: str, value: float) -> None:
    """Write `folder`/best: the weights of the best evaluation so far, without what resumes.

    Raises:
        UserError: the disk has no room for it.
    """

    def fill(beside: Path) -> None:
        save_model(model, str(beside / MODEL))
        storage.write_json(beside / BEST, {"step": step, figure: value})

    _write(folder / "best", step, fill, [model.state_dict()])


def read_best(folder: Path, figure: str) -> tuple[int, float] | None:
    """Return the step and the figure of `folder`/best; None if it is not there, or not whole."""
    best = folder / "best"
    if damage(best):
        return None
    facts = json.loads((best / BEST).read_text(encoding="utf-8"))
    return facts["step"], facts[figure]


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, oldest first, damaged ones included."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix)


def damage(checkpoint: Path) -> str:
    """Say what is wrong with the files of a checkpoint, or of best/; "" if nothing is."""
    needed = {MODEL, BEST} if checkpoint.name == "best" else {MODEL, OPTIMIZER, PROGRESS}
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        name = _of_step(checkpoint.parent, int(manifest["step"])).name
        if manifest["files"].keys() != needed or checkpoint.name not in ("best", name):
            return f"{MANIFEST} is not that of this folder"
        return storage.find_damage(checkpoint, manifest["files"]) or ""
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return f"{MANIFEST} can't be read"


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Load the newest checkpoint that is whole; name those that are passed over.

    Args:
        folder: of the checkpoints; what kills left in it is cleared away.
        model: gets the weights.
        optimizer: gets its state; the generators of random numbers get theirs.

    Returns:
        Where that checkpoint stood; None if there is no checkpoint.

    Raises:
        UserError: there are checkpoints, and none can be gone on from.
    """
    _clear_leftovers(folder)
    stored = list_checkpoints(folder)
    for checkpoint in reversed(stored):
        try:
            progress = _restore(checkpoint, model, optimizer)
        except _Unfit as reason:
            logger.warning("%s is damaged and passed over: %s", checkpoint, reason)
        else:
            logger.info("going on from %s", checkpoint)
            return progress
    if stored:
        raise UserError(
            f"none of the checkpoints in {folder} can be gone on from (the reasons are above, and "
            "in log.txt); put one back from a copy, or start again with the same command and "
            "--overwrite"
        )
    return None


def load_best(folder: Path, model: nn.Module, progress: Progress) -> None:
    """Load the best weights; where best/ is damaged, from the checkpoint of the same step.

    Raises:
        UserError: neither is whole.
    """
    reasons = []
    for place in (folder / "best", _of_step(folder, progress.best_step)):
        try:
            if reason := damage(place):
                raise _Unfit(reason)
            step = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["step"]
            if step != progress.best_step:
                raise _Unfit(f"it is of step {step:,}, not {progress.best_step:,}")
            _load_weights(place, model)
        except _Unfit as reason:
            reasons.append(f"{place}: {reason}")
            logger.warning("%s is damaged and passed over: %s", place, reason)
        else:
            return
    raise UserError(
        f"the best model, that of step {progress.best_step:,}, is lost ({'; '.join(reasons)}); "
        "put it back from a copy, or train again with the same command and --overwrite. The "
        f"weights of the last step are in {_of_step(folder, progress.step) / MODEL}"
    )


def _of_step(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _write(final: Path, step: int, fill: Callable[[Path], None], tensors: list[Any]) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(tensors))
    final.parent.mkdir(parents=True, exist_ok=True)
    storage.check_space(final.parent, needed)
    beside = final.with_name(f"{final.name}.partial")
    storage.remove(beside)
    beside.mkdir()
    fill(beside)
    storage.fsync_tree(beside)  # the manifest must not be on the disk before what it describes
    # Without times: a bit that flips on the disk leaves a file's time as it was.
    files = {
        path.name: {"size": path.stat().st_size, "sha256": storage.sha256_file(path)}
        for path in storage.list_files(beside)
    }
    storage.write_json(beside / MANIFEST, {"step": step, "files": files})
    storage.publish(beside, final)


def _retain(folder: Path) -> None:
    """Remove what is older than the newest two whole checkpoints; never one of those."""
    stored = list_checkpoints(folder)
    whole = [checkpoint for checkpoint in stored if _is_whole(checkpoint)]
    for checkpoint in stored:
        if whole and checkpoint < whole[-1] and checkpoint not in whole[-KEPT:]:
            storage.remove(checkpoint)


def _is_whole(checkpoint: Path) -> bool:
    """Say whether a checkpoint is whole; it is read once as long as its files look the same."""
    files = storage.list_files(checkpoint)
    look = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if _seen_whole.get(checkpoint) == look:
        return True
    if damage(checkpoint):
        return False
    _seen_whole[checkpoint] = look
    return True


def _clear_leftovers(folder: Path) -> None:
    for old in folder.glob("*.old"):
        storage.recover(old.with_suffix(""))
    for partial in folder.glob("*.partial"):
        storage.remove(partial)


def _restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    if reason := damage(checkpoint):
        raise _Unfit(reason)
    _load_weights(checkpoint, model)
    try:
        state = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, and each means the same here
        raise _Unfit(f"{OPTIMIZER} can't be read: {str(error).splitlines()[0]}") from None
    for name, tensor in _tensors(state):
        if not torch.isfinite(tensor).all():
            raise _Unfit(f"{OPTIMIZER}: {name} is not finite")
    try:
        _check_shapes(state["optimizer"], optimizer)
        optimizer.load_state_dict(state["optimizer"])
        progress = _read_progress(checkpoint)
        set_random_state(state["random"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _Unfit(f"its state does not fit this run: {error}") from None
    return progress


def _read_progress(checkpoint: Path) -> Progress:
    return Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))


def _load_weights(checkpoint: Path, model: nn.Module) -> None:
    path = checkpoint / MODEL
    try:
        for name, tensor in load_file(path).items():
            if not torch.isfinite(tensor).all():
                raise _Unfit(f"{MODEL}: {name} is not finite")
        load_model(model, path)
    except _Unfit:
        raise
    except Exception as error:  # safetensors and torch raise many kinds, each means the same here
        raise _Unfit(f"{MODEL} does not fit the model: {str(error).splitlines()[0]}") from None


def _check_shapes(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Hold an optimizer's state against its parameters; torch compares only their number."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, tensor in _tensors(saved["state"].get(number, {})):
            if tensor.numel() > 1 and tensor.shape != parameter.shape:
                raise ValueError(
                    f"{name} of parameter {number} is {tuple(tensor.shape)}, the parameter "
                    f"{tuple(parameter.shape)}"
                )


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:  # noqa: ANN401  JSON with tensors
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            if isinstance(part, torch.Tensor | dict | list | tuple):
                yield from _tensors(part, f"{name}.{key}".lstrip("."))


def random_state() -> dict[str, Any]:
    """Return the states of torch's, Python's and numpy's generators, as optimizer.pt holds them."""
    kind, words, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(words.astype(np.int64)), position, has_gauss, gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's device alone
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
