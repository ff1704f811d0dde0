"""The range of an option that is a number. Imports no torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

MAX_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """The numbers that an option accepts: ``low`` to ``high``; without ``low`` itself where it is ``open``."""

    low: float
    high: float = math.inf
    whole: bool = False
    open: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        high = "2**63 - 1" if self.high == MAX_SEED else f"{self.high:g}"
        if self.high == math.inf:
            return f"{kind}, {self.low:g} or more"
        return f"{kind} above {self.low:g}, up to {high}" if self.open else f"{kind} from {self.low:g} to {high}"

    def check(self, name: str, value: Any) -> Any:
        """A number, or all numbers of a sequence or mapping, as int or float; ValueError where one is out of range."""
        if isinstance(value, Mapping):
            items = cast(Mapping[str, Any], value).items()
            return {key: self.check(f"{name} for {key!r}", one) for key, one in items}
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return tuple(self.check(name, one) for one in cast(Sequence[Any], value))
        try:
            if isinstance(value, bool | str | bytes):
                raise TypeError
            number = operator.index(value) if self.whole else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} is {value!r}, expected {self}") from None
        above = number > self.low if self.open else number >= self.low
        if not math.isfinite(number) or not above or number > self.high:
            raise ValueError(f"{name} is {value!r}, expected {self}")
        return number
