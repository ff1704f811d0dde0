"""Do the image and the report generated for one request agree?

Source: XGeM 4.3: the cosine similarity of both in the prompt encoders' space (Eq. 5, Table 7), and the Hamming distance
between the label sets of image and report (Fig. 5). Both are inner products of one vector per side, so the mean over
all pairs of different studies, the shuffled control, needs no matrix of n x n pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array, Bootstrap, Comparison
from xgem.metrics.vectors import unit
from xgem.types import InputError

Images = NDArray[np.uint8]


def cosines(first: Array, second: Array) -> Array:
    """(n,) cosine similarities of (n, d) vectors, row by row (XGeM, Eq. 5).

    Raises:
        InputError: the shapes differ, or a vector has length 0.
    """
    _same_shape(first, second)
    return (unit(first) * unit(second)).sum(axis=1)


def hamming_distances(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) numbers of labels in which (n, classes) label sets differ, row by row."""
    _same_shape(first, second)
    return (first != second).sum(axis=1)


def compare_cosine(first: Array, second: Array, bootstrap: Bootstrap) -> Comparison:
    """Mean cosine similarity of two outputs of one request, and of outputs of different requests."""
    _same_shape(first, second)
    return _bilinear(unit(first), unit(second), bootstrap)


def compare_hamming(first: NDArray[np.bool_], second: NDArray[np.bool_], bootstrap: Bootstrap) -> Comparison:
    """Mean Hamming distance of two label sets of one request, and of label sets of different requests."""
    _same_shape(first, second)
    a, b = first.astype(np.float64), second.astype(np.float64)
    return _bilinear(np.hstack([a, 1 - a]), np.hstack([1 - b, b]), bootstrap)


def _bilinear(first: Array, second: Array, bootstrap: Bootstrap) -> Comparison:
    """:meth:`Bootstrap.matched_and_shuffled` of the scores ``first @ second.T``, without forming that matrix."""
    w, squares = bootstrap.weights, bootstrap.weights**2
    matched = (first * second).sum(axis=1)  # (n,)
    total = ((w @ first) * (w @ second)).sum(axis=1) - squares @ matched  # (1 + draws,)
    shuffled = total / (bootstrap.n**2 - squares.sum(axis=1))
    return Comparison(bootstrap.mean(matched), bootstrap.sampled(shuffled))


def _same_shape(first: NDArray, second: NDArray) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"arrays of shapes {first.shape} and {second.shape}: expected two of (n, d)")
