"""Published weight files: read without running what they hold, and matched key by key with a component."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xgem.checkpoints.component import Component
from xgem.types import CheckpointError
from xgem.utils.files import one_line

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote and what it left out."""

    preset: str
    components: tuple[str, ...]
    unused: tuple[str, ...]


def read_weights_file(path: Path) -> dict[str, Any]:
    """What a ``.pt`` or ``.pth`` file holds, tensors on the CPU; CheckpointError where it has more than plain data."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way, and torch's own words advise to read it unsafely
        reason = one_line(error) if isinstance(error, OSError) else "it is damaged, or holds more than plain data"
        raise CheckpointError(f"{path}: {reason}: expected what torch.save wrote of a state dict") from None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, expected a state dict")
    return dict(found)


def tensors(found: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """A state dict without the prefix that parallel training adds; CheckpointError where a value is no tensor."""
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{origin}: {key!r} is a {type(value).__name__}, expected a tensor")
    return {key.removeprefix("module."): value for key, value in found.items()}


def named(keys: Iterable[str]) -> str:
    """All keys in a line; those that differ in one number are written as one, ``blocks.{0-27}.attn.qkv.weight``."""
    groups: dict[str, list[int]] = {}
    for key in sorted(keys):
        match = _NUMBER.search(key)
        pattern = key if match is None else f"{key[: match.start()]}{{}}{key[match.end() :]}"
        groups.setdefault(pattern, []).extend([] if match is None else [int(match[0])])
    texts = []
    for pattern, numbers in groups.items():
        runs: list[list[int]] = []
        for number in sorted(numbers):
            if runs and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        shown = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
        texts.append(pattern.replace("{}", shown if len(numbers) == 1 else f"{{{shown}}}") if numbers else pattern)
    return ", ".join(texts)


def fill(component: Component, weights: Mapping[str, Tensor], source: Mapping[str, str], origin: str) -> None:
    """Load ``weights``, complete and of the right shapes, into ``component``; ``source`` has the published names.

    Raises:
        CheckpointError: names every weight that is missing, of another shape, or not one of the component's.
    """
    wanted = component.state_dict()
    problems = []
    missing = wanted.keys() - weights.keys()
    if missing:
        problems.append(f"nothing gives {named(missing)}")
    unknown = weights.keys() - wanted.keys()
    if unknown:
        problems.append(f"no place for {named({source[key] for key in unknown})}")
    unfit = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if unfit:
        shapes = [f"{source[k]} {tuple(weights[k].shape)}, expected {tuple(wanted[k].shape)}" for k in unfit]
        problems.append("other shapes: " + "; ".join(shapes))
    if problems:
        raise CheckpointError(f"{origin}: {'. '.join(problems)}")
    component.load_state_dict(dict(weights))


def refuse_left_over(keys: Iterable[str], origin: str, *, allowed: bool) -> tuple[str, ...]:
    """Keys that nothing takes, sorted; CheckpointError names them unless they are ``allowed``."""
    left = tuple(sorted(keys))
    if left and not allowed:
        raise CheckpointError(
            f"{origin}: weights left over ({len(left)}): {named(left)}; leave them out with --allow-unused"
        )
    return left
