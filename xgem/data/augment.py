"""Augmentations of training images, without mirroring: the heart is on the patient's left."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _uniform(*shape: int) -> Tensor:
    """Uniform numbers in [-1, 1) of the given shape, from the global random state."""
    return torch.rand(*shape) * 2 - 1


def affine_grid(x: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """The sampling grid (b, s, s, 2) that rotates, scales and shifts images (b, 1, s, s).

    Args:
        angle, zoom: (b,), in radians and as a factor.
        shift: (b, 2), as a fraction of half the image's side.
    """
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    # Affine matrices (b, 2, 3)
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return F.affine_grid(theta.to(x), list(x.shape), align_corners=False)


JITTER = 6
"""How many random numbers :func:`jitter` takes for an image."""


def jitter(
    x: Tensor, drawn: Tensor, *, shift: float = 0.08, zoom: float = 0.1, degrees: float = 5.0, contrast: float = 0.2
) -> Tensor:
    """Shift, scale and rotate images (b, 1, s, s) in [-1, 1] and change their exposure.

    Args:
        drawn: (b, 6), uniform in [0, 1).
        shift, zoom, degrees, contrast: the greatest change in either direction.
    """
    angle, size, right, down, gain, bias = (2 * drawn - 1).unbind(dim=1)  # (b,) each
    moves = torch.stack([right, down], dim=1) * 2 * shift  # (b, 2)
    grid = affine_grid(x, angle * degrees * torch.pi / 180, 1 + size * zoom, moves)
    moved = F.grid_sample(x + 1, grid, align_corners=False) - 1  # black (-1) outside the image
    gain, bias = (value.to(x)[:, None, None, None] * contrast for value in (gain, bias))  # (b, 1, 1, 1)
    return (moved * (1 + gain) + bias).clamp(-1, 1)


def to_input(images: Tensor, size: int) -> Tensor:
    """(n, s, s) in 0 to 255 -> (n, 1, t, t) in [-1, 1], t at most ``size``."""
    x = images.unsqueeze(1).float() / 127.5 - 1
    return x if x.shape[-1] <= size else F.interpolate(x, size=(size, size), mode="area")


def standardised(x: Tensor) -> Tensor:
    """(b, 1, s, s) with each image standardised to mean 0 and variance 1, so that exposure does not matter."""
    mean, std = x.mean(dim=(2, 3), keepdim=True), x.std(dim=(2, 3), keepdim=True)
    return (x - mean) / (std + 1e-3)


def small_moves(x: Tensor) -> Tensor:
    """A sampling grid (b, s, s, 2) of small random rotations, shifts and zooms for (b, 1, s, s)."""
    b = len(x)
    return affine_grid(x, _uniform(b) * 0.12, 1 + _uniform(b) * 0.08, _uniform(b, 2) * 0.08)


def small_exposures(x: Tensor) -> Tensor:
    """(b, 1, s, s) in [-1, 1] with small random changes of gamma."""
    gamma = torch.exp(_uniform(len(x), 1, 1, 1) * 0.25).to(x.device)
    return ((x + 1) / 2).clamp(1e-4, 1).pow(gamma) * 2 - 1


def augmented(x: Tensor) -> Tensor:
    """(b, 1, s, s) in [-1, 1] with small random shifts, rotations, zooms and gamma, for judges and downstream tasks."""
    return small_exposures(F.grid_sample(x, small_moves(x), padding_mode="border", align_corners=False))


def augmented_with_masks(x: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`augmented`, with masks (b, k, s, s) of 0 and 1 moved like their images."""
    grid = small_moves(x)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return small_exposures(moved), F.grid_sample(masks, grid, align_corners=False).round()
