"""Batches of a stage, as the loop asks for them."""

from __future__ import annotations

from typing import Any

from xgem.train.share import Share
from xgem.train.stage import Stage


def batch_of(stage: Stage, step: int, first: int = 0, size: int | None = None) -> dict[str, Any]:
    """The samples ``first`` to ``first + size`` of batch ``step``; all of it by default."""
    batch = stage.config.batch_size
    return stage.batch(Share(stage.seed, stage.name, step, first, batch - first if size is None else size, batch))
