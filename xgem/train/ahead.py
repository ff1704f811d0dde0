"""Batches made ahead of the training by worker processes, which read and augment images meanwhile."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from xgem.train.share import Share
from xgem.train.stage import Stage
from xgem.types import ConfigError, XgemError

Numbered = tuple[int, "dict[str, Any] | XgemError"]


class _Shares(Dataset[Numbered]):
    """Number n is the share n % k of step n // k, of the k ``shares`` of a process."""

    def __init__(self, stage: Stage, shares: Sequence[Share]) -> None:
        self.stage, self.shares = stage, shares

    def __len__(self) -> int:
        return self.stage.config.steps * len(self.shares)

    def __getitem__(self, number: int) -> Numbered:
        step, place = divmod(number, len(self.shares))
        try:
            return number, self.stage.batch(replace(self.shares[place], step=step))
        except XgemError as error:  # a loader would raise it with a trace for its message
            return number, error


class ReadAhead:
    """The batches of a process's ``shares``: made when they are asked for, or ahead by ``stage.config.workers``.

    A batch is a pure function of its share, so that workers change no sample. They are forked, share what the stage
    holds in memory, and make batches on the CPU. They end with this object.
    """

    def __init__(self, stage: Stage, shares: Sequence[Share]) -> None:
        self.stage, self.shares = stage, tuple(shares)
        self._made: Iterator[Numbered] | None = None
        self._step, self._kept = -1, dict[int, "dict[str, Any]"]()

    def batch(self, share: Share) -> dict[str, Any]:
        """The batch of a share of one step or the next; what :meth:`Stage.batch` raises."""
        if not self.stage.config.workers:
            return self.stage.batch(share)
        if share.step != self._step:
            self._step, self._kept = share.step, {}
        place = self.shares.index(replace(share, step=self.shares[0].step))
        if place not in self._kept:
            wanted = share.step * len(self.shares) + place
            if self._made is None:
                self._made = self._workers(wanted)
            number, made = next(self._made)
            assert number == wanted  # shares are asked for in their order, though maybe several times
            if isinstance(made, XgemError):
                raise made
            self._kept[place] = made
        return self._kept[place]

    def _workers(self, first: int) -> Iterator[Numbered]:
        """What the workers make, from number ``first`` on."""
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ConfigError(f"stage {self.stage.name}: this system cannot fork worker processes: set workers to 0")
        data = _Shares(self.stage, self.shares)
        return iter(
            DataLoader(
                data,
                batch_size=None,
                sampler=range(first, len(data)),
                num_workers=self.stage.config.workers,
                worker_init_fn=_on_the_cpu,
                multiprocessing_context="fork",  # a stage is not copied
            )
        )


def _on_the_cpu(worker: int) -> None:
    """A forked process cannot use the GPU of the one that it is of."""
    del worker
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.stage.device = torch.device("cpu")
