"""Training checkpoints: everything that a stage needs to resume as if it had never stopped.

A checkpoint is a folder ``step-00001500`` with safetensors and a JSON file, which has the SHA-256 of each of them. It
is written under a temporary name and then renamed, so that a folder of that name was complete when it was written.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xgem.types import CheckpointError, OutputError
from xgem.utils.files import file_sha256, one_line, sync

log = logging.getLogger(__name__)

_KEEP = 2
_STATE = "state.json"


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
) -> None:
    """Write ``tensors`` (file stem to state dict) and ``state`` as one complete folder; older ones are pruned.

    Raises:
        OutputError: it cannot be written, on a full disk for one; nothing of it is left, and earlier ones stay.
    """
    temporary = temporary_folder(folder, state)
    try:
        with writable(folder):
            start(temporary)
            for name, values in tensors.items():
                save_file(on_cpu(values), temporary / f"{name}.safetensors")
            files = {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}
            complete(temporary, state, fingerprint, files, keep)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def on_cpu(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later steps do not change."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in values.items()}


def temporary_folder(folder: Path, state: TrainState) -> Path:
    """Where the files of a checkpoint are until it is complete."""
    return folder / f".{_name(state)}.part"


def start(temporary: Path) -> None:
    """An empty folder for the files of a checkpoint."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def complete(temporary: Path, state: TrainState, fingerprint: str, files: Mapping[str, str], keep: int = _KEEP) -> None:
    """Make a checkpoint of a temporary folder, with the SHA-256 of each of its ``files``, and prune older ones."""
    folder = temporary.parent
    meta = {"fingerprint": fingerprint, "files": dict(files), **vars(state)}
    (temporary / _STATE).write_text(json.dumps(meta))
    sync(temporary, [*files, _STATE])
    target = folder / _name(state)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _name(state: TrainState) -> str:
    return f"step-{state.step:08d}"


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    checkpoints = sorted(folder.glob("step-*"))
    return checkpoints[-1] if checkpoints else None


def latest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written, or None where there is none at all.

    Newer ones, harmed by a full disk or a lost write, are kept as ``damaged-step-...``, and the log says so.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    harmed = None
    for place in sorted(folder.glob("step-*"), reverse=True):
        reason = _damage(place)
        if reason is None:
            return place
        harmed = folder / f"damaged-{place.name}"
        shutil.rmtree(harmed, ignore_errors=True)
        place.rename(harmed)
        log.warning(
            "checkpoint %s cannot be used (%s): kept as %s, going on from the one before", place, reason, harmed
        )
    if harmed is not None:
        raise CheckpointError(f"{folder}: no checkpoint is whole; train again into another --out")
    return None


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None: nothing."""
    try:
        meta = _read_state(folder)
        files = meta.get("files") or {file.name: None for file in folder.glob("*.safetensors")}
        for name, expected in files.items():
            if expected is not None and file_sha256(folder / name) != expected:
                return f"{name} is not as it was written"
            with safe_open(str(folder / name), framework="pt") as stream:
                stream.keys()
    except (OSError, ValueError, SafetensorError) as error:
        return one_line(error)
    return None


def _read_state(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / _STATE).read_text())
    if not isinstance(meta, dict) or "fingerprint" not in meta:
        raise ValueError(f"{_STATE} is not that of a checkpoint")
    return meta


def load_state(folder: Path, fingerprint: str) -> TrainState:
    """The progress in a checkpoint folder; CheckpointError if it belongs to other settings or cannot be read."""
    try:
        meta = _read_state(folder)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None
    meta.pop("files", None)
    if meta.pop("fingerprint") != fingerprint:
        raise CheckpointError(
            f"training checkpoint {folder} was made with other settings or data: use those again, or another --out"
        )
    return TrainState(**meta)


def load(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint folder, as they were saved; CheckpointError if they cannot be read."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, name, value in each(folder):
        found.setdefault(part, {})[name] = value
    return found


def each(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """File stem, name and value of one tensor of a checkpoint folder after the other; errors as :func:`load`."""
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(str(file), framework="pt") as stream:
                for name in stream.keys():  # noqa: SIM118
                    yield file.stem, name, stream.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"training checkpoint {folder} cannot be read ({one_line(error)}): delete it and resume")


def load_weights(module: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Strict load; CheckpointError names a key that does not fit."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{origin}: weights do not fit: {str(error).splitlines()[-1].strip()}") from None
