"""What is trained: the interface between a stage and the loop."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor, nn

from xgem.configs.preset import Preset, StageConfig
from xgem.train.needs import Need
from xgem.train.share import Share
from xgem.types import ConfigError, DataError
from xgem.utils.random import mix


class Stage(ABC):
    """One thing to train. ``module`` is what is optimised; a stage knows its data and its loss, not the loop."""

    name: str
    module: nn.Module
    config: StageConfig
    seed: int
    settings: tuple[BaseModel, ...] = ()
    """Configurations of the components that take part: with them a run is another."""
    losses: ClassVar[Mapping[str, float]] = {}
    """Names and defaults of the weights that ``config.loss`` may set."""
    switches: ClassVar[tuple[str, ...]] = ()
    """Those of ``losses`` that are 1, on, or 0, off."""
    reads_shards: ClassVar[bool] = False
    """Whether it can be trained from encoded studies on the disk."""
    origin: str = ""
    """Hash of the weights that training starts from; empty where they are fresh."""

    @classmethod
    def needs(cls, name: str, preset: Preset) -> Sequence[Need]:
        """What the stage ``name`` takes from the data: checked for all stages of a run before the first one trains."""
        del name, preset
        return ()

    @property
    @abstractmethod
    def fresh(self) -> dict[str, nn.Module]:
        """The components that start with fresh weights here, by name: what other weights to start from replace."""

    @abstractmethod
    def batch(self, share: Share) -> dict[str, Any]:
        """The samples of a share, and all random numbers that the loss needs of them: a pure function of ``share``."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and what to log. ``module`` may be wrapped or compiled: call it, do not reach into it."""

    @abstractmethod
    def validate(self, module: nn.Module) -> dict[str, float]:
        """Validation figures of the averaged weights; ``"loss"`` drives the stop rule."""

    def checkpoint_activations(self, on: bool = True) -> bool:
        """Whether what the loss passes through computes its activations again in the backward pass, which saves memory;
        returns False where a stage cannot."""
        del on
        return False

    def sheet(self, module: nn.Module) -> Image.Image | str | None:
        """A sample of what the averaged weights produce, kept beside the logs."""
        del module
        return None

    @abstractmethod
    def finish(self, module: nn.Module, root: Path) -> None:
        """Write the trained component(s) into the checkpoint folder ``root``."""

    def fingerprint(self) -> str:
        """Identifies settings and data, so that a checkpoint is only resumed by the run it belongs to."""
        config = self.config.model_dump_json(exclude={"workers"})
        parts = (self.name, str(self.seed), config, *(one.model_dump_json() for one in self.settings))
        parts += (self.origin,) if self.origin else ()
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    @classmethod
    def loss_weights(cls, name: str, config: StageConfig) -> dict[str, float]:
        """``config.loss`` over the stage's ``losses``; ConfigError lists the known names, and what a switch may be."""
        unknown = sorted(set(config.loss) - set(cls.losses))
        if unknown:
            known = ", ".join(cls.losses) or "none"
            raise ConfigError(f"stage {name}: unknown loss settings {unknown}: expected {known}")
        weights = {**cls.losses, **config.loss}
        for switch in cls.switches:
            if weights[switch] not in (0, 1):
                raise ConfigError(f"stage {name}: {switch} is {weights[switch]:g}; expected 1, on, or 0, off")
        return weights


class Frozen(dict[str, Any]):
    """Networks that a module uses without training them: no part of its weights, and shared by its copies."""

    def __deepcopy__(self, memo: Any) -> Frozen:
        return self


class ComparingStage(Stage):
    """A stage whose loss compares the samples of a batch with one another, as InfoNCE does.

    Its loss is that of the whole batch, on whatever processes and in whatever parts the samples were computed: the loop
    brings their values together, and passes the gradient of ``criterion`` back to each (Gao et al. 2021).
    """

    @abstractmethod
    def per_sample(self, module: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What the loss needs of every sample, (b, ...) each."""

    @abstractmethod
    def criterion(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of all samples by their values, and what to log."""

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.criterion(self.per_sample(module, batch))


def permuted(n: int, numbers: range, seed: int) -> list[int]:
    """The samples ``numbers`` of an endless stream that visits 0..n-1 once an epoch, reshuffled each."""
    if n == 0:
        raise DataError("nothing to train on: no study of the training split has what this stage needs")
    picked: list[int] = []
    while len(picked) < len(numbers):
        epoch, offset = divmod(numbers.start + len(picked), n)
        order = _order(n, mix(seed, "epoch", epoch))
        picked += order[offset : offset + len(numbers) - len(picked)].tolist()
    return picked


@lru_cache(maxsize=2)  # a batch may begin in one epoch and end in the next
def _order(n: int, seed: int) -> Tensor:
    """0..n-1 in random order, int32."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).int()


def mean_and_std(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of all ``parts`` (n, c), which are not held together: (c,) float64."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        values = part.double()
        count += len(values)
        total, square = total + values.sum(dim=0), square + values.square().sum(dim=0)
    mean = total / count
    return mean, ((square - count * mean.square()) / (count - 1)).sqrt()


def spread_over(n: int, start: float, device: torch.device) -> Tensor:
    """n numbers evenly spread over [0, 1), neighbours far apart (by the golden ratio): timesteps to validate at."""
    return (torch.arange(n, device=device) * 0.6180339887 + start) % 1
