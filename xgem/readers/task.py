"""A task of a reader study: what is shown, what is asked, and what of it may be synthetic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from xgem.configs.base import Config

Part = Literal["frontal", "lateral", "report"]
PARTS: Final[tuple[Part, ...]] = ("frontal", "lateral", "report")
PICTURES: Final[tuple[Part, ...]] = ("frontal", "lateral")
REAL: Final = "real"
"""The arm of real studies."""
MOST_CHOICES: Final = 9
"""Of a scale: one key each."""
_NAME: Final = re.compile(r"[A-Za-z0-9][\w .-]{0,59}")


class Task(Config):
    """One task: what is shown, what is asked, and what of it is generated in a synthetic item.

    ``shows`` are the parts of an item. ``generated`` are those that come from the generated set in a synthetic item
    (all, if left out); the others are of the real study that it was generated from. ``items`` counts those of each arm.
    ``paired``: every arm shows the same cases, as separate items; otherwise an arm has cases of its own. ``arms``: all,
    if left out. ``labels`` name some or all scores from ``low`` to ``high``. ``turing``: ask whether it is real.
    """

    name: str
    title: str = Field(min_length=1, max_length=120)
    question: str = Field(min_length=1, max_length=400)
    shows: tuple[Part, ...] = Field(min_length=1)
    generated: tuple[Part, ...] = ()
    arms: tuple[str, ...] = ()
    low: int = 1
    high: int = 5
    labels: dict[int, str] = Field(default_factory=dict[int, str])
    items: int = Field(default=10, ge=1)
    paired: bool = False
    turing: bool = False

    @property
    def scores(self) -> range:
        """All scores that can be given."""
        return range(self.low, self.high + 1)

    @property
    def judged(self) -> tuple[Part, ...]:
        """The parts that are generated in a synthetic item."""
        return self.generated or self.shows

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named([self.name], "name")
        for field, parts in (("shows", self.shows), ("generated", self.generated), ("arms", self.arms)):
            if len(set(parts)) < len(parts):
                raise ValueError(f"{field} names one twice: {', '.join(parts)}")
        if not set(self.generated) <= set(self.shows):
            raise ValueError(f"generated {', '.join(self.generated)}: expected some of shows, {', '.join(self.shows)}")
        if not 2 <= len(self.scores) <= MOST_CHOICES:
            raise ValueError(f"scale of {self.low} to {self.high}: expected 2 to {MOST_CHOICES} scores")
        unknown = [score for score in self.labels if score not in self.scores]
        if unknown:
            raise ValueError(f"label of score {unknown[0]}: expected scores of {self.low} to {self.high}")
        return self


def named(names: Iterable[str], what: str) -> tuple[str, ...]:
    """The names, if each can stand in a page, a file and a table, and none stands twice; ValueError otherwise."""
    given = tuple(names)
    for name in given:
        if not _NAME.fullmatch(name) or name != name.strip():
            raise ValueError(f"{what} {name[:60]!r}: expected up to 60 letters, digits, blanks and . _ -")
        if given.count(name) > 1:
            raise ValueError(f"{what} {name!r} stands twice")
    return given
