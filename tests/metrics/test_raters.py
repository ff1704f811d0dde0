"""Agreement of raters against published tables and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from xgem.metrics.raters import IccForm, centred, icc, quadratic_kappa, wilson
from xgem.metrics.significance import mann_whitney
from xgem.types import InputError, NotComputed

SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
"""Four ratings on six targets: Shrout & Fleiss 1979, table 2."""


@pytest.mark.parametrize(
    ("form", "value", "low", "high"),
    [("ICC(1,1)", 0.17, -0.13, 0.72), ("ICC(2,1)", 0.29, 0.02, 0.76), ("ICC(3,1)", 0.71, 0.34, 0.95)],
)
def test_icc_of_the_published_table(form: IccForm, value: float, low: float, high: float) -> None:
    found = icc(SHROUT_FLEISS, form)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=0.005)
    assert found.n == 6


def test_interval_of_icc_covers_the_true_one() -> None:
    """Variances 2, 0.5 and 1 of targets, raters and noise: ICC(2,1) is 2 / 3.5."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        scores = rng.normal(0, 2**0.5, (40, 1)) + rng.normal(0, 0.5**0.5, (1, 6)) + rng.normal(0, 1, (40, 6))
        found = icc(scores)
        covered += found.low <= 2 / 3.5 <= found.high
    assert 180 <= covered <= 199


def test_raters_who_agree_and_one_who_is_always_higher() -> None:
    scores = np.array([[1, 1], [3, 3], [5, 5], [2, 2]], dtype=float)
    higher = np.array([0, 1])
    assert icc(scores).interval == (1, 1)
    shifted = icc(scores + higher)
    assert shifted.value < 0.9
    assert shifted.low < shifted.value < shifted.high
    assert icc(scores + higher, "ICC(3,1)").value == pytest.approx(1)


def test_icc_that_cannot_be_computed() -> None:
    with pytest.raises(NotComputed, match="1 readers"):
        icc(np.ones((5, 1)))
    for constant in (np.ones((5, 2)), np.tile([1, 4], (5, 1))):
        with pytest.raises(NotComputed, match="throughout"):
            icc(constant)
    assert icc([[1, 3], [2, 4]], "ICC(3,1)").value == 1
    assert icc([[1, 3], [2, 4]]).low <= icc([[1, 3], [2, 4]]).value
    with pytest.raises(InputError, match="finite"):
        icc([[1, 2], [np.nan, 2]])


def test_quadratic_kappa_by_hand() -> None:
    """1 less the mean squared difference of the pairs over that of all combinations."""
    first, second = np.array([1, 2, 3, 4]), np.array([1, 3, 3, 5])
    observed = ((first - second) ** 2).sum() / 4
    expected = ((first[:, None] - second[None]) ** 2).sum() / 16
    assert quadratic_kappa(first, second, range(1, 6)) == pytest.approx(1 - observed / expected)
    with pytest.raises(NotComputed):
        quadratic_kappa([2, 2], [2, 2], range(1, 6))
    with pytest.raises(NotComputed):
        quadratic_kappa([], [], range(1, 6))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_of_published_examples(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    found = wilson(successes, n)
    assert (found.value, found.low, found.high) == pytest.approx((successes / n, low, high), abs=5e-5)


def test_wilson_of_nothing() -> None:
    with pytest.raises(NotComputed):
        wilson(0, 0)


def test_mann_whitney_finds_a_shift_and_no_other() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(0, 1, 60)
    shifted = mann_whitney(a + 1, rng.normal(0, 1, 60), seed=2)
    assert shifted.p < 1e-4
    assert shifted.superiority > 0.65
    assert shifted.difference.low > 0
    assert sum(mann_whitney(rng.normal(size=15), rng.normal(size=15), draws=10).p < 0.05 for _ in range(200)) < 20
    with pytest.raises(InputError):
        mann_whitney([1.0], [2.0, 3.0])


def test_a_missing_rating_does_not_move_an_item() -> None:
    scores = np.array([[1.0, 3.0], [2.0, np.nan], [3.0, 5.0]])
    assert np.nanmean(centred(scores), axis=1).tolist() == [-1, 0, 1]
