"""The processes that a launcher starts for one training: torchrun, accelerate launch, or srun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from xgem.types import DeviceError
from xgem.utils.devices import resolve_device

_DEVICE = "ACCELERATE_TORCH_DEVICE"
"""The variable of the environment that accelerate takes its device from, once a process."""


def started() -> int:
    """How many processes the launcher of this one has started, as it told them; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


@contextmanager
def together(device: str | None = None) -> Iterator[None]:
    """Within the block this process trains together with the others that its launcher started, if there is one.

    Each process has a GPU of its own, or all work on the CPU. ``device``, of a single process: the name of its device;
    None: the first GPU, or the CPU.

    Raises:
        DeviceError: no such device here, a name where several processes train, or processes that the launcher did not
            tell of one another.
    """
    count, before = started(), os.environ.get(_DEVICE)
    if count > 1 and device is not None:
        raise DeviceError(f"device {device!r}: several processes train, each on a device of its own; leave it out")
    if count > 1 and "RANK" not in os.environ:
        raise DeviceError(
            f"{count} processes were started that do not know of one another: use torchrun or accelerate launch"
        )
    wanted = None if device is None else resolve_device(device)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        if wanted is not None:
            os.environ[_DEVICE] = str(wanted)
        state = PartialState(cpu=count > 1 and not torch.cuda.is_available())
        if state.num_processes != count:
            raise DeviceError(f"{count} processes were started, but this one sees {state.num_processes}")
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop(_DEVICE, None)
        if before is not None:
            os.environ[_DEVICE] = before
