"""Copies among fingerprints, without comparing each with each.

Fingerprints are put into cells around k-means centres, as many as the root of their number; each is compared with those
of the cells next to it. That takes n to the power of 1.5 comparisons, as matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.utils.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

_ROUNDS: Final = 8
_SAMPLE: Final = 40  # fingerprints a cell that its centre is computed from
_CELLS: Final = 12  # next to a fingerprint that are searched
_MOST: Final = 6  # copies of a fingerprint that are looked at, nearest first
_CHUNK: Final = 4096


@dataclass(frozen=True)
class Index:
    """``centres`` (c, d); ``vectors`` (n, d) sorted by cell, cell k at ``ends[k]:ends[k + 1]``; their ``numbers``."""

    centres: Floats
    vectors: Floats
    numbers: Ints
    ends: Ints

    @classmethod
    def build(cls, vectors: Floats, numbers: Ints, seed: int = 0) -> Index:
        """Of ``vectors`` (n, d) with these ``numbers``; the same for the same arguments."""
        if not len(vectors):
            return cls(vectors, vectors, numbers, np.zeros(1, np.int64))
        cells = int(np.sqrt(len(vectors)))
        rng = np.random.default_rng(seed)
        sample = vectors[np.sort(rng.permutation(len(vectors))[: cells * _SAMPLE])]
        centres = sample[np.sort(rng.permutation(len(sample))[:cells])].copy()
        for _ in range(_ROUNDS):
            nearest = _nearest(sample, centres, 1)[:, 0]
            counts = np.bincount(nearest, minlength=len(centres))
            sums = np.zeros(centres.shape, np.float64)
            np.add.at(sums, nearest, sample)
            used = counts > 0
            centres[used] = (sums[used] / counts[used, None]).astype(np.float32)
        cell = _nearest(vectors, centres, 1)[:, 0]
        order = np.argsort(cell, kind="stable")
        ends = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=len(centres)))])
        return cls(centres, vectors[order], numbers[order], ends.astype(np.int64))

    def save(self, file: Path) -> None:
        """Write all of it; OutputError if not possible."""
        with replacing(file) as partial, partial.open("wb") as stream:
            np.savez(stream, centres=self.centres, vectors=self.vectors, numbers=self.numbers, ends=self.ends)

    @classmethod
    def load(cls, file: Path) -> Index:
        """What :meth:`save` wrote."""
        with np.load(file, allow_pickle=False) as state:
            return cls(state["centres"], state["vectors"], state["numbers"], state["ends"])

    def near(self, queries: Floats, distance: float) -> tuple[Ints, Ints, Floats]:
        """Fingerprints at most ``distance`` from queries (q, d): pairs as places of queries, numbers, distances; up to
        six of a query, nearest first."""
        cells = _nearest(queries, self.centres, _CELLS)
        of_cell: dict[int, list[int]] = {}
        for place, row in enumerate(cells.tolist()):
            for cell in row:
                of_cell.setdefault(cell, []).append(place)
        places, numbers, found = [_NONE], [_NONE], [np.empty(0, np.float32)]
        for cell in sorted(of_cell):
            start, end = self.ends[cell : cell + 2]
            if start == end:
                continue
            asked = np.array(of_cell[cell])
            apart = _squared(queries[asked], self.vectors[start:end])
            query, row = np.nonzero(apart <= distance**2)
            places.append(asked[query])
            numbers.append(self.numbers[start + row])
            found.append(np.sqrt(apart[query, row]))
        place, number, apart = np.concatenate(places), np.concatenate(numbers), np.concatenate(found)
        order = np.lexsort((number, apart, place))
        place, number, apart = place[order], number[order], apart[order]
        firsts = np.searchsorted(place, place)
        kept = np.arange(len(place)) - firsts < _MOST
        return place[kept], number[kept], apart[kept]


_NONE: Final = np.empty(0, np.int64)


def _squared(first: Floats, second: Floats) -> Floats:
    """(m, d), (n, d) -> (m, n): squared distances."""
    apart = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.maximum(apart, 0)


def _nearest(vectors: Floats, centres: Floats, count: int) -> NDArray[Any]:
    """(n, count): the nearest centres of each vector, nearest first."""
    found: list[NDArray[Any]] = []
    count = min(count, len(centres))
    for start in range(0, len(vectors), _CHUNK):
        apart = _squared(vectors[start : start + _CHUNK], centres)
        some = np.argpartition(apart, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(apart, some, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(some, order, 1))
    return np.concatenate(found)
