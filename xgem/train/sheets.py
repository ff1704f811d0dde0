"""Contact sheets for the training logs."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from PIL import Image
from torch import Tensor


def contact_sheet(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of images, each (n, 1, s, s) in [-1, 1], side by side as one grey image."""
    grid = rearrange([row.float().cpu() for row in rows], "r n 1 h w -> (r h) (n w)")
    return Image.fromarray(((grid.clamp(-1, 1) + 1) * 127.5).round().byte().numpy())
