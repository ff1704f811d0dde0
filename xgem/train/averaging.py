"""Averaged weights: exponential averaging whose decay warms up, without waiting for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from xgem.train.sharding import local


def average_(averaged: list[Tensor], current: list[Tensor], decay: float, count: int) -> None:
    """Move ``averaged`` towards ``current`` after ``count`` updates; the decay warms up as (1 + n) / (10 + n)."""
    weight = min(decay, (1 + count) / (10 + count))
    torch._foreach_lerp_(averaged, current, 1 - weight)


class Average(AveragedModel):
    """A copy of a module with the averages of its weights; its buffers are the module's.

    The number of updates stays on the CPU: read from a GPU at every step, it would make the CPU wait for that step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, use_buffers=False)
        self.decay = decay
        self.requires_grad_(False)

    def _apply(self, *arguments: Any, **options: Any) -> Average:
        super()._apply(*arguments, **options)
        self.n_averaged = self.n_averaged.cpu()
        return self

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        count = int(self.n_averaged)
        ours, theirs = ([local(value.detach()) for value in one.parameters()] for one in (self.module, model))
        if count:
            average_(ours, theirs, self.decay, count)
        else:
            torch._foreach_copy_(ours, theirs)
        for ours_buffer, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            ours_buffer.copy_(buffer)
        self.n_averaged += 1
