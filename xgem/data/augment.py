"""Augmentations of training images. Never a mirror image: the heart is on the patient's left."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def jitter(x: Tensor, *, shift: float = 0.08, zoom: float = 0.1, degrees: float = 5.0, contrast: float = 0.2) -> Tensor:
    """Randomly move, scale, turn and re-expose images (b, 1, s, s) in [-1, 1]; uses the global random state."""
    b = len(x)
    angle = (torch.rand(b) * 2 - 1) * degrees * torch.pi / 180
    scale = 1 + (torch.rand(b) * 2 - 1) * zoom
    offset = (torch.rand(b, 2) * 2 - 1) * 2 * shift
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, offset[:, 0]], 1), torch.stack([sin, cos, offset[:, 1]], 1)], 1)
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    moved = F.grid_sample(x + 1, grid, align_corners=False) - 1  # outside the image is black, -1
    gain = 1 + (torch.rand(b, 1, 1, 1) * 2 - 1) * contrast
    bias = (torch.rand(b, 1, 1, 1) * 2 - 1) * contrast
    return (moved * gain.to(x) + bias.to(x)).clamp(-1, 1)


def to_input(images: Tensor, size: int) -> Tensor:
    """(n, s, s) of 0 to 255 -> (n, 1, t, t) in [-1, 1], t at most ``size``."""
    x = images.unsqueeze(1).float() / 127.5 - 1
    return x if x.shape[-1] <= size else F.interpolate(x, size=(size, size), mode="area")


def standardised(x: Tensor) -> Tensor:
    """(b, 1, s, s), each image to mean 0 and variance 1: exposure is neither a finding nor a shape."""
    mean, std = x.mean(dim=(2, 3), keepdim=True), x.std(dim=(2, 3), keepdim=True)
    return (x - mean) / (std + 1e-3)


def small_moves(x: Tensor) -> Tensor:
    """A sampling grid of small rotations, shifts and zooms for (b, 1, s, s).

    Never a mirror image: the heart is on the patient's left.
    """
    b = len(x)
    angle = (torch.rand(b) * 2 - 1) * 0.12
    zoom = 1 + (torch.rand(b) * 2 - 1) * 0.08
    shift = (torch.rand(b, 2) * 2 - 1) * 0.08
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)


def small_exposures(x: Tensor) -> Tensor:
    """(b, 1, s, s) in [-1, 1] with small changes of contrast (a random gamma)."""
    gamma = torch.exp((torch.rand(len(x), 1, 1, 1) * 2 - 1) * 0.25).to(x.device)
    return ((x + 1) / 2).clamp(1e-4, 1).pow(gamma) * 2 - 1
