"""What trainings of judges share: the learning rate's schedule and augmentation."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from xgem.data.augment import small_exposures, small_moves


def one_cycle(progress: float) -> float:
    """One cycle: linear warm-up for a tenth, then a cosine to zero."""
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + float(np.cos(np.pi * (progress - 0.1) / 0.9)))


def _augment(x: Tensor) -> Tensor:
    grid = small_moves(x)
    return small_exposures(F.grid_sample(x, grid, padding_mode="border", align_corners=False))
