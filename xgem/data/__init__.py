"""Reading, preparing and caching studies: files and data sets in, arrays and text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgem.data.loading import load_dataset as load_dataset

__all__ = ["load_dataset"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for (PEP 562)."""
    if name != "load_dataset":
        raise AttributeError(f"module 'xgem.data' has no attribute {name!r}")
    from xgem.data.loading import load_dataset

    return load_dataset
