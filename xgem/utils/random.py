"""Random seeds: each sample's noise depends only on the seed, the name of its output and its index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xgem.types import InputError


def derived_seed(seed: int, output: str, index: int, purpose: str = "noise") -> int:
    """A 63-bit seed for one sample of one output, independent of those of other samples."""
    digest = hashlib.sha256(f"{seed}:{output}:{index}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sample_noise(seed: int, output: str, index: int, shape: Sequence[int], purpose: str = "noise") -> Tensor:
    """Standard normal noise of ``shape``, drawn in float32 on the CPU, so that it is the same for every device."""
    source = torch.Generator().manual_seed(derived_seed(seed, output, index, purpose))
    return torch.randn(tuple(shape), generator=source)


def draw_seeds(generator: torch.Generator | Sequence[torch.Generator]) -> int | list[int]:
    """A seed drawn from a generator, or one from each of several; this advances the generators.

    Raises:
        InputError: something other than a ``torch.Generator``.
    """
    return [_draw(source) for source in generator] if isinstance(generator, Sequence) else _draw(generator)


def _draw(source: Any) -> int:
    if not isinstance(source, torch.Generator):
        raise InputError(f"generator is of type {type(source).__name__}, expected torch.Generator")
    return int(torch.randint(2**32, (), generator=source, device=source.device))


def mix(*parts: int | str) -> int:
    """A 63-bit seed derived from any parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
