"""Memory and FLOPs of one optimizer step, measured while the loop's own step runs on tensors without storage.

Tensors of the meta device have shapes, number formats and a graph, and no numbers: a step of any size runs in seconds
anywhere. Every storage is counted from its first use until it is freed, so that what autograd saves, what a kernel
returns besides its result, and what the optimizer needs for a moment are all in the figures.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from xgem.train.averaging import Average
from xgem.train.kernels import ATTENTION_FLOPS, Device, Kernels
from xgem.train.optimizer import parameter_groups
from xgem.train.passes import Loss, Passes
from xgem.train.share import Share
from xgem.train.stage import ComparingStage, Stage

META = torch.device("meta")
aten: Any = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {**flop_registry, **ATTENTION_FLOPS}
_SHARDED = ("weights", "gradients", "optimizer", "averages")


class Live(TorchDispatchMode):
    """Counts FLOPs, and the bytes of live storages by kind and the maximum of their sum weighted by ``shares`` (or 1).

    New storages are of the current ``kind``. Where a network asks for a value, which a tensor without storage has not,
    it gets False or 1: not all prompts are kept, and a pair of modalities has studies.
    """

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.shares = dict(shares or {})
        self.bytes: Counter[str] = Counter()
        self.kind = "working"
        self.peak = 0.0
        self.flops = 0
        self._known: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def hold(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Count the storages of ``tensors`` as ``kind``, whatever they were before."""
        for tensor in tensors:
            self._enter(tensor.untyped_storage(), kind)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the storage of ``tensor`` is counted."""
        return id(tensor.untyped_storage()) in self._known

    @contextlib.contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Storages that are made within this block are of ``kind``."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def _enter(self, storage: torch.UntypedStorage, kind: str) -> None:
        key = id(storage)
        if key in self._known:
            self._leave(key)
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._leave(key)), kind, size
        self.bytes[kind] += size
        self.peak = max(self.peak, sum(self.shares.get(name, 1.0) * value for name, value in self.bytes.items()))

    def _leave(self, key: int) -> None:
        _, kind, size = self._known.pop(key)
        self.bytes[kind] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is aten._local_scalar_dense.default:
            return False if args[0].dtype is torch.bool else 1
        if func is aten.index.Tensor:  # by a mask: all rows
            places = [_all_rows(one) if one is not None and one.dtype is torch.bool else one for one in args[1]]
            args = (args[0], places, *args[2:])
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and not self.holds(value):
                self._enter(value.untyped_storage(), self.kind)
        # Not by torch's FlopCounterMode: it keeps what a checkpointed block computes again alive
        if formula := FORMULAS.get(getattr(func, "overloadpacket", None)):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _all_rows(mask: Tensor) -> Tensor:
    return torch.arange(len(mask), device=mask.device)


@dataclass(frozen=True)
class Footprint:
    """Of one process: bytes, and FLOPs of its samples of a batch.

    ``activations`` are what is live at the end of the forward pass beside all else; ``peak`` is the maximum over the
    step: gradients fill as activations are freed, so that it is less than the sum of all.
    """

    weights: int
    frozen: int
    buffers: int
    gradients: int
    optimizer: int
    averages: int
    buckets: int
    batch: int
    activations: int
    peak: int
    flops: int
    gathered: int = 0
    """Weights of other processes that sharding gathers for a moment; part of the peak."""

    def with_gathered(self, size: int) -> Footprint:
        """The same with ``size`` bytes gathered."""
        return replace(self, gathered=size, peak=self.peak + size)


class _Accelerator:
    """What :class:`Passes` asks of an ``Accelerator``, of one process among ``num_processes``."""

    process_index, device = 0, META

    def __init__(self, processes: int, kernels: Kernels) -> None:
        self.num_processes, self.autocast = processes, kernels.autocast


class _FirstPass(Passes):
    """The first pass of one process alone. ``repeats``: how many there are of its kind.

    Where samples are compared, copies stand for those of other processes and passes. ``comparing``: FLOPs of that, its
    backward pass included.
    """

    def __init__(self, stage: Stage, module: nn.Module, accelerator: Any, live: Live, most: int | None) -> None:
        super().__init__(stage, module, accelerator, "", most)
        self.repeats, self.shares = len(self.shares), self.shares[:1]
        self.live, self.comparing = live, 0

    def losses(self, step: int) -> list[Callable[[], Loss]]:
        """As in a step of several passes, of which values are computed twice where samples are compared."""
        if self.repeats == 1 or not isinstance(stage := self.stage, ComparingStage):
            return super().losses(step)
        share = self.shares[0]
        with torch.no_grad():
            own = self._run(share, partial(stage.per_sample, self.module))
        leaves = {name: value.detach().float() for name, value in own.items() if value.is_floating_point()}
        leaves = {name: value.requires_grad_() for name, value in leaves.items()}
        shown, terms = self._criterion(stage, own | leaves)
        found = torch.autograd.grad(shown, list(leaves.values()), materialize_grads=True)
        return [partial(self._known, stage, share, dict(zip(leaves, found, strict=True)), shown.detach(), terms)]

    def _criterion(self, stage: ComparingStage, own: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        copies = self.world * self.repeats - 1
        own = {name: value.float() if value.is_floating_point() else value for name, value in own.items()}
        if copies:
            own = {name: torch.cat([value] + [value.detach()] * copies) for name, value in own.items()}
        before = self.live.flops
        found = stage.criterion(own)
        self.comparing = 3 * (self.live.flops - before)
        return found

    @property
    def flops(self) -> int:
        """FLOPs of all passes."""
        return (self.live.flops - self.comparing) * self.repeats + self.comparing


def footprint(
    stage: Stage,
    frozen: Iterable[nn.Module],
    *,
    processes: int,
    most: int | None,
    precision: str,
    parts: int = 1,
    device: Device = "cuda",
) -> Footprint:
    """Run one optimizer step of ``stage`` as the loop does, and count.

    Modules and batches are on the meta device; ``frozen`` are networks that the stage keeps beside its own. ``most``:
    samples at once, as :func:`xgem.train.passes.shares_of`. ``parts``: weights, gradients, moments and averages are
    counted divided by that many; where they are whole, several processes have DDP's buckets of gradients too.

    Raises:
        ConfigError: a batch cannot be divided among ``processes``.
    """
    module = stage.module.train()
    trained = [p for p in module.parameters() if p.requires_grad]
    averaged, optimizer = _with_moments(stage, trained, device)
    part = 1 / parts
    live = Live(dict.fromkeys((*_SHARDED, "update"), part))
    live.hold("frozen", [one for net in frozen for one in (*net.parameters(), *net.buffers())])
    live.hold("weights", module.parameters())
    live.hold("averages", averaged.parameters())
    live.hold("buffers", [*module.buffers(), *averaged.buffers()])
    live.hold("optimizer", [one for state in optimizer.state.values() for one in state.values()])
    static = Counter(live.bytes)
    hooks = [p.register_post_accumulate_grad_hook(partial(_count_gradient, live)) for p in trained]
    kernels = Kernels(device, precision)
    if precision != "no":  # as accelerate wraps a module
        module.forward = convert_outputs_to_fp32(kernels.autocasting(module.forward))
    passes = _FirstPass(stage, module, _Accelerator(processes, kernels), live, most)
    if passes.repeats > 1:  # the greatest is a pass that finds gradients of others
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
            live.hold("gradients", [parameter.grad])
    activations = 0
    try:
        with kernels, live, _counted_batches(stage, live) as batches:
            for loss_of_share in passes.losses(0):
                value = loss_of_share().value
                activations = max(activations, live.bytes["working"])
                unused = 0 * torch.stack([p.sum() for p in trained]).sum()
                with kernels.recomputing():
                    (value + unused).backward()
                del value, unused
            gradients = live.bytes["gradients"]
            with live.counting("update"):
                nn.utils.clip_grad_norm_(trained, stage.config.grad_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                averaged.update_parameters(module)
    finally:
        vars(module).pop("forward", None)
        for hook in hooks:
            hook.remove()
    buckets = gradients if processes > 1 and parts == 1 else 0
    sizes = {kind: round(static[kind] * part) for kind in ("weights", "optimizer", "averages")}
    return Footprint(
        **sizes,
        gradients=round(gradients * part),
        frozen=static["frozen"],
        buffers=static["buffers"],
        buckets=buckets,
        batch=max(batches),
        activations=activations,
        peak=round(live.peak) + buckets,
        flops=passes.flops,
    )


def _with_moments(stage: Stage, trained: list[nn.Parameter], device: Device) -> tuple[Average, torch.optim.Optimizer]:
    """The averages and the optimizer of a step that is not the first."""
    averaged = Average(stage.module, stage.config.ema_decay)
    optimizer = torch.optim.AdamW(parameter_groups(stage.module, stage.config), foreach=device == "cuda")
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return averaged, optimizer


def _count_gradient(live: Live, parameter: Tensor) -> None:
    assert parameter.grad is not None
    live.hold("gradients", [parameter.grad])


@contextlib.contextmanager
def _counted_batches(stage: Stage, live: Live) -> Iterator[list[int]]:
    """Within this block the batches that ``stage`` makes are counted; their sizes in bytes."""
    make, sizes = stage.batch, list[int]()

    def batch(share: Share) -> dict[str, Any]:
        with live.counting("batch"):
            made = make(share)
        sizes.append(live.bytes["batch"])
        return made

    stage.batch = batch  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        stage.batch = make  # type: ignore[method-assign]
