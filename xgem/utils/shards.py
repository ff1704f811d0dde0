"""Which share of some work a process does, and on which of its machine's devices. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from xgem.types import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """The ``index``-th (from 0) of ``count`` processes; ``local`` is its number on its machine, to choose a GPU by."""

    index: int = 0
    count: int = 1
    local: int = 0

    def of(self, values: Sequence[T]) -> Sequence[T]:
        """Its share: every ``count``-th."""
        return values[self.index :: self.count]


def parse_shard(text: str) -> Shard:
    """``"2/4"`` is the second of four.

    Raises:
        InputError: anything else, or the fifth of four.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard is {text!r}, expected I/N with I from 1 to N, like 2/4")
    return Shard(int(found[1]) - 1, int(found[2]))


def environment_shard(environment: Mapping[str, str] = os.environ) -> Shard:
    """What torchrun says of this process (RANK, WORLD_SIZE, LOCAL_RANK); the only one where it says nothing.

    Raises:
        InputError: numbers that make no sense.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Shard()
    rank, size, local = (environment.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not (rank.isdecimal() and size.isdecimal() and local.isdecimal() and int(rank) < int(size)):
        raise InputError(f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local}: expected numbers as torchrun sets them")
    return Shard(int(rank), int(size), int(local))
