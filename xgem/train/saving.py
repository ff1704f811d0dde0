"""Checkpoints of a run: written in the background while training goes on, and read again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xgem.checkpoints import sharded
from xgem.checkpoints import training as checkpoint
from xgem.checkpoints.training import TrainState
from xgem.train.processes import Processes
from xgem.utils.files import file_sha256

Parts = Mapping[str, Mapping[str, Tensor]]
"""State dicts by part: ``model``, ``ema``, ``optimizer``, ``best``."""


class Saver:
    """Writes one checkpoint after another into ``folder``. An error shows when the next one is saved, or at the end.

    The first process writes all, or (``in_parts``) every process its parts of weights that are sharded.
    """

    def __init__(self, folder: Path, fingerprint: str, processes: Processes, *, in_parts: bool) -> None:
        self.folder, self.fingerprint, self.processes = folder, fingerprint, processes
        self.writers = processes.beside() if in_parts else None  # they talk while the others do
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainState, parts: Parts) -> None:
        """Copy what a checkpoint holds, and begin to write it.

        Raises:
            OutputError: the one before could not be written.
        """
        self.wait()
        if self.writers is None and not self.processes.main:
            return
        copies = {part: checkpoint.on_cpu(values) for part, values in parts.items()}
        work = self._write if self.writers is None else self._write_parts
        self._writing = self._thread.submit(work, replace(state, scaler=dict(state.scaler)), copies)

    def wait(self) -> None:
        """Until the checkpoint is on the disk."""
        writing, self._writing = self._writing, None
        if self.writers is not None:
            if writing is not None:
                writing.result()  # the writers have agreed on an error
            return
        with self.processes.in_agreement():
            if writing is not None:
                writing.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def _write(self, state: TrainState, parts: dict[str, dict[str, Tensor]]) -> None:
        checkpoint.save(self.folder, state, self.fingerprint, parts)

    def _write_parts(self, state: TrainState, parts: dict[str, dict[str, Tensor]]) -> None:
        writers, temporary = self.writers, checkpoint.temporary_folder(self.folder, state)
        assert writers is not None
        try:
            with writers.in_agreement(), checkpoint.writable(self.folder):
                if writers.main:
                    checkpoint.start(temporary)
            with writers.in_agreement(), checkpoint.writable(self.folder):
                names = sharded.write(temporary, flat(parts), writers.rank, writers.group)
                own = {name: file_sha256(temporary / name) for name in names}
            every = {name: digest for one in writers.of_all(own) for name, digest in one.items()}
            with writers.in_agreement(), checkpoint.writable(self.folder):
                if writers.main:
                    checkpoint.complete(temporary, state, self.fingerprint, every)
        finally:
            if writers.main:
                shutil.rmtree(temporary, ignore_errors=True)


def flat(parts: Parts) -> dict[str, Tensor]:
    """All tensors with their part before their name."""
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def restore(
    folder: Path, module: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, group: Any
) -> dict[str, Tensor] | None:
    """Give weights, averages and moments, whole or in parts, the values of a checkpoint, whole or in parts.

    Args:
        group: that of the processes among which weights are in parts; None if they are whole.

    Returns:
        The best weights so far, where there is a stop rule.

    Raises:
        CheckpointError: it does not fit.
    """
    ours = {"model": module.state_dict(), "ema": averaged.state_dict()}
    parameters = [value for one in optimizer.param_groups for value in one["params"]]

    def like(part: str, name: str) -> Tensor | None:
        """What a tensor of the checkpoint is divided among the processes as."""
        if part == "optimizer":
            index, kind = name.split(".", 1)
            return None if kind == "step" else parameters[int(index)]
        return ours["ema"].get(f"module.{name}") if part == "best" else ours[part].get(name)

    found: dict[str, dict[str, Tensor]] = {}
    if sharded.is_sharded(folder):
        wanted = {name: (size, like(*name.split(".", 1))) for name, size in sharded.sizes(folder).items()}
        read = {
            name: torch.zeros(size) if one is None else torch.zeros_like(one) for name, (size, one) in wanted.items()
        }
        sharded.read(folder, read, group)
        for name, value in read.items():
            part, own = name.split(".", 1)
            found.setdefault(part, {})[own] = value
    else:
        for part, name, value in checkpoint.each(folder):
            found.setdefault(part, {})[name] = sharded.part_of(value, like(part, name))
    checkpoint.load_weights(module, found["model"], folder)
    checkpoint.load_weights(averaged, found["ema"], folder)
    checkpoint.load_optimizer(optimizer, found["optimizer"])
    return found.get("best")
