"""What frozen components make of a corpus, once: prompt encodings and target latents, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xgem.data.cache import ArrayCache
from xgem.modalities import get_modality
from xgem.train.corpus import Corpus
from xgem.types import DataError, Encoded
from xgem.utils.hashing import module_hash

logger = logging.getLogger(__name__)

_CHUNK = 64


@dataclass(frozen=True)
class PromptBank:
    """A prompt encoder's answers: ``pooled`` (n, d), ``tokens`` (n, t, c) float16, ``mask`` (n, t) bool.

    ``rows`` lists, for each study of the corpus, the rows that it offers as a prompt.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    rows: list[list[int]]

    def encoded(self, rows: list[int]) -> Encoded:
        """The answers of ``rows``, without the padding that none of them needs."""
        mask = self.mask[rows]
        width = int(mask.sum(dim=1).max())
        return Encoded(self.pooled[rows].float(), self.tokens[rows, :width].float(), mask[:, :width])


@dataclass(frozen=True)
class TargetBank:
    """A codec's latents (n, ...); ``rows`` lists, for each study, the rows that it offers as a target."""

    latents: Tensor
    rows: list[list[int]]


def _items(corpus: Corpus, modality: str, *, as_target: bool) -> tuple[list[list[int]], list[Any]]:
    """Rows by study, and the batches to encode in the order of the rows.

    Images serve both sides. As a prompt, a study's text is any that describes it; as a target, its report.
    """
    studies = range(len(corpus.studies))
    if get_modality(modality).is_image:
        own = [corpus.rows(index, modality) for index in studies]
        flat = [row for found in own for row in found]
        batches: list[Any] = [
            corpus.images.floats(flat[start : start + _CHUNK]) for start in range(0, len(flat), _CHUNK)
        ]
    else:
        texts = [[corpus.reports[i]] if as_target and corpus.reports[i] else [] for i in studies]
        if not as_target:
            texts = [corpus.texts(index) for index in studies]
        own = [list(range(len(found))) for found in texts]
        joined = [text for found in texts for text in found]
        batches = [joined[start : start + _CHUNK] for start in range(0, len(joined), _CHUNK)]
    if not batches:
        raise DataError(f"no {modality} in this split: train on a manifest that has some")
    rows, offset = [], 0
    for found in own:
        rows.append(list(range(offset, offset + len(found))))
        offset += len(found)
    return rows, batches


def _key(modality: str, corpus: Corpus, rows: list[list[int]]) -> dict[str, Any]:
    """Contents and texts, and which study has which rows: an image whose view was corrected keeps its contents."""
    placed = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"modality": modality, "data": corpus.fingerprint(), "rows": placed}


def _on(batch: Any, device: torch.device) -> Any:
    return batch.to(device) if isinstance(batch, Tensor) else batch


def prompt_bank(
    modality: str, encoder: Any, corpus: Corpus, cache: ArrayCache, device: torch.device, limit: int | None = None
) -> PromptBank:
    """Encode every prompt of ``modality``, or take it from the cache, keyed by the data's and the encoder's hash.

    Texts that the encoder cuts, or a generator that reads ``limit`` tokens, are counted in a warning.
    """
    rows, batches = _items(corpus, modality, as_target=False)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        texts = [text for batch in batches if isinstance(batch, list) for text in batch]
        cut = sum(bool(encoder.notes(text, limit)) for text in texts)
        if cut:
            logger.warning("%d of %d texts have more tokens than are read: their ends are cut off", cut, len(texts))
        encoder.to(device)
        parts = [encoder.encode(_on(batch, device)) for batch in batches]
        width = max(part.tokens.shape[1] for part in parts)
        return {
            "pooled": torch.cat([part.pooled.cpu() for part in parts]),
            "tokens": torch.cat([_widened(part.tokens.cpu().half(), width) for part in parts]),
            "mask": torch.cat([_widened(part.mask.cpu(), width) for part in parts]),
        }

    key = _key(modality, corpus, rows) | {"encoder": module_hash(encoder)}
    return PromptBank(**cache.get_or_make("prompts", key, make), rows=rows)


def target_bank(modality: str, codec: Any, corpus: Corpus, cache: ArrayCache, device: torch.device) -> TargetBank:
    """Encode every target of ``modality``, or take it from the cache, keyed by the data's and the codec's hash."""
    rows, batches = _items(corpus, modality, as_target=True)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        codec.to(device)
        return {"latents": torch.cat([codec.encode(_on(batch, device)).cpu() for batch in batches])}

    statistics: Mapping[str, Any] = codec.config.model_dump(mode="json")
    key = _key(modality, corpus, rows) | {"codec": module_hash(codec), "config": statistics}
    return TargetBank(cache.get_or_make("latents", key, make)["latents"], rows)


def _widened(x: Tensor, width: int) -> Tensor:
    """Zeros behind (b, n, ...) up to (b, width, ...)."""
    return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], dim=1)
