"""How PyTorch computes attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda


@contextmanager
def products_in_half(on: bool = True) -> Iterator[None]:
    """Within it, attention of half-precision inputs by plain products (``SDPBackend.MATH``, on any device) makes these
    in half precision; off, in float32."""
    before = cuda.fp16_bf16_reduction_math_sdp_allowed()
    cuda.allow_fp16_bf16_reduction_math_sdp(on)
    try:
        yield
    finally:
        cuda.allow_fp16_bf16_reduction_math_sdp(before)
