"""What generators are trained on: encodings and latents by study, in memory or in shards on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xgem.data.cache import ArrayCache
from xgem.train.banks import Rows, prompt_bank, target_bank
from xgem.train.corpus import Corpus, studies_by_class, studies_by_field
from xgem.types import Encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Studies = Sequence[int] | NDArray[np.int32]


class Targets(Protocol):
    """Latents of a codec; ``rows``: for each study, the rows that can serve as its target."""

    @property
    def rows(self) -> Rows: ...

    def take(self, rows: Sequence[int]) -> Tensor:
        """The latents of ``rows``, b in number: (b, ...)."""
        ...

    def mean(self) -> Tensor:
        """The mean of all latents, (...) float32."""
        ...


class Prompts(Protocol):
    """Outputs of a prompt encoder; ``rows``: for each study, the rows that can serve as its prompt."""

    @property
    def rows(self) -> Rows: ...

    def encoded(self, rows: Sequence[int], device: torch.device | None = None) -> Encoded:
        """Encodings of ``rows``, b in number: (b, d), (b, n, c), (b, n); on ``device``."""
        ...


class Source(Protocol):
    """The studies of one split."""

    def targets(self, modality: str, codec: Any) -> Targets:
        """Those of an output; DataError if there are none."""
        ...

    def prompts(self, modality: str, encoder: Any, limit: int | None = None) -> Prompts:
        """Those of an input, of which generators read ``limit`` tokens; DataError if there are none."""
        ...

    def by_field(self, usable: NDArray[np.int32], share: float) -> Sequence[Studies]:
        """As :func:`xgem.train.corpus.studies_by_field`."""
        ...

    def by_class(self, usable: NDArray[np.int32]) -> Sequence[Studies]:
        """As :func:`xgem.train.corpus.studies_by_class`."""
        ...

    def fingerprint(self) -> str:
        """What changes with any image or text."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A corpus, encoded once as a whole and cached."""

    corpus: Corpus
    cache: ArrayCache
    device: torch.device

    def targets(self, modality: str, codec: Any) -> Targets:
        return target_bank(modality, codec, self.corpus, self.cache, self.device)

    def prompts(self, modality: str, encoder: Any, limit: int | None = None) -> Prompts:
        return prompt_bank(modality, encoder, self.corpus, self.cache, self.device, limit)

    def by_field(self, usable: NDArray[np.int32], share: float) -> Sequence[Studies]:
        return studies_by_field(self.corpus, usable, share)

    def by_class(self, usable: NDArray[np.int32]) -> Sequence[Studies]:
        return studies_by_class(self.corpus, usable)

    def fingerprint(self) -> str:
        return self.corpus.fingerprint()


def studies_with(*banks: Targets | Prompts) -> NDArray[np.int32]:
    """The studies that have rows in all of the banks, in their order."""
    return np.flatnonzero(np.logical_and.reduce([bank.rows.present for bank in banks])).astype(np.int32)
