"""The side of the patient on which a report, or an annotator's box, places a finding.

Frontals are shown as if the patient faced the reader: the patient's right is the left half of the image.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, Literal, Protocol

from xgem.labels.rules import label_report
from xgem.labels.sentences import sentences
from xgem.labels.vocabulary import classes_of

Side = Literal["left", "right"]
SIDES: Final[tuple[Side, Side]] = ("left", "right")
BOTH: Final[frozenset[Side]] = frozenset(SIDES)
_SIDE: Final = re.compile(r"\b(left|right)\b(?!\s+(?:heart|ventric|atri|main\s?stem|cardiac))", re.IGNORECASE)
BOTH_SIDES: Final = re.compile(r"\b(?:bilateral(?:ly)?|both|bibasilar|bibasal|biapical)\b", re.IGNORECASE)
"""Words for both sides at once."""
_ACROSS: Final = 0.25
"""A box with at least this share of its width on either side of the middle is on both sides."""


class Rectangle(Protocol):
    """A box of a finding, as :class:`xgem.data.annotations.Box`: in fractions of the image's width."""

    @property
    def label(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def w(self) -> float: ...


def named_sides(report: str) -> dict[str, frozenset[Side]]:
    """The sides of the CheXpert classes that a report affirms; empty where it affirms a class without a side.

    Sentence by sentence: a side belongs to every class that its sentence affirms
    (:func:`xgem.labels.rules.label_report`).
    """
    found: defaultdict[str, set[Side]] = defaultdict(set)
    for sentence in sentences(report):
        sides = _sides(sentence)
        for name, label in label_report(sentence).items():
            if label == 1:
                found[name] |= sides
    return {name: frozenset(sides) for name, sides in found.items()}


def _sides(sentence: str) -> frozenset[Side]:
    if BOTH_SIDES.search(sentence):
        return BOTH
    words = {word.lower() for word in _SIDE.findall(sentence)}
    return frozenset(side for side in SIDES if side in words)


def boxed_sides(boxes: Iterable[Rectangle]) -> dict[str, frozenset[Side]]:
    """The sides of the CheXpert classes that have a box; both where it lies across the image's middle."""
    found: defaultdict[str, set[Side]] = defaultdict(set)
    for box in boxes:
        in_left_half = (0.5 - box.x) / box.w  # the image's left, the patient's right
        sides: frozenset[Side] = (
            BOTH if _ACROSS <= in_left_half <= 1 - _ACROSS else frozenset({SIDES[int(in_left_half > 0.5)]})
        )
        for name in classes_of(box.label):
            found[name] |= sides
    return {name: frozenset(sides) for name, sides in found.items()}


def only_side(sides: Mapping[str, frozenset[Side]], classes: Iterable[str]) -> Side | None:
    """The one side of all named classes together; None where there is no side, or both."""
    together = frozenset[Side]().union(*(sides.get(name, frozenset()) for name in classes))
    return next(iter(together)) if len(together) == 1 else None
