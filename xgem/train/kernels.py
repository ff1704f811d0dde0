"""The operations of a CUDA device or a CPU, mixed precision included, on tensors of the meta device.

Which kernel attention takes, and what autocast computes in which format, depend on the device of the tensors. Those of
the meta device take the plainest: attention that keeps its whole matrix, and no autocast at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from xgem.utils.attention import products_in_half

Device = Literal["cuda", "cpu"]
aten: Any = torch.ops.aten
HALF: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
_IN_HALF: Final[tuple[tuple[Any, str], ...]] = (
    (F, "linear"), (F, "conv1d"), (F, "conv2d"), (F, "conv_transpose2d"), (F, "scaled_dot_product_attention"),
    (torch, "addmm"), (torch, "bmm"), (torch, "baddbmm"), (torch, "matmul"),
)  # fmt: skip
"""What autocast computes in half precision."""
_IN_FULL: Final[tuple[tuple[Any, str], ...]] = (
    (F, "layer_norm"), (F, "group_norm"), (F, "softmax"), (F, "mse_loss"), (F, "l1_loss"), (F, "cross_entropy"),
)  # fmt: skip
"""What CUDA's autocast computes in float32; a CPU's does not."""

ATTENTION_FLOPS: Final[dict[Any, Callable[..., int]]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: sdpa_flop_count(
        *(one.shape for one in args[:3])
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *args, **_: sdpa_backward_flop_count(
        *(one.shape for one in args[:4])
    ),
}
"""What torch's counter of FLOPs lacks."""


class Kernels:
    """Within this context functions of the networks run as on ``device``; within ``autocast``, in mixed precision."""

    def __init__(self, device: Device, precision: str) -> None:
        self.device, self.half = device, HALF.get(precision)
        self._depth, self._keeps = 0, True
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Self:
        if self.device == "cuda":
            self._put(F, "scaled_dot_product_attention", _efficient_attention)
        else:
            attend = _cpu_attention if self.half is None else _plain_attention
            self._put(F, "scaled_dot_product_attention", partial(attend, F.scaled_dot_product_attention))
        if self.half is not None:
            for place, name in _IN_HALF:
                self._put(place, name, partial(self._in_half, getattr(place, name)))
            for place, name in _IN_FULL if self.device == "cuda" else ():
                self._put(place, name, partial(self._in_full, getattr(place, name)))
        return self

    def __exit__(self, *error: object) -> None:
        for place, name, function in reversed(self._before):
            setattr(place, name, function)
        self._before.clear()

    def _put(self, place: Any, name: str, function: Callable[..., Any]) -> None:
        self._before.append((place, name, getattr(place, name)))
        setattr(place, name, function)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """As ``torch.autocast``: weights are cast once until the outermost context ends."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._cast.clear()

    @contextlib.contextmanager
    def recomputing(self) -> Iterator[None]:
        """The backward pass: what is computed again there is so in mixed precision, block by block."""
        self._keeps = False
        try:
            with self.autocast():
                yield
        finally:
            self._keeps = True

    def autocasting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which always runs in ``autocast``."""

        def cast(*args: Any, **kwargs: Any) -> Any:
            with self.autocast():
                return function(*args, **kwargs)

        return cast

    def _halved(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype is self.half:
            return value
        assert self.half is not None
        if not (self._keeps and value.is_leaf and value.requires_grad):
            return value.to(self.half)
        if id(value) not in self._cast:
            self._cast[id(value)] = value, value.to(self.half)
        return self._cast[id(value)][1]

    def _in_half(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if not self._depth:
            return function(*args, **kwargs)
        return function(*map(self._halved, args), **{name: self._halved(one) for name, one in kwargs.items()})

    def _in_full(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if not self._depth:
            return function(*args, **kwargs)
        return function(*map(_in_float32, args), **{name: _in_float32(one) for name, one in kwargs.items()})


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """CUDA's memory-efficient attention, (b, heads, n, d) each; flash attention saves the same tensors."""
    assert not enable_gqa  # no model here has grouped heads
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype)  # (b or 1, heads or 1, n or 1, m)
        attn_mask = bias.expand(*query.shape[:3], key.shape[2])
    saves = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    attend = aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, saves, dropout_p, is_causal, scale=scale)[0]


def _cpu_attention(
    plain: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """A CPU's flash attention, which has no dropout."""
    if dropout_p or enable_gqa:
        return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    attend = aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _plain_attention(plain: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What the loop has a CPU in half precision take: products, and these in half precision too."""
    with products_in_half():
        return plain(*args, **kwargs)
