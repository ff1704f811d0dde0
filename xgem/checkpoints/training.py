"""Training checkpoints: everything that a stage needs to resume as if it had never stopped.

A checkpoint is a folder ``step-00001500`` with safetensors and a JSON file, written under a temporary name and then
renamed, so that a folder of that name is always complete. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xgem.types import CheckpointError, OutputError
from xgem.utils.files import one_line, sync

_KEEP = 2


@dataclass
class TrainState:
    """The progress of training. ``step`` counts finished updates; random numbers and data order depend on it alone."""

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    bad_validations: int = 0
    stopped: bool = False
    scaler: dict[str, float] = field(default_factory=dict)
    """The loss scale of fp16 training."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state by parameter index: ``{"12.exp_avg": ...}``, without its settings."""
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state returned by :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def writable(place: Path) -> Iterator[None]:
    """What the system refuses (a full disk, no permission) as an ``OutputError`` of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise OutputError(
            f"{place}: cannot be written ({reason}): make room, then go on with --resume; the last checkpoint is whole"
        ) from error


def save(
    folder: Path, state: TrainState, fingerprint: str, tensors: dict[str, dict[str, Tensor]], keep: int = _KEEP
) -> Path:
    """Write ``tensors`` (file stem to state dict) and ``state`` as one complete folder; older ones are pruned.

    Raises:
        OutputError: it cannot be written, on a full disk for one; nothing of it is left, and earlier ones stay.
    """
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writable(folder):
            temporary.mkdir(parents=True)
            for name, values in tensors.items():
                copies = {k: v.detach().cpu().contiguous().clone() for k, v in values.items()}
                save_file(copies, temporary / f"{name}.safetensors")
            (temporary / "state.json").write_text(json.dumps({"fingerprint": fingerprint, **vars(state)}))
            sync(temporary, [file.name for file in temporary.iterdir()])
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return target


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    checkpoints = sorted(folder.glob("step-*")) if folder.is_dir() else []
    return checkpoints[-1] if checkpoints else None


def load(folder: Path, fingerprint: str) -> tuple[TrainState, dict[str, dict[str, Tensor]]]:
    """Read a checkpoint folder; CheckpointError if it belongs to other settings or cannot be read."""
    try:
        meta: dict[str, Any] = json.loads((folder / "state.json").read_text())
        tensors = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"training checkpoint {folder} cannot be read ({error}): delete it and resume") from None
    if meta.pop("fingerprint") != fingerprint:
        raise CheckpointError(
            f"training checkpoint {folder} was made with other settings or data: use those again, or another --out"
        )
    return TrainState(**meta), tensors


def load_weights(module: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Strict load; CheckpointError names a key that does not fit."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{origin}: weights do not fit: {str(error).splitlines()[-1].strip()}") from None
