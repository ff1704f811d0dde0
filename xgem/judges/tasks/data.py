"""Images with what a network is to say of them, on its grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet, Images
from xgem.data.study import Study
from xgem.types import InputError
from xgem.utils.hashing import array_hash

Targets = dict[str, NDArray[Any]]
"""By name; the first axis counts images."""


@dataclass(frozen=True)
class Data:
    """``images`` (n, s, s) uint8 and their targets."""

    images: Images
    targets: Targets

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def hash(self) -> str:
        """Of all pixels and targets."""
        digest = hashlib.sha256(array_hash(self.images).encode())
        for name, target in sorted(self.targets.items()):
            digest.update(f"{name}:{array_hash(target)}".encode())
        return digest.hexdigest()


class ImageStore:
    """Images by file at one size, each read once however many training sets hold it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._known: dict[Path, NDArray[np.uint8]] = {}

    def add(self, items: EvalSet) -> None:
        """Read those that are not known yet.

        Raises:
            ImageError, DataError: as :meth:`xgem.data.sets.EvalSet.batches`.
        """
        new = [row for row, item in enumerate(items.items) if item.file is not None and item.file not in self._known]
        if new:
            for row, image in zip(new, items.subset(new).images(self.size), strict=True):
                file = items.items[row].file
                assert file is not None
                self._known[file] = image

    def of(self, items: EvalSet) -> Images:
        """(n, size, size) of a set of known images."""
        return np.stack([self._known[item.file] for item in items.items if item.file is not None])


def studies_of(manifests: Sequence[str | Path]) -> dict[str, Study]:
    """The studies of manifests by id: where masks and boxes of items are found.

    Raises:
        ManifestError: a manifest is not valid.
        InputError: two studies have one id.
    """
    found: dict[str, Study] = {}
    for path in manifests:
        for study in Manifest.read(path).studies():
            if study.id in found and study != found[study.id]:
                raise InputError(f"{path}: study {study.id!r} stands in another manifest too; keep one of them")
            found[study.id] = study
    return found


def annotated(items: EvalSet, studies: Mapping[str, Study]) -> list[Study | None]:
    """Each item's study: its own, or for a generation the one whose annotation it was asked with (``pair``)."""
    return [studies.get(item.pair or item.id) for item in items.items]
