"""Published weight files: read without executing code from them, and matched key by key with a component."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from xgem.checkpoints.component import Component
from xgem.types import CheckpointError
from xgem.utils.files import one_line

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Converted:
    """Preset and components that a conversion wrote, and the published names of the weights that it skipped."""

    preset: str
    components: tuple[str, ...]
    unused: tuple[str, ...]


def read_weights_file(path: Path) -> dict[str, Any]:
    """Contents of a ``.pt`` or ``.pth`` file, tensors on the CPU; CheckpointError if it holds more than plain data."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        # Tensors of files in today's format stay on the disk until they are used
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # damage raises anything, and torch's own message advises unsafe loading
        reason = one_line(error) if isinstance(error, OSError) else "it is damaged, or holds more than plain data"
        raise CheckpointError(f"{path}: {reason}: expected a state dict written by torch.save") from None
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}, expected a state dict")
    return dict(contents)


def tensors(state: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    """The state dict without parallel training's prefix ``module.``; CheckpointError if a value is not a tensor."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{origin}: {key!r} is a {type(value).__name__}, expected a tensor")
    return {key.removeprefix("module."): value for key, value in state.items()}


def named(keys: Iterable[str]) -> str:
    """All keys in one line; keys that differ only in a number are grouped, ``blocks.{0-27}.attn.qkv.weight``."""
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
    """Load ``weights`` into ``component``; all must be present and of the right shape. ``source``: published names.

    Raises:
        CheckpointError: lists every weight that is missing, unknown to the component, or of a different shape.
    """
    expected = component.state_dict()
    problems = []
    missing = expected.keys() - weights.keys()
    if missing:
        problems.append(f"missing {named(missing)}")
    unknown = weights.keys() - expected.keys()
    if unknown:
        problems.append(f"unexpected {named({source[key] for key in unknown})}")
    mismatched = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    if mismatched:
        shapes = [f"{source[k]} {tuple(weights[k].shape)}, expected {tuple(expected[k].shape)}" for k in mismatched]
        problems.append("shape mismatch: " + "; ".join(shapes))
    if problems:
        raise CheckpointError(f"{origin}: {'. '.join(problems)}")
    component.load_state_dict(dict(weights))


def refuse_unused(keys: Iterable[str], origin: str, *, allowed: bool) -> tuple[str, ...]:
    """The unused ``keys``, sorted; CheckpointError lists them unless they are ``allowed``."""
    left = tuple(sorted(keys))
    if left and not allowed:
        raise CheckpointError(
            f"{origin}: weights without a counterpart ({len(left)}): {named(left)}; skip them with --allow-unused"
        )
    return left
