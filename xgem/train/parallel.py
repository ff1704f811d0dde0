"""How a training is spread over its processes: weights whole on each, or in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from xgem.train.passes import Loss
from xgem.train.sharding import fill_gradients


class Parallel(ABC):
    """A module and its optimizer; ``call`` is the module as the loss calls it."""

    call: nn.Module
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def gradients(self, losses: Sequence[Callable[[], Loss]], clip: float) -> tuple[list[Loss], Tensor]:
        """Gradients of the mean of the losses of a batch's shares, and their norm before it is clipped."""

    def update(self) -> None:
        """One step of the optimizer by the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Whole(Parallel):
    """Weights are whole on every process, gradients are their mean (DDP), by accelerate."""

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self.call = self.module

    def gradients(self, losses: Sequence[Callable[[], Loss]], clip: float) -> tuple[list[Loss], Tensor]:
        accelerator, done = self.accelerator, list[Loss]()
        accelerator.gradient_accumulation_steps, accelerator.step = len(losses), 0
        for loss in losses:
            with accelerator.accumulate(self.module):
                done.append(loss())
                value = done[-1].value
                if accelerator.num_processes > 1:  # a share may leave parameters out, but DDP expects gradients of all
                    value = value + 0 * sum(p.sum() for p in self.module.parameters() if p.requires_grad)
                accelerator.backward(value)
        fill_gradients(self.module)
        norm = accelerator.clip_grad_norm_(self.module.parameters(), clip)
        assert norm is not None
        return done, norm


class InParts(Parallel):
    """Every process has a part of each weight, of its gradient and of its moments (``xgem.train.sharding``)."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.call, self.optimizer = module, optimizer

    def gradients(self, losses: Sequence[Callable[[], Loss]], clip: float) -> tuple[list[Loss], Tensor]:
        done: list[Loss] = []
        for loss in losses:
            done.append(loss())
            (done[-1].value / len(losses)).backward()  # gradients are brought to their parts after every share
        fill_gradients(self.call)
        norm: Any = torch.nn.utils.clip_grad_norm_(self.call.parameters(), clip)
        return done, cast(Tensor, norm.full_tensor() if isinstance(norm, DTensor) else norm)
