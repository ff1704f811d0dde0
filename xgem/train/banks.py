"""Outputs of frozen components for a whole corpus, computed once and cached: prompt encodings, target latents."""

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
from xgem.utils.devices import moved
from xgem.utils.hashing import module_hash
from xgem.utils.progress import track

logger = logging.getLogger(__name__)

_CHUNK = 64


@dataclass(frozen=True)
class PromptBank:
    """Outputs of a prompt encoder: ``pooled`` (n, d), ``tokens`` (n, t, c) float16, ``mask`` (n, t) bool.

    ``rows``: for each study of the corpus, the rows that can serve as its prompt.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    rows: list[list[int]]

    def encoded(self, rows: list[int], device: torch.device | None = None) -> Encoded:
        """Encodings of ``rows``, b in number, without common padding: (b, d), (b, n, c), (b, n); on ``device``."""
        mask = self.mask[rows]  # (b, t)
        width = int(mask.sum(dim=1).max())
        pooled, tokens = (moved(part, device).float() for part in (self.pooled[rows], self.tokens[rows, :width]))
        return Encoded(pooled, tokens, moved(mask[:, :width].contiguous(), device))


@dataclass(frozen=True)
class TargetBank:
    """Latents (n, ...) of a codec; ``rows``: for each study, the rows that can serve as its target."""

    latents: Tensor
    rows: list[list[int]]


def _items(corpus: Corpus, modality: str, *, as_target: bool) -> tuple[list[list[int]], list[Any]]:
    """Rows by study, and the batches to encode in the order of the rows.

    Images are the same as prompt and as target. Prompt texts are all that describe a study; the target is its report,
    if it has all sections: from others, a generator would learn to leave one out.
    """
    studies = range(len(corpus.studies))
    if get_modality(modality).is_image:
        items = [corpus.rows(index, modality) for index in studies]
        flat = [row for study_rows in items for row in study_rows]
        batches: list[Any] = [
            corpus.images.floats(flat[start : start + _CHUNK]) for start in range(0, len(flat), _CHUNK)
        ]
    else:
        texts = [[corpus.reports[i]] if as_target and corpus.complete(i) else [] for i in studies]
        if not as_target:
            texts = [corpus.texts(index) for index in studies]
        items = [list(range(len(study_texts))) for study_texts in texts]
        joined = [text for study_texts in texts for text in study_texts]
        batches = [joined[start : start + _CHUNK] for start in range(0, len(joined), _CHUNK)]
    if not batches:
        raise DataError(f"this split has no {modality}: train on a manifest with some")
    rows, offset = [], 0
    for study_items in items:
        rows.append(list(range(offset, offset + len(study_items))))
        offset += len(study_items)
    return rows, batches


def _key(modality: str, corpus: Corpus, rows: list[list[int]]) -> dict[str, Any]:
    """Cache key: hash of the data, and of the rows by study, which change if the view of an image is corrected."""
    placed = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"modality": modality, "data": corpus.fingerprint(), "rows": placed}


def _on(batch: Any, device: torch.device) -> Any:
    return batch.to(device) if isinstance(batch, Tensor) else batch


def prompt_bank(
    modality: str, encoder: Any, corpus: Corpus, cache: ArrayCache, device: torch.device, limit: int | None = None
) -> PromptBank:
    """Encode every prompt of ``modality``, or load it from the cache, keyed by the hashes of data and encoder.

    A warning gives the number of texts truncated by the encoder, or by a generator that reads ``limit`` tokens.
    """
    rows, batches = _items(corpus, modality, as_target=False)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        texts = [text for batch in batches if isinstance(batch, list) for text in batch]
        truncated = sum(bool(encoder.notes(text, limit)) for text in texts)
        if truncated:
            logger.warning("%d of %d texts are too long and were truncated", truncated, len(texts))
        encoder.to(device)
        parts = [encoder.encode(_on(batch, device)) for batch in track(batches, f"encodings of {modality}")]
        width = max(part.tokens.shape[1] for part in parts)
        return {
            "pooled": torch.cat([part.pooled.cpu() for part in parts]),
            "tokens": torch.cat([_widened(part.tokens.cpu().half(), width) for part in parts]),
            "mask": torch.cat([_widened(part.mask.cpu(), width) for part in parts]),
        }

    key = _key(modality, corpus, rows) | {"encoder": module_hash(encoder)}
    return PromptBank(**cache.get_or_make("prompts", key, make), rows=rows)


def target_bank(modality: str, codec: Any, corpus: Corpus, cache: ArrayCache, device: torch.device) -> TargetBank:
    """Encode every target of ``modality``, or load it from the cache, keyed by the hashes of data and codec."""
    rows, batches = _items(corpus, modality, as_target=True)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        codec.to(device)
        shown = track(batches, f"latents of {modality}")
        return {"latents": torch.cat([codec.encode(_on(batch, device)).cpu() for batch in shown])}

    statistics: Mapping[str, Any] = codec.config.model_dump(mode="json")
    key = _key(modality, corpus, rows) | {"codec": module_hash(codec), "config": statistics}
    return TargetBank(cache.get_or_make("latents", key, make)["latents"], rows)


def _widened(x: Tensor, width: int) -> Tensor:
    """Pad (b, n, ...) with zeros to (b, width, ...)."""
    return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], dim=1)
