"""The forward passes of a process over its samples of a batch, in as many shares as memory asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from xgem.train.ahead import ReadAhead
from xgem.train.share import Share
from xgem.train.stage import ComparingStage, Stage
from xgem.types import ConfigError
from xgem.utils.attention import products_in_half
from xgem.utils.devices import moved
from xgem.utils.random import mix


class Loss(NamedTuple):
    """``value`` is what to differentiate: the mean of its gradients over a batch's shares and processes is the gradient
    of the batch's loss. ``shown`` is the loss itself, ``terms`` what else to log.
    """

    value: Tensor
    shown: Tensor
    terms: Mapping[str, Tensor]


def shares_of(stage: Stage, process: int, processes: int, most: int | None) -> list[Share]:
    """The shares of a batch that one of several processes works on, of one size, at most ``most`` samples each.

    Raises:
        ConfigError: the samples of a batch cannot be divided evenly among the processes.
    """
    batch = stage.config.batch_size
    if batch % processes:
        fitting = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise ConfigError(
            f"stage {stage.name}: a batch of {batch} cannot be divided evenly among {processes} processes: "
            f"start {fitting}, or choose another batch_size"
        )
    own = batch // processes
    size = max(n for n in range(1, own + 1) if own % n == 0 and n <= (most or own))
    first = process * own
    return [Share(stage.seed, stage.name, 0, start, size, batch) for start in range(first, first + own, size)]


class Passes:
    """Computes the losses of a process's shares of a batch. ``module`` may be wrapped or compiled."""

    def __init__(
        self, stage: Stage, module: nn.Module, accelerator: Accelerator, precision: str, most: int | None
    ) -> None:
        self.stage, self.module, self.accelerator, self.precision = stage, module, accelerator, precision
        self.world = accelerator.num_processes
        self.divide(most)

    def divide(self, most: int | None) -> int:
        """Work on at most ``most`` samples at once (None: on all of the process's); returns how many these are."""
        self.shares = shares_of(self.stage, self.accelerator.process_index, self.world, most)
        self.ahead = ReadAhead(self.stage, self.shares)
        return self.shares[0].size

    def losses(self, step: int) -> list[Callable[[], Loss]]:
        """What computes the loss of each share of batch ``step``: to be called once each, in their order."""
        shares = [replace(share, step=step) for share in self.shares]
        stage = self.stage
        if not isinstance(stage, ComparingStage):
            return [partial(self._loss, share) for share in shares]
        if len(shares) == 1:
            return [partial(self._compared, stage, shares[0])]
        # Every sample's values first, without a graph; with the gradient of each, shares are differentiated one by one
        with torch.no_grad():
            parts = [self._run(share, partial(stage.per_sample, self.module)) for share in shares]
        own = _in_full({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        leaves = {name: value.requires_grad_() for name, value in own.items() if value.is_floating_point()}
        shown, terms = self._criterion(stage, own)
        found = torch.autograd.grad(shown, list(leaves.values()), materialize_grads=True)
        gradients = dict(zip(leaves, (one.chunk(len(shares)) for one in found), strict=True))  # shares are of one size
        result = shown.detach(), terms
        return [
            partial(self._known, stage, share, {name: rows[number] for name, rows in gradients.items()}, *result)
            for number, share in enumerate(shares)
        ]

    def _loss(self, share: Share) -> Loss:
        loss, terms = self._run(share, partial(self.stage.loss, self.module))
        return Loss(loss, loss.detach(), terms)

    def _compared(self, stage: ComparingStage, share: Share) -> Loss:
        loss, terms = self._criterion(stage, self._run(share, partial(stage.per_sample, self.module)))
        return Loss(loss * self.world, loss.detach(), terms)

    def _known(
        self, stage: ComparingStage, share: Share, gradients: Mapping[str, Tensor], shown: Tensor, terms: Any
    ) -> Loss:
        values = self._run(share, partial(stage.per_sample, self.module))
        value = torch.stack([(values[name] * gradient).sum() for name, gradient in gradients.items()]).sum()
        return Loss(value * self.world * len(self.shares), shown, terms)

    def _criterion(self, stage: ComparingStage, own: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the whole batch, with gradients to this process's values alone."""
        own = _in_full(own)
        if self.world > 1:
            every = cast(dict[str, Tensor], gather({name: value.detach() for name, value in own.items()}))
            start = self.accelerator.process_index
            own = {
                name: torch.cat([every[name][: start * len(value)], value, every[name][(start + 1) * len(value) :]])
                for name, value in own.items()
            }
        return stage.criterion(own)

    def _run(self, share: Share, function: Callable[[dict[str, Any]], Any]) -> Any:
        """``function`` of a share's samples; what a network draws itself (dropout) follows from the share too."""
        torch.manual_seed(mix(share.seed, share.stage, share.step, share.first))
        device = self.accelerator.device
        batch = _on(device, self.ahead.batch(share))
        with self.accelerator.autocast(), _quick_attention(device, self.precision):
            return function(batch)


def _in_full(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of mixed precision as float32."""
    return {name: value.float() if value.is_floating_point() else value for name, value in values.items()}


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _on(device, one) for key, one in cast(dict[str, Any], value).items()}
    return moved(value, device) if isinstance(value, Tensor) else value


@contextmanager
def _quick_attention(device: torch.device, precision: str) -> Iterator[None]:
    """On a CPU in half precision, attention by plain products: the backward pass of the fused kernel is slow there."""
    if device.type != "cpu" or precision == "no":
        yield
        return
    with products_in_half(), sdpa_kernel(SDPBackend.MATH):
        yield
