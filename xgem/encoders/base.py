"""Base class of the prompt encoders."""

from __future__ import annotations

import re
import unicodedata
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

    def unfamiliar(self, value: Any) -> tuple[str, ...]:
        """A note if the user's own text is in another script than Latin, or has no word that the encoder knows."""
        del value
        return ()

    @staticmethod
    def _unfamiliar(text: str, tokenizer: Any) -> tuple[str, ...]:
        """``unfamiliar`` of a text; a word is known if the tokenizer has it as one token."""
        words = re.findall(r"[^\W\d_]{3,}", text)
        letters = [character for character in text if character.isalpha()]
        latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
        if 2 * latin < len(letters):
            return ("most of the text is not in Latin script: the model was trained on reports in English",)
        known = [word for word in words if len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1]
        if words and not known:
            return ("no word of the text is in the model's vocabulary: it was trained on radiology reports in English",)
        return ()

    def _cut(self, count: int, limit: int | None) -> tuple[str, ...]:
        """A note if a text of ``count`` tokens will be truncated."""
        read = min(limit or self.config.max_length, self.config.max_length)
        return (f"report truncated from {count} to {read} tokens",) if count > read else ()
