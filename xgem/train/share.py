"""The samples of a run that a process works on at once, and the random numbers that belong to each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xgem.utils.random import mix


@dataclass(frozen=True)
class Share:
    """Samples ``first`` to ``first + size`` of the batch of optimizer step ``step``, which has ``batch`` samples.

    Everything random about a sample follows from the seed, the stage and the sample's number in the run (ADR-0004): how
    batches are divided among processes, and among the passes of one, changes no sample.
    """

    seed: int
    stage: str
    step: int
    first: int
    size: int
    batch: int

    @classmethod
    def whole(cls, seed: int, stage: str, step: int, batch: int) -> Share:
        """All samples of a batch."""
        return cls(seed, stage, step, 0, batch, batch)

    def times(self, factor: int) -> Share:
        """The share of a batch that is ``factor`` times as large."""
        return replace(self, first=self.first * factor, size=self.size * factor, batch=self.batch * factor)

    @property
    def numbers(self) -> range:
        """The numbers of the samples, counted from the start of the run."""
        start = self.step * self.batch + self.first
        return range(start, start + self.size)

    def rngs(self, purpose: str) -> list[random.Random]:
        """A generator for each sample."""
        return [random.Random(mix(self.seed, self.stage, purpose, number)) for number in self.numbers]

    def normal(self, shape: Sequence[int], purpose: str = "noise") -> Tensor:
        """Standard normal numbers (size, *shape), on the CPU."""
        return self._drawn(lambda source: torch.randn(tuple(shape), generator=source), purpose)

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), (size, *shape), on the CPU."""
        return self._drawn(lambda source: torch.rand(tuple(shape), generator=source), purpose)

    def integers(self, low: int, high: int, purpose: str) -> Tensor:
        """Integers from ``low`` to ``high`` - 1, (size,), on the CPU."""
        return self._drawn(lambda source: torch.randint(low, high, (), generator=source), purpose)

    def of_step(self, purpose: str) -> random.Random:
        """A generator for what the whole batch has in common."""
        return random.Random(mix(self.seed, self.stage, purpose, "step", self.step))

    def _drawn(self, draw: Callable[[torch.Generator], Tensor], purpose: str) -> Tensor:
        source = torch.Generator()
        return torch.stack(
            [draw(source.manual_seed(mix(self.seed, self.stage, purpose, number))) for number in self.numbers]
        )


def fixed_rngs(*parts: Any, count: int) -> list[random.Random]:
    """One generator for each of ``count`` samples that are always the same: those of validation."""
    return [random.Random(mix(*parts, number)) for number in range(count)]
