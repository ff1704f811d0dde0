"""The processes that a launcher starts for one training (torchrun, accelerate launch, srun), and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState

from xgem.types import DeviceError, XgemError
from xgem.utils.devices import resolve_device
from xgem.utils.files import one_line

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
        DeviceError: no such device here, a name where several processes train, or processes that do not find one
            another.
    """
    count = started()
    if count > 1 and device is not None:
        raise DeviceError(f"device {device!r}: several processes train, each on a device of its own; leave it out")
    wanted = {} if device is None else {_DEVICE: str(resolve_device(device))}
    if count > 1 and "RANK" not in os.environ:
        wanted |= _step_of_slurm(count)
    before = {name: os.environ.get(name) for name in (_DEVICE, *wanted)}
    _forget()
    try:
        os.environ |= wanted
        _meet(count)
        yield
        if count > 1:
            dist.destroy_process_group()
    finally:
        _forget()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    Processes.current.cache_clear()


def _step_of_slurm(count: int) -> dict[str, str]:
    """What torchrun would tell this process, from what srun tells it."""
    if "SLURM_PROCID" not in os.environ:
        raise DeviceError(
            f"{count} processes were started that do not know of one another: use torchrun, accelerate launch or srun"
        )
    try:
        from submitit.helpers import TorchDistributedEnvironment
    except ImportError:
        raise DeviceError(
            f"{count} processes were started by srun: for them to find one another install xgem[slurm], "
            "or use torchrun or accelerate launch"
        ) from None
    try:
        found = TorchDistributedEnvironment()
    except (RuntimeError, KeyError, ValueError) as error:
        raise DeviceError(f"srun: no job can be read from its variables ({error}): use torchrun") from None
    said = {
        "RANK": found.rank,
        "LOCAL_RANK": found.local_rank,
        "WORLD_SIZE": found.world_size,
        "LOCAL_WORLD_SIZE": found.local_world_size,
        "MASTER_ADDR": found.master_addr,
        "MASTER_PORT": found.master_port,
    }
    return {name: str(value) for name, value in said.items()}


def _meet(count: int) -> None:
    """Wait for the other processes."""
    on_cpu = not torch.cuda.is_available()
    try:
        if count > 1:
            store, rank, world = next(iter(dist.rendezvous("env://")))
            # torchrun's store outlives the processes that it restarts: what they left there is not for the next ones
            store = dist.PrefixStore(f"start-{_starts_before()}", store)
            dist.init_process_group("gloo" if on_cpu else "nccl", store=store, rank=rank, world_size=world)
        seen = PartialState(cpu=count > 1 and on_cpu).num_processes
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise DeviceError(
            f"{count} processes cannot meet at {place} ({one_line(error)}): see whether all were started, "
            "or choose another port (torchrun --master-port)"
        ) from None
    if seen != count:
        raise DeviceError(f"{count} processes were started, but this one sees {seen}")


def _starts_before() -> str:
    """How often torchrun has started these processes before, where it counts for all of them: on a single node."""
    several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")
    return "0" if several else os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


class Processes:
    """The processes of a training, this one among them. What they tell one another goes from CPU to CPU, so that no
    GPU is waited for.
    """

    def __init__(self) -> None:
        state = PartialState()
        self.count, self.rank, self.main = state.num_processes, state.process_index, state.is_main_process
        self.group: Any = dist.new_group(backend="gloo") if self.count > 1 else None

    @staticmethod
    @cache
    def current() -> Processes:
        """Those of this training; all of them call this for the first time together."""
        return Processes()

    def beside(self) -> Processes:
        """The same processes, for exchanges in another thread."""
        return Processes()

    def greatest(self, value: int) -> int:
        """The greatest of the numbers that the processes give."""
        if self.count == 1:
            return value
        said = torch.tensor(value)
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self.group)
        return int(said)

    def of_all(self, value: Any) -> list[Any]:
        """What each process gives, in their order."""
        if self.count == 1:
            return [value]
        said: list[Any] = [None] * self.count
        dist.all_gather_object(said, value, group=self.group)
        return said

    @contextmanager
    def in_agreement(self) -> Iterator[None]:
        """An error of xgem's on any process ends the block on all: the first process raises it, the others exit.

        So it is printed once, however many processes have it.
        """
        error: XgemError | None = None
        try:
            yield
        except XgemError as caught:
            error = caught
        for rank, found in enumerate(cast(list[XgemError | None], self.of_all(error))):
            if found is None:
                continue
            if not self.main:
                raise SystemExit(1) from error
            raise found if rank == 0 else type(found)(f"process {rank}: {found}")
