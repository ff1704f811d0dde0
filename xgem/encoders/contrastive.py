"""Symmetric InfoNCE over pairs of modalities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    same: Tensor | None = None,
    negatives: Tensor | None = None,
    counted: Tensor | None = None,
    *,
    both: bool = True,
) -> Tensor:
    """Symmetric InfoNCE (XGeM, Eq. 1) of unit vectors ``a``, ``b`` (n, d); row i of each belongs together.

    ``scale`` is the inverse temperature. ``same`` (n, n) bool marks further pairs that are not negatives, such as two
    studies with the same report: they are excluded from the denominators. ``negatives`` (n, k, d): k further negatives
    of each row of ``a``, of that row alone and in its direction alone; ``counted`` (n, k) bool: which are there,
    by default all. ``both``: the mean over both directions; otherwise only that from ``a`` to ``b``.
    """
    logits = scale * a @ b.T  # (n, n), row i against all of b
    if same is not None:
        off_diagonal = same & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        logits = logits.masked_fill(off_diagonal, float("-inf"))
    target = torch.arange(len(a), device=a.device)
    to_b = logits
    if negatives is not None:
        own = scale * (negatives @ a[:, :, None]).squeeze(2)  # (n, k), row i against its own negatives
        if counted is not None:
            own = own.masked_fill(~counted, float("-inf"))
        to_b = torch.cat([logits, own], dim=1)  # (n, n + k)
    one_way = F.cross_entropy(to_b, target)
    return 0.5 * (one_way + F.cross_entropy(logits.T, target)) if both else one_way


class Temperature(nn.Module):
    """The learned inverse temperature, clamped at 100 as in CLIP (Radford et al. 2021)."""

    def __init__(self, initial: float = 1 / 0.07, maximum: float = 100.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([math.log(initial)]))  # (1,): a number alone cannot be sharded
        self.maximum = maximum

    def forward(self) -> Tensor:
        return self.log_scale.exp().clamp(max=self.maximum)[0]
