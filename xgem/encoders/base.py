"""Base class of the prompt encoders."""

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
        """Notes for the user on how ``value`` (one prompt) will be used, such as truncation; usually none.

        ``limit``: maximum number of tokens that the generators use, if lower than the encoder's own.
        """
        del value, limit
        return ()

    def _cut(self, count: int, limit: int | None) -> tuple[str, ...]:
        """A note if a text of ``count`` tokens will be truncated."""
        read = min(limit or self.config.max_length, self.config.max_length)
        return (f"report truncated from {count} to {read} tokens",) if count > read else ()
