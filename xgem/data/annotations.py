"""Spatial annotations of a frontal radiograph: masks by structure, boxes by class, a severity score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STRUCTURES: Final = (
    "left lung",
    "right lung",
    "cardiomediastinum",
    "airways",
    "ground glass opacity",
    "consolidation",
    "pleural effusion",
    "pneumothorax",
    "device",
)
"""What a mask can outline; sides are the patient's, ``device`` is any line, tube or probe."""
BOX_CLASSES: Final = (
    "atelectasis",
    "cardiomegaly",
    "effusion",
    "infiltrate",
    "mass",
    "nodule",
    "pneumonia",
    "pneumothorax",
)
"""What a box can hold: the classes that NIH's radiologists boxed."""
MAX_SEVERITY: Final = 18.0
"""The highest Brixia score."""


@dataclass(frozen=True)
class Box:
    """A rectangle that holds a finding; ``x, y`` is its top left corner. Shares of the picture's width and height."""

    label: str
    x: float
    y: float
    w: float
    h: float
