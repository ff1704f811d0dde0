"""Where randomness comes from: each sample has its own, from its seed, its output's name and its index alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xgem.types import InputError


def derived_seed(seed: int, output: str, index: int, purpose: str = "noise") -> int:
    """A seed of 63 bits for one sample of one output, unrelated to those of its neighbours."""
    digest = hashlib.sha256(f"{seed}:{output}:{index}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sample_noise(seed: int, output: str, index: int, shape: Sequence[int], purpose: str = "noise") -> Tensor:
    """Standard normal noise of ``shape``, float32 on the CPU, so that it is the same for every device."""
    source = torch.Generator().manual_seed(derived_seed(seed, output, index, purpose))
    return torch.randn(tuple(shape), generator=source)


def draw_seeds(generator: torch.Generator | Sequence[torch.Generator]) -> int | list[int]:
    """A seed from a generator, or one from each of several; the generators move on.

    Raises:
        InputError: something else than a ``torch.Generator``.
    """
    return [_draw(source) for source in generator] if isinstance(generator, Sequence) else _draw(generator)


def _draw(source: Any) -> int:
    if not isinstance(source, torch.Generator):
        raise InputError(f"generator is of type {type(source).__name__}, expected torch.Generator")
    return int(torch.randint(2**32, (), generator=source, device=source.device))


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
