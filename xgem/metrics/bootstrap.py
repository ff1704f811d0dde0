"""Bootstrap intervals that share their draws, so that differences between measures are paired.

Every measure of a run is computed on the same resampled studies (:class:`Bootstrap`); subtracting two
:class:`Sampled` measures subtracts draw by draw, which is the paired bootstrap (Efron & Tibshirani 1993, ch. 16).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.types import InputError

Array = NDArray[np.float64]


LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap interval and the number of studies behind it.

    ``draws`` are the values on the resamplings behind the interval, where they are available: they give the paired
    difference of two estimates of the same studies with the same bootstrap (:meth:`minus`). Records do not hold them.
    """

    value: float
    low: float
    high: float
    n: int
    draws: Array | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """``value``, ``low``, ``high`` and ``n``."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def minus(self, other: Estimate) -> Estimate | None:
        """The paired difference; None where the two differ in n or in the number of draws.

        Both must be of the same studies in the same order and of the same bootstrap seed; the caller ensures this.
        """
        if self.draws is None or other.draws is None or self.n != other.n or self.draws.shape != other.draws.shape:
            return None
        return Sampled(self.value - other.value, self.draws - other.draws, self.n).estimate()

    @property
    def interval(self) -> tuple[float, float]:
        return (self.low, self.high)

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    def __str__(self) -> str:
        """To three decimals, or to three significant digits where all are below 0.1; a one-sided interval in words."""
        largest = max((abs(x) for x in (self.value, self.low, self.high) if math.isfinite(x)), default=1.0)
        places = 3 if largest >= 0.1 or largest == 0 else 2 - math.floor(math.log10(largest))
        low, high = f"{self.low:.{places}f}", f"{self.high:.{places}f}"
        sides = {(True, False): f"at most {high}", (False, True): f"at least {low}", (True, True): "no interval"}
        interval = sides.get((math.isnan(self.low), math.isnan(self.high)), f"{low}, {high}")
        return f"{self.value:.{places}f} [{interval}]"


@dataclass(frozen=True)
class Sampled:
    """A measure with its bootstrap draws (one value per resampling)."""

    value: float
    draws: Array
    n: int

    def __sub__(self, other: Sampled) -> Sampled:
        """The paired difference; both sides must come from the same :class:`Bootstrap` (same n, seed and draws)."""
        if self.draws.shape != other.draws.shape or self.n != other.n:
            raise InputError(
                f"difference of measures of n {self.n} and {other.n}, {len(self.draws)} and {len(other.draws)} draws: "
                "a paired difference needs the same studies and the same bootstrap"
            )
        return Sampled(self.value - other.value, self.draws - other.draws, self.n)

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The percentile interval; draws in which the measure is undefined (NaN) are left out."""
        draws = self.draws[np.isfinite(self.draws)]
        if not len(draws):
            return Estimate(self.value, float("nan"), float("nan"), self.n)
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return Estimate(float(self.value), float(low), float(high), self.n, self.draws)

    def recentred(self) -> Sampled:
        """The draws shifted so that their mean is the value: for measures with a biased bootstrap, as Frechet's."""
        finite = self.draws[np.isfinite(self.draws)]
        shift = self.value - float(finite.mean()) if len(finite) else 0.0
        return Sampled(self.value, self.draws + shift, self.n)


@dataclass(frozen=True)
class Comparison:
    """A measure with matched prompts, the same measure with shuffled prompts, and their paired difference."""

    matched: Sampled
    shuffled: Sampled

    @property
    def difference(self) -> Sampled:
        return self.matched - self.shuffled


class Bootstrap:
    """Resamplings of ``n`` studies, the same for every measure.

    Args:
        n: number of studies, at least 2.
        draws: number of resamplings.
        seed: any non-negative integer; equal arguments give equal resamplings.

    ``weights`` is (1 + draws, n): row 0 is all ones (the sample itself), each other row counts how often a study was
    drawn and sums to n.
    """

    def __init__(self, n: int, *, draws: int = 1000, seed: int = 0) -> None:
        if n < 2:
            raise InputError(f"{n} studies: a bootstrap needs at least 2, so evaluate on more studies")
        self.n = n
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
        self.weights: Array = np.concatenate([np.ones((1, n)), counts])

    def sampled(self, values: Array) -> Sampled:
        """Wrap (1 + draws,) values of a measure computed for every row of ``weights``."""
        return Sampled(float(values[0]), np.asarray(values[1:], dtype=np.float64), self.n)

    def mean(self, values: Array) -> Sampled:
        """The mean over studies of (n,) values; NaN marks a study without a value, which is left out."""
        values = np.asarray(values, dtype=np.float64)
        valid = np.isfinite(values)
        total = self.weights @ np.where(valid, values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sampled(total / (self.weights @ valid.astype(np.float64)))

    def ratio(self, top: Array, bottom: Array) -> Sampled:
        """Ratio of the means of two (n,) arrays."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sampled((self.weights @ top) / (self.weights @ bottom))

    def matched_and_shuffled(self, scores: Array) -> Comparison:
        """Matched pairs against all the others.

        Args:
            scores: (n, n); ``scores[i, j]`` rates the output made from study j's prompts against study i.

        The shuffled control is the mean over all pairs of *different* studies: the exact mean of what random
        derangements would give. Both axes are resampled together, as for any U-statistic; two copies of one study in
        a resampling do not count as a pair of different studies.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (self.n, self.n):
            raise InputError(f"scores of shape {scores.shape}: expected ({self.n}, {self.n})")
        diagonal = np.diag(scores)
        matched = self.sampled(self.weights @ diagonal / self.n)
        squares = self.weights**2
        # b draws, i studies: the sum over all pairs less that over pairs of a study with itself
        total = np.einsum("bi,bi->b", self.weights @ scores, self.weights) - squares @ diagonal
        pairs = self.n**2 - squares.sum(axis=1)
        return Comparison(matched, self.sampled(total / pairs))


class CrossedBootstrap(Bootstrap):
    """Resamplings of a design in which every row meets every column, such as sentences x seeds.

    Rows and columns are resampled independently, and a cell counts as often as its row times its column (the pigeonhole
    bootstrap, Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1): cells of one sentence are not
    independent, and neither are those of one seed.

    ``weights`` is (1 + draws, rows * columns), row by row; ``row_weights`` and ``column_weights`` are its factors.
    """

    def __init__(self, rows: int, columns: int, *, draws: int = 1000, seed: int = 0) -> None:
        if min(rows, columns) < 2:
            raise InputError(f"{rows} x {columns}: a crossed bootstrap needs at least 2 x 2")
        super().__init__(rows, draws=draws, seed=seed)
        self.row_weights = self.weights
        rng = np.random.default_rng([seed, 1])
        counts = rng.multinomial(columns, np.full(columns, 1 / columns), size=draws).astype(np.float64)
        self.column_weights: Array = np.concatenate([np.ones((1, columns)), counts])
        self.weights = (self.row_weights[:, :, None] * self.column_weights[:, None, :]).reshape(1 + draws, -1)
        self.n = rows * columns


def derangements(n: int, count: int, seed: int = 0) -> NDArray[np.int64]:
    """``count`` permutations of ``range(n)`` without a fixed point, (count, n): cyclic shifts of random orders."""
    if n < 2:
        raise InputError(f"{n} studies: shuffled prompts need at least 2")
    rng = np.random.default_rng([seed, 1])
    result = np.empty((count, n), dtype=np.int64)
    for row in result:
        order = rng.permutation(n)
        row[order] = np.roll(order, int(rng.integers(1, n)))
    return result


def average(parts: list[Sampled]) -> Sampled:
    """Mean of measures that share their bootstrap; a measure that is undefined in a draw is left out of that draw."""
    if not parts:
        raise InputError("no measures to average: give at least one")
    draws = np.stack([part.draws for part in parts])  # (parts, draws)
    count = np.isfinite(draws).sum(axis=0)
    total = np.nansum(draws, axis=0)
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return Sampled(float(np.mean([part.value for part in parts])), mean, parts[0].n)
