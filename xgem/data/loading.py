"""A manifest or a finished cohort as a PyTorch data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xgem.data.manifest import Manifest
from xgem.data.rows import SPLITS, Row
from xgem.data.transforms import evened, pad_square, read_with, resize
from xgem.labels.views import VIEWS
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels
from xgem.types import InputError


class Radiographs(Dataset[dict[str, Any]]):
    """Images with their labels and texts; made by :func:`load_dataset`.

    An item is a mapping that PyTorch's, MONAI's and torchxrayvision's loaders collate: ``image`` (1, size, size)
    float32 in [0, 1]; ``labels`` (14,) float32 of 1, 0 and NaN (unknown), in the order of ``classes``; ``text`` (the
    report's sections, maybe empty); ``age`` in years, NaN if unknown; ``sex`` F, M or empty; ``id``, ``subject`` and
    ``view``.
    """

    classes: tuple[str, ...] = CHEXPERT_CLASSES

    def __init__(
        self,
        manifest: Manifest,
        rows: Sequence[Row],
        size: int,
        sections: Sequence[str],
        transform: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.manifest, self.rows, self.size = manifest, tuple(rows), size
        self.sections, self.transform = tuple(sections), transform

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """Labels of all items, (n, 14) float32, without reading an image."""
        return torch.stack([self._labels(row) for row in self.rows])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item ``index``.

        Raises:
            ImageError: its image cannot be read; it is never replaced.
        """
        row = self.rows[index]
        file = self.manifest.file(row)
        assert file is not None
        read = read_with(file, reading=row.reading)
        squared = pad_square(evened(read.pixels, read.aspect, name=read.origin))
        pixels = resize(squared, (self.size, self.size), "area")
        image = torch.from_numpy(pixels.copy()).unsqueeze(0)
        return {
            "image": image if self.transform is None else self.transform(image),
            "labels": self._labels(row),
            "text": " ".join(text for name in self.sections if (text := str(getattr(row, name)))),
            "age": math.nan if row.age is None else row.age,
            "sex": row.sex or "",
            "id": row.study,
            "subject": row.subject,
            "view": row.view or "",
        }

    def _labels(self, row: Row) -> Tensor:
        known = annotated_labels(row.labels, row.source)
        return torch.tensor([known.get(name, math.nan) for name in self.classes], dtype=torch.float32)


def load_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    view: str | None = "frontal",
    size: int = 224,
    sections: Sequence[str] = ("findings", "impression"),
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Radiographs:
    """A manifest, or the folder of a finished cohort, as a PyTorch ``Dataset`` of images.

    Args:
        path: ``.parquet`` or ``.jsonl``, or a folder with ``manifest.parquet``.
        split: ``train``, ``val`` or ``test``; None takes all.
        view: one of :data:`xgem.labels.views.VIEWS`; None takes every image.
        size: side of the images in pixels; they are padded to a square first.
        sections: of the report, joined to ``text``.
        transform: of the image tensor, (1, size, size) in [0, 1]. Do not mirror it: the heart is on the left.

    Raises:
        InputError: an argument that cannot be, or no image left. ManifestError: no valid manifest.
    """
    place = Path(path)
    if split is not None and split not in SPLITS:
        raise InputError(f"split {split!r}: expected one of {', '.join(SPLITS)}, or None for all")
    if view is not None and view not in VIEWS:
        raise InputError(f"view {view!r}: expected one of {', '.join(VIEWS)}, or None for all")
    strangers = [name for name in sections if name not in ("findings", "impression")]
    if size < 1 or strangers:
        raise InputError(
            f"size {size}, sections {', '.join(sections)}: expected a size from 1, findings and impression"
        )
    manifest = Manifest.read(place / "manifest.parquet" if place.is_dir() else place)
    rows = [
        row
        for row in manifest.rows
        if row.file is not None and split in (None, row.split) and (view is None or row.view == view)
    ]
    if not rows:
        asked = ", ".join(filter(None, (split, view)))
        raise InputError(f"{place}: none of its {len(manifest.rows)} rows is an image{f' of {asked}' if asked else ''}")
    return Radiographs(manifest, rows, size, sections, transform)
