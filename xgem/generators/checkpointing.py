"""Activation checkpointing: blocks keep their inputs alone, and compute the rest again in the backward pass.

Source: Chen et al. 2016. Unlike diffusers' ``enable_gradient_checkpointing``, what hooks add to a block (a ControlNet,
environment attentions) stays outside: hooks are gone by the time of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from xgem.utils.attention import products_in_half

BLOCKS: tuple[type[nn.Module], ...] = (BasicTransformerBlock, ResnetBlock2D)
"""The blocks of diffusers' denoisers that compute their activations again."""
_ENABLED = {
    SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled,
    SDPBackend.MATH: cuda.math_sdp_enabled,
}


def recompute_blocks(module: nn.Module, on: bool = True, kinds: tuple[type[nn.Module], ...] = BLOCKS) -> None:
    """Whether the blocks of ``kinds`` in ``module`` keep their inputs alone. Losses and gradients stay the same,
    dropout included; the backward pass computes the forward pass of every block once more."""
    for block in module.modules():
        if isinstance(block, kinds):
            vars(block).pop("forward", None)  # the class has its own
            if on:
                block.forward = partial(_recomputed, block.forward)


def recomputes(module: nn.Module) -> bool:
    """Whether any of its blocks keeps its inputs alone."""
    return any(isinstance(vars(block).get("forward"), partial) for block in module.modules())


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # What is compiled has its attention chosen once
    contexts = {} if torch.compiler.is_compiling() else {"context_fn": lambda: (nullcontext(), _SameAttention())}
    return checkpoint(forward, *args, use_reentrant=False, **contexts, **kwargs)


class _SameAttention(AbstractContextManager[None]):
    """Within it, attention runs by the kernels that are allowed where it was made: others keep other tensors."""

    def __init__(self) -> None:
        self.kernels = [kernel for kernel, enabled in _ENABLED.items() if enabled()]
        self.reduced = cuda.fp16_bf16_reduction_math_sdp_allowed()
        self.stack = ExitStack()

    def __enter__(self) -> None:
        self.stack.enter_context(products_in_half(self.reduced))
        self.stack.enter_context(sdpa_kernel(self.kernels))

    def __exit__(self, *error: object) -> None:
        self.stack.close()
