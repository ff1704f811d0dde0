"""What a family of measures found, as plain data: every number with its n, interval, extractor and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Estimate

FORMAT: Final = "xgem-measures"


FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class Metric:
    """One number.

    ``value`` is None where it could not be computed; ``reason`` then says why. ``of`` is what it is of, where that is
    not the whole set (a finding, a subgroup). ``extractor`` names the feature space or the judge, ``weights`` its
    weights' hash. ``references`` are yardsticks on real data (``floor``, ``ceiling``) or controls (``shuffled``).
    """

    name: str
    value: Estimate | None
    reason: str = ""
    of: str = ""
    extractor: str = ""
    weights: str = ""
    higher_is_better: bool | None = None
    references: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def missing(cls, name: str, reason: object, **options: Any) -> Metric:
        """The number that could not be computed."""
        return cls(name, None, reason=str(reason), **options)

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name}
        found |= {key: value for key in ("of", "extractor", "weights") if (value := getattr(self, key))}
        if self.value is None:
            return found | {"value": None, "not_computed": self.reason}
        found |= {"value": self.value.value, "interval": list(self.value.interval), "n": self.value.n}
        if self.higher_is_better is not None:
            found["higher_is_better"] = self.higher_is_better
        if self.references:
            found["references"] = {name: one.as_dict() for name, one in self.references.items()}
        return found | ({"settings": dict(self.settings)} if self.settings else {})


@dataclass(frozen=True)
class Example:
    """Images to look at, side by side: (h, w) uint8 each, with one line of text."""

    caption: str
    images: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class FamilyResult:
    """All numbers of one family (fidelity, text, ...), with what the report shows beside them.

    ``settings`` holds the seed, the sets' names, sizes and hashes; ``details`` what is no single number, as JSON
    values; ``plots`` maps titles to PNG files' bytes; ``tables`` maps file names to CSV text in others' columns.
    """

    family: str
    metrics: Sequence[Metric]
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    plots: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    examples: Sequence[Example] = ()
    tables: Mapping[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, name: str) -> Metric:
        """The metric of the whole set by name, or ``name/of``."""
        for metric in self.metrics:
            if name == (f"{metric.name}/{metric.of}" if metric.of else metric.name):
                return metric
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "settings": dict(self.settings),
            "metrics": [metric.as_dict() for metric in self.metrics],
            "details": dict(self.details),
        }


def finite(value: Any) -> Any:
    """The same as JSON values: NaN and infinities become None, numpy's numbers Python's."""
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
