"""Outputs of frozen components for a whole corpus, computed once and cached: prompt encodings, target latents."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from xgem.data.cache import ArrayCache
from xgem.modalities import get_modality
from xgem.train.corpus import Corpus
from xgem.types import DataError, Encoded
from xgem.utils.devices import moved
from xgem.utils.hashing import module_hash
from xgem.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_CHUNK = 64


class Rows(Sequence[range]):
    """For each study, the rows of a bank that are of it: consecutive ones, maybe none; 4 bytes a study."""

    def __init__(self, ends: NDArray[np.uint32]) -> None:
        self.ends = ends  # (studies + 1,): where the rows of a study end and those of the next one start

    @classmethod
    def counted(cls, counts: Iterable[int]) -> Rows:
        """By the number of rows of each study."""
        ends = np.cumsum([0, *counts], dtype=np.int64)
        if ends[-1] >= 2**32:
            raise DataError(f"{ends[-1]} rows of one modality: expected fewer than {2**32}")
        return cls(ends.astype(np.uint32))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> range: ...
    @overload
    def __getitem__(self, index: slice) -> list[range]: ...
    def __getitem__(self, index: int | slice) -> range | list[range]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return range(int(self.ends[place]), int(self.ends[place + 1]))

    @property
    def present(self) -> NDArray[np.bool_]:
        """(studies,) whether a study has any."""
        return self.ends[1:] > self.ends[:-1]


@dataclass(frozen=True)
class PromptBank:
    """Outputs of a prompt encoder: ``pooled`` (n, d), ``tokens`` (n, t, c) float16, ``mask`` (n, t) bool.

    ``rows``: for each study of the corpus, the rows that can serve as its prompt.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    rows: Rows

    def encoded(self, rows: Sequence[int], device: torch.device | None = None) -> Encoded:
        """Encodings of ``rows``, b in number, without common padding: (b, d), (b, n, c), (b, n); on ``device``."""
        rows = list(rows)
        mask = self.mask[rows]  # (b, t)
        width = int(mask.sum(dim=1).max())
        pooled, tokens = (moved(part, device).float() for part in (self.pooled[rows], self.tokens[rows, :width]))
        return Encoded(pooled, tokens, moved(mask[:, :width].contiguous(), device))


@dataclass(frozen=True)
class TargetBank:
    """Latents (n, ...) of a codec; ``rows``: for each study, the rows that can serve as its target."""

    latents: Tensor
    rows: Rows

    def take(self, rows: Sequence[int]) -> Tensor:
        """The latents of ``rows``, b in number: (b, ...)."""
        return self.latents[list(rows)]

    def mean(self) -> Tensor:
        """The mean of all latents, (...) float32."""
        return self.latents.float().mean(dim=0)


def items(corpus: Corpus, modality: str, *, as_target: bool) -> tuple[Rows, list[Any]]:
    """Rows by study, and what is encoded as each row: rows of the corpus's images, or texts.

    Images are the same as prompt and as target. Prompt texts are all that describe a study; the target is its report,
    if it has all sections: from others, a generator would learn to leave one out.
    """
    studies = range(len(corpus.studies))
    values: list[list[Any]]
    if get_modality(modality).is_image:
        values = [corpus.rows(index, modality) for index in studies]
    elif as_target:
        values = [[corpus.report(i)] if corpus.complete(i) else [] for i in studies]
    else:
        values = [corpus.texts(index) for index in studies]
    return Rows.counted(map(len, values)), [value for of_study in values for value in of_study]


class Batches(Sequence[Any]):
    """What ``items`` lists in the batches that components take, each made when it is asked for."""

    def __init__(self, corpus: Corpus, modality: str, values: Sequence[Any], device: torch.device) -> None:
        self.corpus, self.values, self.device = corpus, values, device
        self.is_image = get_modality(modality).is_image

    def __len__(self) -> int:
        return (len(self.values) + _CHUNK - 1) // _CHUNK

    def __getitem__(self, index: Any) -> Any:
        """Images (b, 1, s, s) on the device, or b texts."""
        if index >= len(self):
            raise IndexError(index)
        values = self.values[index * _CHUNK : (index + 1) * _CHUNK]
        return self.corpus.images.floats(values).to(self.device) if self.is_image else values


def _some(corpus: Corpus, modality: str, *, as_target: bool) -> tuple[Rows, list[Any]]:
    rows, values = items(corpus, modality, as_target=as_target)
    if not values:
        raise DataError(f"this split has no {modality}: train on a manifest with some")
    return rows, values


def truncated(encoder: Any, values: Sequence[Any], limit: int | None) -> int:
    """How many of the texts are truncated by the encoder, or by a generator that reads ``limit`` tokens."""
    return sum(bool(encoder.notes(value, limit)) for value in values if isinstance(value, str))


def _key(modality: str, corpus: Corpus, rows: Rows) -> dict[str, Any]:
    """Cache key: hash of the data, and of the rows by study, which change if the view of an image is corrected."""
    placed = hashlib.sha256(json.dumps([list(of_study) for of_study in rows]).encode()).hexdigest()
    return {"modality": modality, "data": corpus.fingerprint(), "rows": placed}


def prompt_bank(
    modality: str, encoder: Any, corpus: Corpus, cache: ArrayCache, device: torch.device, limit: int | None = None
) -> PromptBank:
    """Encode every prompt of ``modality``, or load it from the cache, keyed by the hashes of data and encoder.

    A warning gives the number of texts truncated by the encoder, or by a generator that reads ``limit`` tokens.
    """
    rows, values = _some(corpus, modality, as_target=False)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        if cut := truncated(encoder, values, limit):
            logger.warning("%d of %d texts are too long and were truncated", cut, len(values))
        encoder.to(device)
        batches = Batches(corpus, modality, values, device)
        parts = [encoder.encode(batch) for batch in track(batches, f"encodings of {modality}")]
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
    rows, values = _some(corpus, modality, as_target=True)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        codec.to(device)
        shown = track(Batches(corpus, modality, values, device), f"latents of {modality}")
        return {"latents": torch.cat([codec.encode(batch).cpu() for batch in shown])}

    statistics: Mapping[str, Any] = codec.config.model_dump(mode="json")
    key = _key(modality, corpus, rows) | {"codec": module_hash(codec), "config": statistics}
    return TargetBank(cache.get_or_make("latents", key, make)["latents"], rows)


def _widened(x: Tensor, width: int) -> Tensor:
    """Pad (b, n, ...) with zeros to (b, width, ...)."""
    return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], dim=1)
