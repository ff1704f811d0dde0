"""Unit vectors of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array
from xgem.types import InputError


def unit(vectors: NDArray[Any]) -> Array:
    """(n, d) vectors, each divided by its Euclidean length.

    Raises:
        InputError: another shape, or a vector that has length 0 or is not finite.
    """
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"vectors of shape {values.shape}: expected (n, d)")
    lengths = np.linalg.norm(values, axis=1, keepdims=True)  # (n, 1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputError("an embedding has length 0 or is not finite: its cosine is undefined; check the extractor")
    return values / lengths
