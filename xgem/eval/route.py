"""Routes: from which modalities to which, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from xgem.types import InputError

LETTERS = {"frontal": "F", "lateral": "L", "report": "T"}


@dataclass(frozen=True)
class Route:
    """From some modalities to another."""

    inputs: tuple[str, ...]
    output: str

    @property
    def name(self) -> str:
        return f"{'+'.join(self.inputs)}->{self.output}"

    @property
    def short(self) -> str:
        return f"{'+'.join(LETTERS.get(name, name) for name in self.inputs)}->{LETTERS.get(self.output, self.output)}"


def all_routes(modalities: Sequence[str]) -> list[Route]:
    """Every non-empty subset of the other modalities to each modality: nine routes for three."""
    return [
        Route(inputs, output)
        for output in modalities
        for count in range(1, len(modalities))
        for inputs in combinations([name for name in modalities if name != output], count)
    ]


def parse_route(text: str, modalities: Sequence[str]) -> Route:
    """A route by its name or letters, in any order of inputs: ``frontal->report``, ``L+T->F``.

    Raises:
        InputError: lists the model's routes.
    """
    names = {letter: name for name, letter in LETTERS.items()}
    left, arrow, right = text.replace(" ", "").partition("->")
    wanted = {names.get(part, part) for part in left.split("+")}
    for route in all_routes(modalities):
        if arrow and set(route.inputs) == wanted and route.output == names.get(right, right):
            return route
    known = ", ".join(route.short for route in all_routes(modalities))
    raise InputError(f"unknown route {text!r}: expected one of {known}")
