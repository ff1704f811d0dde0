from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.metrics.bootstrap import Bootstrap, derangements
from xgem.types import InputError


def test_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        estimate = Bootstrap(60, draws=300, seed=trial).mean(rng.exponential(size=60)).estimate()
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_difference_is_narrower_than_two_single_intervals() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=100)
    b = a - 0.1 + rng.normal(size=100) * 0.01
    bootstrap = Bootstrap(100, seed=0)
    difference = (bootstrap.mean(a) - bootstrap.mean(b)).estimate()
    single = bootstrap.mean(a).estimate()
    assert difference.value == pytest.approx(0.1, abs=0.01)
    assert difference.above_zero
    assert difference.high - difference.low < (single.high - single.low) / 10


def test_difference_of_unlike_bootstraps_is_refused() -> None:
    with pytest.raises(InputError, match="same studies"):
        _ = Bootstrap(10).mean(np.ones(10)) - Bootstrap(11).mean(np.ones(11))


@given(st.integers(2, 40), st.integers(0, 5))
def test_derangements_have_no_fixed_point(n: int, seed: int) -> None:
    for order in derangements(n, 5, seed):
        assert sorted(order) == list(range(n))
        assert not (order == np.arange(n)).any()


def test_shuffled_is_the_mean_over_all_derangements() -> None:
    scores = np.random.default_rng(2).normal(size=(12, 12))
    comparison = Bootstrap(12, draws=50).matched_and_shuffled(scores)
    off = scores[~np.eye(12, dtype=bool)].mean()
    assert comparison.matched.value == pytest.approx(np.diag(scores).mean())
    assert comparison.shuffled.value == pytest.approx(off)
    many = np.mean([scores[np.arange(12), order].mean() for order in derangements(12, 4000)])
    assert many == pytest.approx(off, abs=0.02)


def test_interval_of_the_difference_covers_the_planted_one() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(150):
        # A score with effects of target, of output, and of their match: the true difference is 0.5
        own, made, n = rng.normal(size=40), rng.normal(size=40), 40
        scores = own[:, None] + made[None, :] + rng.normal(size=(n, n)) + 0.5 * np.eye(n)
        difference = Bootstrap(n, draws=200, seed=trial).matched_and_shuffled(scores).difference.estimate()
        covered += difference.low <= 0.5 <= difference.high
    assert covered / 150 >= 0.88


def test_no_match_is_found_where_there_is_none() -> None:
    rng = np.random.default_rng(4)
    found = 0
    for trial in range(100):
        scores = rng.normal(size=(30, 1)) + rng.normal(size=(30, 30))
        found += Bootstrap(30, draws=200, seed=trial).matched_and_shuffled(scores).difference.estimate().above_zero
    assert found <= 9


def test_nan_values_are_left_out() -> None:
    estimate = Bootstrap(4, draws=50).mean(np.array([1.0, 1.0, np.nan, 1.0])).estimate()
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_too_few_studies() -> None:
    with pytest.raises(InputError, match="at least 2"):
        Bootstrap(1)
    with pytest.raises(InputError, match="at least 2"):
        derangements(1, 1)
