"""Names of the structures of masks and the classes of boxes, and the grey level with which each is drawn.

The built-in names have fixed levels, because trained weights depend on them:

| mask | value | box | value |
|---|---|---|---|
| left lung | -0.778 | atelectasis | -0.889 |
| right lung | -0.556 | cardiomegaly | -0.667 |
| cardiomediastinum | -0.333 | effusion | -0.444 |
| airways | -0.111 | infiltrate | -0.222 |
| ground glass opacity | 0.111 | mass | 0.000 |
| consolidation | 0.333 | nodule | 0.222 |
| pleural effusion | 0.556 | pneumonia | 0.444 |
| pneumothorax | 0.778 | pneumothorax | 0.667 |
| device | 1.000 | severity (a bar) | 0.889 |

The background is -1. A ControlNet may add names (``structures`` and ``box_classes`` in its configuration), whose levels
are between these; their order is part of the model, so new names are appended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
"""Structures of masks in every model; sides are the patient's, ``device`` is any line, tube or probe."""
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
"""Classes of boxes in every model: those that NIH's radiologists annotated."""
SEVERITY: Final = "severity"
MAX_ADDED: Final = 27
"""How many names of either kind a model can add: the grey levels of more could not be distinguished with 8 bits."""
BACKGROUND: Final = -1.0

_STEP: Final = 2 / len(STRUCTURES)
# Positions of added levels between two built-in masks (at 0 and 1; a box at 1/2): nine names for each position
_MASK_SHARES, _BOX_SHARES = (1 / 4, 1 / 8, 3 / 8), (3 / 4, 5 / 8, 7 / 8)


def plain_name(name: str) -> str:
    """``name`` in lower case with single blanks: ``"Left_Lung"`` -> ``"left lung"``."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()).lower()


def in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """``names``, each once: those of ``known`` in its order, then the others in alphabetical order."""
    given = set(names)
    return [name for name in known if name in given] + sorted(given - set(known))


@dataclass(frozen=True)
class Vocabulary:
    """The structures and box classes that a model knows, in the order of its levels."""

    structures: tuple[str, ...] = STRUCTURES
    box_classes: tuple[str, ...] = BOX_CLASSES

    @classmethod
    def extended(cls, structures: Sequence[str], box_classes: Sequence[str]) -> Vocabulary:
        """The built-in names, and these behind them."""
        return cls((*STRUCTURES, *structures), (*BOX_CLASSES, *box_classes))

    def level(self, name: str, *, box: bool = False) -> float:
        """The grey value in [-1, 1] of a structure's mask, of a class's ``box``, or of ``"severity"``.

        Built-in masks are evenly spaced from the background to 1; boxes and the severity bar are half way between
        them, added names at quarters and eighths.
        """
        if name == SEVERITY and not box:
            return BACKGROUND + _STEP * (len(BOX_CLASSES) + 0.5)
        built_in = BOX_CLASSES if box else STRUCTURES
        number = (self.box_classes if box else self.structures).index(name)
        if number < len(built_in):
            return BACKGROUND + _STEP * (number + (0.5 if box else 1))
        turn, place = divmod(number - len(built_in), len(STRUCTURES))
        return BACKGROUND + _STEP * (place + (_BOX_SHARES if box else _MASK_SHARES)[turn])


def check_added(names: Sequence[str], built_in: Sequence[str]) -> None:
    """Refuse names that a model cannot add to the ``built_in`` ones.

    Raises:
        ValueError: a name is not plain, is built in or duplicate, or there are more than :data:`MAX_ADDED`.
    """
    for name in names:
        if not name or name != plain_name(name):
            raise ValueError(
                f"{name!r}: expected lower case words with single blanks, like {plain_name(name) or 'rib'!r}"
            )
        if name in built_in or name == SEVERITY:
            raise ValueError(f"{name!r} is built in: leave it out")
    if len(set(names)) < len(names):
        raise ValueError(f"duplicate name: {', '.join(names)}")
    if len(names) > MAX_ADDED:
        raise ValueError(f"{len(names)} names, expected at most {MAX_ADDED}: grey levels of more are indistinguishable")
