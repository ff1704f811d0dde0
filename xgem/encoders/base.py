"""What every prompt encoder offers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from xgem.checkpoints.component import Component
from xgem.types import Encoded


class PromptEncoder(Component):
    """Maps a batch of one modality to the shared space (XGeM 2.1)."""

    @abstractmethod
    def encode(self, batch: Any) -> Encoded:
        """Encode a batch: (b, 1, s, s) images in [-1, 1], or a list of b texts."""

    def notes(self, value: Any, limit: int | None = None) -> tuple[str, ...]:
        """What a user should know of how ``value`` (one prompt) will be used, such as truncation; usually nothing.

        ``limit``: how many of its tokens the generators use, where that may be fewer than the encoder reads.
        """
        del value, limit
        return ()

    def _cut(self, count: int, limit: int | None) -> tuple[str, ...]:
        """The note that a text of ``count`` tokens is longer than is read of it."""
        read = min(limit or self.config.max_length, self.config.max_length)
        return (f"report truncated from {count} to {read} tokens",) if count > read else ()
