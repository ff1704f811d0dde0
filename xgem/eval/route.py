"""Routes: from which modalities to which, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from xgem.types import InputError

LETTERS: Final = {"frontal": "F", "lateral": "L", "report": "T"}
NOTHING: Final = "nothing"


@dataclass(frozen=True)
class Route:
    """From some modalities, none included, to one or several others; ``joint``: these are sampled jointly."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    joint: bool = False

    @property
    def short(self) -> str:
        """``L+T->F``."""
        return f"{_letters(self.inputs) or NOTHING}->{_letters(self.outputs)}"

    @property
    def name(self) -> str:
        """``lateral+report->frontal``."""
        return f"{'+'.join(self.inputs) or NOTHING}->{'+'.join(self.outputs)}"

    @property
    def stem(self) -> str:
        """Of files and folders: ``lateral_report_to_frontal``."""
        kind = "joint_" if self.joint else ""
        return f"{kind}{'_'.join(self.inputs) or NOTHING}_to_{'_'.join(self.outputs)}"

    @property
    def apart(self) -> tuple[Route, ...]:
        """The routes to each output by itself."""
        return tuple(Route(self.inputs, (output,)) for output in self.outputs)


def letter(modality: str) -> str:
    """F, L or T; the name of any other modality."""
    return LETTERS.get(modality, modality)


def _letters(modalities: Sequence[str]) -> str:
    return "+".join(map(letter, modalities))


def all_routes(modalities: Sequence[str]) -> list[Route]:
    """Every non-empty subset of the other modalities to each modality: nine routes for three."""
    return [
        Route(inputs, (output,))
        for output in modalities
        for count in range(1, len(modalities))
        for inputs in combinations([name for name in modalities if name != output], count)
    ]


def joint_routes(modalities: Sequence[str]) -> list[Route]:
    """All but one modality from the one, and all of them from nothing."""
    single = [
        Route((name,), tuple(other for other in modalities if other != name), joint=True)
        for name in reversed(modalities)
    ]
    return [*(route for route in single if len(route.outputs) > 1), Route((), tuple(modalities), joint=True)]


def parse_route(text: str, modalities: Sequence[str]) -> Route:
    """A route to one output by its name or letters, in any order of inputs: ``frontal->report``, ``L+T->F``.

    Raises:
        InputError: lists the model's routes.
    """
    names = {short: name for name, short in LETTERS.items()}
    left, arrow, right = text.replace(" ", "").partition("->")
    wanted = {names.get(part, part) for part in left.split("+")}
    for route in all_routes(modalities):
        if arrow and set(route.inputs) == wanted and route.outputs == (names.get(right, right),):
            return route
    known = ", ".join(route.short for route in all_routes(modalities))
    raise InputError(f"unknown route {text!r}: expected one of {known}")
