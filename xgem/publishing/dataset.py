"""A published synthetic set as torchvision's data sets are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import VisionDataset

from xgem.data.loading import load_dataset
from xgem.data.transforms import read_grey
from xgem.labels.vocabulary import CHEXPERT_CLASSES


class SyntheticRadiographs(VisionDataset):
    """Images and labels of a folder that ``xgem data publish`` wrote; of a manifest or a cohort as well.

    An item is a PIL image (grey) and the labels, (14,) float32 of 1, 0 and NaN (unknown) in the order of ``classes``;
    ``transform``, ``target_transform`` and ``transforms`` are torchvision's. ``targets``: all labels, (n, 14). Do not
    mirror images: the heart is on the left.

    Args:
        root: the folder.
        split, view: as for :func:`xgem.data.load_dataset`, with its errors.
    """

    classes: tuple[str, ...] = CHEXPERT_CLASSES

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        view: str | None = "frontal",
        transforms: Callable[..., Any] | None = None,
        transform: Callable[..., Any] | None = None,
        target_transform: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(root, transforms, transform, target_transform)
        found = load_dataset(root, split, view=view)
        files = (found.manifest.file(row) for row in found.rows)
        self.samples = [(file, row) for file, row in zip(files, found.rows, strict=True) if file is not None]
        self.targets: Tensor = found.labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Image and labels.

        Raises:
            ImageError: the image cannot be read; it is never replaced.
        """
        file, row = self.samples[index]
        image: Any = Image.fromarray(read_grey(file, row.reading))
        target: Any = torch.clone(self.targets[index])
        return (image, target) if self.transforms is None else self.transforms(image, target)
