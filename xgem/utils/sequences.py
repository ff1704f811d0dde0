"""Sequences whose items are not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class Computed(Sequence[T_co], Generic[T_co]):
    """``count`` items, each of which ``item`` makes of its number when it is asked for."""

    def __init__(self, count: int, item: Callable[[int], T_co]) -> None:
        self._count, self._item = count, item

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | list[T_co]:
        if isinstance(index, slice):
            return [self._item(number) for number in range(self._count)[index]]
        return self._item(range(self._count)[index])
