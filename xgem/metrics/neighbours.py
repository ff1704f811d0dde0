"""Exact nearest neighbours in large feature sets, never with an n x m matrix in memory.

Products of float32 blocks select the near pairs. Their rounding error is bounded (Higham 2002, eq. 3.5), and every
pair that the bound leaves undecided is decided by the float64 distance of the features themselves. Results are thus
those of float64 arithmetic at the cost of float32; memory grows with n + m.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array
from xgem.types import InputError

BLOCK: Final = 2048
"""Rows and columns of the largest matrix of distances that is held in memory."""
_SPARE: Final = 8  # candidates kept beyond the k nearest, so that the float32 order is almost never in doubt
_PAIRS: Final = 1 << 22  # float64 values that one exact comparison may hold in memory

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def nearest(queries: NDArray[Any], reference: NDArray[Any], k: int = 1) -> tuple[Array, Ints]:
    """The k nearest reference points of each query, by Euclidean distance.

    Args:
        queries, reference: (n, d) and (m, d), m at least k.

    Returns:
        distances (n, k), ascending, and the rows of ``reference`` (n, k).
    """
    _check(queries, reference)
    if len(reference) < k or k < 1:
        raise InputError(f"{len(reference)} reference points: the {k} nearest need at least {max(1, k)}")
    centre = _centre(reference)
    near, far = _Points.of(queries, centre), _Points.of(reference, centre)
    best = _Best(len(queries), min(k + _SPARE, len(reference)))
    for rows in _slices(len(queries)):
        for columns in _slices(len(reference)):
            best.offer(_block(near, rows, far, columns), rows, columns)
    squared, index = _settle(near, far, best, k, same_set=False)
    return np.sqrt(squared), index


def squared_radii(points: NDArray[Any], k: int) -> Array:
    """Squared distances (n,) from each of (n, d) points to its k-th nearest other point; n must exceed k."""
    _check(points, points)
    if len(points) <= k or k < 1:
        raise InputError(f"{len(points)} points: the distance to the {k}-th nearest other one needs at least {k + 1}")
    centred = _Points.of(points, _centre(points))
    best = _Best(len(points), min(k + _SPARE, len(points) - 1))
    slices = list(_slices(len(points)))
    for number, rows in enumerate(slices):
        for columns in slices[number:]:  # the matrix is symmetric: one half is enough
            block = _block(centred, rows, centred, columns)
            if rows == columns:
                np.fill_diagonal(block, np.inf)
            else:
                best.offer(block, columns, rows, transposed=True)
            best.offer(block, rows, columns)
    return _settle(centred, centred, best, k, same_set=True)[0][:, k - 1]


@dataclass(frozen=True)
class Overlap:
    """Which points of two sets lie strictly inside the other set's neighbourhoods.

    ``balls`` (m,): number of real neighbourhoods that contain each generated point; ``covered`` (n,): whether a real
    point's neighbourhood contains a generated point; ``reached`` (n,): whether a real point lies in the neighbourhood
    of a generated one.
    """

    balls: Ints
    covered: Bools
    reached: Bools


def overlap(real: NDArray[Any], generated: NDArray[Any], real_radii: Array, generated_radii: Array) -> Overlap:
    """Compare (n, d) and (m, d) points with each other's neighbourhoods, given their squared radii (n,) and (m,)."""
    _check(real, generated)
    centre = _centre(real)
    first, second = _Points.of(real, centre), _Points.of(generated, centre)
    balls = np.zeros(len(generated), dtype=np.int64)
    covered, reached = np.zeros(len(real), dtype=np.bool_), np.zeros(len(real), dtype=np.bool_)
    for rows in _slices(len(real)):
        for columns in _slices(len(generated)):
            block = _block(first, rows, second, columns)
            r, c = _within(first, rows, second, columns, block, real_radii[rows], by_row=True)
            balls[columns] += np.bincount(c, minlength=block.shape[1])
            covered[rows.start + r] = True
            r, _ = _within(first, rows, second, columns, block, generated_radii[columns], by_row=False)
            reached[rows.start + r] = True
    return Overlap(balls, covered, reached)


@dataclass(frozen=True)
class _Points:
    """Points as given, and as float32 about a common centre, which keeps rounding errors of distances small."""

    values: NDArray[Any]
    centred: NDArray[np.float32]
    squares: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[Any], centre: NDArray[np.float32]) -> _Points:
        centred = np.empty(values.shape, dtype=np.float32)
        for rows in _slices(len(values)):
            centred[rows] = values[rows] - centre
        return cls(values, centred, np.einsum("ij,ij->i", centred, centred))

    def slack(self, rows: Any, other: _Points) -> NDArray[np.float32]:
        """The largest rounding error of a squared distance from these rows to any point of ``other``."""
        longest = float(np.sqrt(other.squares.max()))
        unit = (self.values.shape[1] + 16) * 2.0**-24
        return (unit * (np.sqrt(self.squares[rows]) + longest) ** 2).astype(np.float32)


class _Best:
    """The ``count`` nearest candidates of each of n rows so far, unordered: float32 distances and columns."""

    def __init__(self, n: int, count: int) -> None:
        self.squared = np.full((n, count), np.inf, dtype=np.float32)
        self.index = np.full((n, count), -1, dtype=np.int64)
        self.worst = np.full(n, np.inf, dtype=np.float32)

    def offer(self, block: NDArray[np.float32], rows: slice, columns: slice, *, transposed: bool = False) -> None:
        """Take the nearer candidates of a block (rows, columns), or (columns, rows) if ``transposed``."""
        count = self.squared.shape[1]
        worst = self.worst[rows]
        # Some rows have too few candidates so far: take the nearest of every row
        if np.isinf(worst).any():
            table = np.ascontiguousarray(block.T) if transposed else block
            kept = min(count, table.shape[1])
            places = np.argpartition(table, kept - 1, axis=1)[:, :kept]
            self._merge(np.arange(rows.start, rows.stop), np.take_along_axis(table, places, 1), columns.start + places)
            return
        # Else only what is nearer than the worst candidate of its row
        hits = np.flatnonzero(block < (worst[None, :] if transposed else worst[:, None]))
        if not len(hits):
            return
        r, c = np.divmod(hits, block.shape[1])
        if transposed:
            r, c = c, r
        # Gather the hits of each row into a padded table (rows with hits, most hits of a row)
        order = np.argsort(r, kind="stable")
        r, c, values = r[order], c[order], block.ravel()[hits[order]]
        hit_rows, starts, counts = np.unique(r, return_index=True, return_counts=True)
        line = np.repeat(np.arange(len(hit_rows)), counts)
        place = np.arange(len(r)) - np.repeat(starts, counts)
        squared = np.full((len(hit_rows), counts.max()), np.inf, dtype=np.float32)
        index = np.full(squared.shape, -1, dtype=np.int64)
        squared[line, place], index[line, place] = values, columns.start + c
        self._merge(rows.start + hit_rows, squared, index)

    def _merge(self, rows: Ints, squared: NDArray[np.float32], index: Ints) -> None:
        """Keep the ``count`` nearest of the old and the new candidates (rows, any) of these rows."""
        count = self.squared.shape[1]
        squared = np.concatenate([self.squared[rows], squared], axis=1)
        index = np.concatenate([self.index[rows], index], axis=1)
        kept = np.argpartition(squared, count - 1, axis=1)[:, :count]
        self.squared[rows] = np.take_along_axis(squared, kept, 1)
        self.index[rows] = np.take_along_axis(index, kept, 1)
        self.worst[rows] = self.squared[rows].max(axis=1)


def _settle(near: _Points, far: _Points, best: _Best, k: int, *, same_set: bool) -> tuple[Array, Ints]:
    """The k nearest by exact distance, ascending: squared distances (n, k) and columns (n, k).

    ``same_set``: both are one set, and no point is its own neighbour.
    """
    n, count = best.index.shape
    squared, index = np.empty((n, k)), np.empty((n, k), dtype=np.int64)
    exhaustive = count == len(far.values) - same_set
    chunk = max(1, _PAIRS // (count * near.values.shape[1]))
    for start in range(0, n, chunk):
        rows = np.arange(start, min(start + chunk, n))
        squared[rows], index[rows] = _exact(near, far, rows, best.index[rows], k)
        if exhaustive:
            continue
        # All points that are not candidates are at least this far; rows where that could be among the k nearest
        # are searched again
        least = np.maximum(0, best.worst[rows] - near.slack(rows, far))
        for row in rows[squared[rows, k - 1] > least]:
            candidates = _by_double(near, far, int(row), count, same_set)
            squared[row], index[row] = (part[0] for part in _exact(near, far, np.array([row]), candidates[None], k))
    return squared, index


def _exact(near: _Points, far: _Points, rows: Ints, candidates: Ints, k: int) -> tuple[Array, Ints]:
    """The k nearest of the ``candidates`` (r, count) of r rows, in float64: squared distances and columns, (r, k)."""
    squared = _squared(near.values[rows][:, None], far.values[candidates])
    order = np.lexsort((candidates, squared), axis=1)[:, :k]
    return np.take_along_axis(squared, order, 1), np.take_along_axis(candidates, order, 1)


def _by_double(near: _Points, far: _Points, row: int, count: int, same_set: bool) -> Ints:
    """The ``count`` nearest columns of one row, with all distances in float64."""
    squared = np.concatenate([_squared(near.values[row], far.values[part]) for part in _slices(len(far.values))])
    if same_set:
        squared[row] = np.inf
    return np.argpartition(squared, count - 1)[:count]


def _within(
    first: _Points, rows: slice, second: _Points, columns: slice, block: NDArray[Any], radii: Array, *, by_row: bool
) -> tuple[Ints, Ints]:
    """Rows and columns of the pairs in a block that are nearer than the squared radius of their row (or column).

    Pairs within the rounding error of the radius are decided in float64.
    """
    slack = first.slack(rows, second) if by_row else second.slack(columns, first)
    high = np.where(radii > 0, radii + slack, -np.inf).astype(np.float32)  # nothing is nearer than 0
    low = (radii - slack).astype(np.float32)
    hits = np.flatnonzero(block < (high[:, None] if by_row else high[None, :]))
    r, c = np.divmod(hits, block.shape[1])
    side = r if by_row else c
    sure = block.ravel()[hits] < low[side]
    doubtful = np.flatnonzero(~sure)
    chunk = max(1, _PAIRS // first.values.shape[1])
    for start in range(0, len(doubtful), chunk):
        part = doubtful[start : start + chunk]
        squared = _squared(first.values[rows.start + r[part]], second.values[columns.start + c[part]])
        sure[part] = squared < radii[side[part]]
    return r[sure], c[sure]


def _squared(first: NDArray[Any], second: NDArray[Any]) -> Array:
    difference = np.subtract(first, second, dtype=np.float64)
    return np.einsum("...i,...i->...", difference, difference)


def _block(first: _Points, rows: slice, second: _Points, columns: slice) -> NDArray[np.float32]:
    """Squared distances (rows, columns) as one product: |x|^2 - 2 x.y + |y|^2, the squares as two more features."""
    x, y = first.centred[rows], second.centred[columns]
    left = np.column_stack([x, first.squares[rows], np.ones(len(x), dtype=np.float32)])
    right = np.column_stack([-2 * y, np.ones(len(y), dtype=np.float32), second.squares[columns]])
    return left @ right.T


def _slices(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def _centre(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.mean(axis=0, dtype=np.float64).astype(np.float32)


def _check(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not first.size or not second.size:
        raise InputError(f"features of shapes {first.shape} and {second.shape}: expected (n, d) and (m, d)")
    for values in (first, second):
        if not all(np.isfinite(values[rows]).all() for rows in _slices(len(values))):
            raise InputError("features contain NaN or infinity: expected finite numbers; check the extractor")
