"""Weights, gradients, moments and averages in parts on the processes, by PyTorch's ``fully_shard`` (FSDP2).

Every process has a part of each weight. A layer's weights are brought together when it computes, and let go after.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from xgem.types import ConfigError

KINDS = ("no", "full", "hybrid")


def mesh_shape(kind: str, processes: int) -> tuple[int, ...]:
    """All processes in one row, or (``hybrid``) a row for each node, so that weights are whole on every node.

    Raises:
        ConfigError: there is one process alone, or nodes have different numbers of them.
    """
    if processes == 1:
        raise ConfigError(f"sharding {kind!r} needs several processes: start them with torchrun, or leave it out")
    if kind == "full":
        return (processes,)
    own = int(os.environ.get("LOCAL_WORLD_SIZE") or processes)
    if processes % own:
        raise ConfigError(f"sharding 'hybrid': {processes} processes are not {own} on every node; use 'full'")
    return processes // own, own


def mesh_of(shape: tuple[int, ...], device: str) -> DeviceMesh:
    """The processes in an order of that shape; ``device``: the type of theirs."""
    return init_device_mesh(device, shape, mesh_dim_names=("nodes", "parts")[-len(shape) :])


def layers(module: nn.Module) -> list[nn.Module]:
    """The entries of a network's outermost lists of modules, which are sharded one by one: a transformer's blocks, a
    UNet's levels."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            found += [one for one in child if one is not None and any(True for _ in one.parameters())]
        else:
            found += layers(child)
    return found


def shard(module: nn.Module, mesh: DeviceMesh, *, compiled: bool = False) -> None:
    """Leave to each process its part of the weights of ``module``; with ``compiled``, layers are compiled.

    Weights are brought together as they are, in float32: what mixed precision computes in less, autocast decides.
    """
    parts = layers(module)
    inside = {one for part in parts for one in part.modules()}
    outer = [place for place in _parameters(module) if place[0] not in inside]
    module.register_forward_hook(partial(_with_all, outer))
    for part in parts:
        part.register_forward_hook(partial(_with_all, list(_parameters(part))))
        if compiled:
            # Where the length of texts is a symbol, inductor cannot order the strides of the mask of a UNet's level
            level = any(isinstance(one, ResnetBlock2D) for one in part.modules())
            part.compile(dynamic=False if level else None)
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where the trained parameters of ``module`` are: while it computes, others stand in their places."""
    for one in module.modules():
        for name, value in one.named_parameters(recurse=False):
            if value.requires_grad:
                yield one, name


def _with_all(places: list[tuple[nn.Module, str]], module: nn.Module, arguments: Any, output: Any) -> Any:
    """The output plus 0 x all parameters: all processes then have gradients of the same ones, as ``fully_shard`` asks,
    also where the samples of one left some out."""
    del module, arguments
    if not torch.is_grad_enabled() or not places:
        return output
    nothing = torch.stack([0 * getattr(one, name).sum().float() for one, name in places]).sum()
    return tree_map(lambda x: x + nothing.to(x.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, output)


def local(value: Tensor) -> Tensor:
    """This process's part of a weight, or all of one that is not in parts."""
    return value.to_local() if isinstance(value, DTensor) else value


def fill_gradients(module: nn.Module) -> None:
    """Zeros for parameters of layers that did not compute in this step: weight decay and moments still go on."""
    for value in module.parameters():
        if value.requires_grad and value.grad is None:
            value.grad = torch.zeros_like(value)


@contextmanager
def brought_together(module: nn.Module) -> Iterator[None]:
    """Within the block the outer weights of a sharded module are whole on all processes, layers as they compute."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def without_storage(module: nn.Module) -> nn.Module:
    """A copy of a module with its parameters on the meta device."""
    meta = {id(value): nn.Parameter(value.detach().to("meta"), value.requires_grad) for value in module.parameters()}
    return copy.deepcopy(module, meta)


def fill(sharded: nn.Module, whole: Mapping[str, Tensor], device: torch.device) -> None:
    """Give a sharded module, on the meta device or not, the ``whole`` weights and the buffers of the first process."""
    sharded._apply(lambda one: torch.empty_like(one, device=device) if one.is_meta else one.to(device))
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(sharded, dict(whole), options=options)  # a tensor at a time
    for buffer in sharded.buffers():
        dist.broadcast(buffer, 0)


class WholeCopy:
    """A copy of a module, made before the module is sharded, that takes the whole weights at the end, on the CPU."""

    def __init__(self, module: nn.Module, main: bool) -> None:
        self.module = without_storage(module) if main else None

    def filled(self, sharded: nn.Module) -> nn.Module:
        """The copy with the weights of ``sharded`` on the first process; on others ``sharded`` itself."""
        state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.module is None:
            return sharded
        self.module.load_state_dict(cast(dict[str, Any], state), assign=True)
        return self.module
