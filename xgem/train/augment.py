"""Augmentation of radiographs for the prompt encoders. Never mirrored: the heart is on the patient's left."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def jitter(x: Tensor, *, shift: float = 0.08, zoom: float = 0.1, degrees: float = 5.0, contrast: float = 0.2) -> Tensor:
    """Randomly move, scale, turn and re-expose pictures (b, 1, s, s) in [-1, 1]; uses the global random state."""
    b = len(x)
    angle = (torch.rand(b) * 2 - 1) * degrees * torch.pi / 180
    scale = 1 + (torch.rand(b) * 2 - 1) * zoom
    offset = (torch.rand(b, 2) * 2 - 1) * 2 * shift
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, offset[:, 0]], 1), torch.stack([sin, cos, offset[:, 1]], 1)], 1)
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    moved = F.grid_sample(x + 1, grid, align_corners=False) - 1  # outside the picture is black, -1
    gain = 1 + (torch.rand(b, 1, 1, 1) * 2 - 1) * contrast
    bias = (torch.rand(b, 1, 1, 1) * 2 - 1) * contrast
    return (moved * gain.to(x) + bias.to(x)).clamp(-1, 1)
