"""Annotations of studies on the model's square grid, as the control measures ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass

Mask = NDArray[np.bool_]
Masks = Mapping[str, Mask]

UNITED: Final[dict[str, tuple[str, ...]]] = {"lungs": ("left lung", "right lung"), "heart": ("cardiomediastinum",)}
"""What is judged as one: a structure's name in the measures, and the annotated ones that it is made of."""


def united(masks: Masks) -> dict[str, Mask]:
    """The masks as they are judged: lungs as one (where both are outlined), the rest as they are."""
    parts = {part for names in UNITED.values() for part in names}
    found = {
        name: np.logical_or.reduce([masks[part] for part in names])
        for name, names in UNITED.items()
        if all(part in masks for part in names)
    }
    return found | {name: mask for name, mask in masks.items() if name not in parts}


@dataclass(frozen=True)
class Outlines:
    """Masks of n studies: ``masks`` (n, structures, s, s), all False where ``known`` (n, structures) is."""

    structures: tuple[str, ...]
    masks: Mask
    known: Mask

    @classmethod
    def stacked(cls, masks: Sequence[Masks], structures: Sequence[str], size: int) -> Outlines:
        """Of the named structures, which a study may lack."""
        nothing = np.zeros((size, size), dtype=bool)
        stacked = np.array([[one.get(name, nothing) for name in structures] for one in masks], dtype=bool)
        known = np.array([[name in one for name in structures] for one in masks], dtype=bool)
        return cls(tuple(structures), stacked.reshape(len(masks), len(structures), size, size), known)
