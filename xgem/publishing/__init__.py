"""Synthetic data sets: chosen by judges, checked against training images, published as a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgem.publishing.dataset import SyntheticRadiographs as SyntheticRadiographs

__all__ = ["SyntheticRadiographs"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for (PEP 562)."""
    if name != "SyntheticRadiographs":
        raise AttributeError(f"module 'xgem.publishing' has no attribute {name!r}")
    from xgem.publishing.dataset import SyntheticRadiographs

    return SyntheticRadiographs
