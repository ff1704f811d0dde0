"""Masks of studies on the model's square grid, for segmenters and the metrics of control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Masks = Mapping[str, Mask]

UNITED: Final[dict[str, tuple[str, ...]]] = {"lungs": ("left lung", "right lung")}
"""Structures that are evaluated as one: the name in the metrics, and the annotated structures that it consists of."""


def united(masks: Masks) -> dict[str, Mask]:
    """The masks as they are evaluated: both lungs as one (if both are annotated), the others unchanged."""
    parts = {part for names in UNITED.values() for part in names}
    unions = {
        name: np.logical_or.reduce([masks[part] for part in names])
        for name, names in UNITED.items()
        if all(part in masks for part in names)
    }
    return unions | {name: mask for name, mask in masks.items() if name not in parts}


@dataclass(frozen=True)
class Outlines:
    """Masks of n studies: ``masks`` (n, structures, s, s), empty where ``known`` (n, structures) is False."""

    structures: tuple[str, ...]
    masks: Mask
    known: Mask

    @classmethod
    def stacked(cls, masks: Sequence[Masks], structures: Sequence[str], size: int) -> Outlines:
        """Stack the masks of the named structures; a study may lack some."""
        empty = np.zeros((size, size), dtype=bool)
        stacked = np.array([[study.get(name, empty) for name in structures] for study in masks], dtype=bool)
        known = np.array([[name in study for name in structures] for study in masks], dtype=bool)
        return cls(tuple(structures), stacked.reshape(len(masks), len(structures), size, size), known)
