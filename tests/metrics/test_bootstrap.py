from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.metrics.bootstrap import Bootstrap, Estimate, Sampled, average, derangements
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


def test_weights_count_how_often_each_study_was_drawn() -> None:
    weights = Bootstrap(7, draws=9, seed=3).weights
    assert weights.shape == (10, 7)
    assert weights[0].tolist() == [1.0] * 7
    assert weights.sum(axis=1).tolist() == [7.0] * 10
    assert np.array_equal(weights, Bootstrap(7, draws=9, seed=3).weights)
    assert not np.array_equal(weights, Bootstrap(7, draws=9, seed=4).weights)
    assert np.array_equal(Bootstrap(7).weights, Bootstrap(7, draws=1000, seed=0).weights)


def test_each_draw_is_the_measure_of_the_studies_drawn() -> None:
    rng, n = np.random.default_rng(5), 6
    values, bottom, scores = rng.normal(size=n), rng.uniform(1, 2, size=n), rng.normal(size=(n, n))
    bootstrap = Bootstrap(n, draws=40, seed=1)
    mean, ratio = bootstrap.mean(values), bootstrap.ratio(values, bottom)
    compared = bootstrap.matched_and_shuffled(scores)
    for k, row in enumerate(bootstrap.weights[1:]):
        drawn = np.repeat(np.arange(n), row.astype(int))
        assert mean.draws[k] == pytest.approx(values[drawn].mean())
        assert ratio.draws[k] == pytest.approx(values[drawn].mean() / bottom[drawn].mean())
        assert compared.matched.draws[k] == pytest.approx(np.diag(scores)[drawn].mean())
        pairs = [scores[i, j] for i in drawn for j in drawn if i != j]
        assert compared.shuffled.draws[k] == pytest.approx(np.mean(pairs))
    assert ratio.value == pytest.approx(values.mean() / bottom.mean())
    assert len(mean.draws) == 40
    assert {mean.n, ratio.n, compared.matched.n, compared.shuffled.n} == {n}


def test_a_ratio_over_nothing_is_not_a_number(recwarn: pytest.WarningsRecorder) -> None:
    assert np.isnan(Bootstrap(3, draws=5).ratio(np.zeros(3), np.zeros(3)).value)
    assert np.isinf(Bootstrap(3, draws=5).ratio(np.ones(3), np.zeros(3)).value)
    assert np.isnan(Bootstrap(3, draws=5).mean(np.full(3, np.nan)).value)
    assert not recwarn.list


def test_intervals_are_percentiles_of_the_defined_draws() -> None:
    draws = np.append(np.arange(101.0), np.nan)
    estimate = Sampled(7.0, draws, 12).estimate()
    assert (estimate.value, estimate.n) == (7.0, 12)
    assert estimate.interval == pytest.approx((2.5, 97.5))
    assert estimate.draws is draws
    assert estimate.as_dict() == {"value": 7.0, "low": estimate.low, "high": estimate.high, "n": 12}
    assert Sampled(7.0, draws, 12).estimate(level=0.5).interval == pytest.approx((25.0, 75.0))
    undefined = Sampled(7.0, np.full(3, np.nan), 12).estimate()
    assert (undefined.value, undefined.n, undefined.draws) == (7.0, 12, None)
    assert np.isnan(undefined.interval).all()
    assert [Estimate(1.0, low, 2.0, 3).above_zero for low in (-0.5, 0.0, 0.5)] == [False, False, True]


def test_estimates_of_the_same_draws_are_compared_in_pairs() -> None:
    a, b = Sampled(3.0, np.arange(101.0), 5), Sampled(1.0, np.arange(101.0)[::-1].copy(), 5)
    difference = a.estimate().minus(b.estimate())
    assert difference == (a - b).estimate()
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((2.0, -95.0, 95.0))
    assert a.estimate().minus(Sampled(1.0, b.draws, 6).estimate()) is None
    assert a.estimate().minus(Sampled(1.0, b.draws[1:], 5).estimate()) is None
    assert a.estimate().minus(Estimate(1.0, 0.0, 2.0, 5)) is None
    assert Estimate(1.0, 0.0, 2.0, 5).minus(a.estimate()) is None


def test_recentred_draws_have_the_value_as_their_mean() -> None:
    shifted = Sampled(10.0, np.array([1.0, 2.0, 6.0, np.nan]), 4).recentred()
    assert (shifted.value, shifted.n) == (10.0, 4)
    np.testing.assert_array_equal(shifted.draws, [8.0, 9.0, 13.0, np.nan])
    undefined = Sampled(10.0, np.full(2, np.nan), 4).recentred()
    assert np.isnan(undefined.draws).all()


def test_an_average_leaves_undefined_draws_out() -> None:
    parts = [Sampled(1.0, np.array([1.0, np.nan, np.nan]), 9), Sampled(4.0, np.array([3.0, 5.0, np.nan]), 9)]
    both = average(parts)
    assert (both.value, both.n) == (2.5, 9)
    np.testing.assert_array_equal(both.draws, [2.0, 5.0, np.nan])
    with pytest.raises(InputError, match="no measures"):
        average([])


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.5, 0.25, 1.0), "0.500 [0.250, 1.000]"),
        ((0.1, 0.0, 0.1), "0.100 [0.000, 0.100]"),
        ((0.02, 0.01, -0.0987), "0.0200 [0.0100, -0.0987]"),
        ((0.00012, 0.0001, 0.00054), "0.000120 [0.000100, 0.000540]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
        ((float("nan"), float("nan"), float("nan")), "nan [no interval]"),
        ((0.5, float("nan"), 0.75), "0.500 [at most 0.750]"),
        ((0.5, 0.25, float("nan")), "0.500 [at least 0.250]"),
    ],
)
def test_estimates_print_three_decimals_or_three_digits(numbers: tuple[float, float, float], text: str) -> None:
    assert str(Estimate(*numbers, n=3)) == text


def test_derangements_follow_their_seed() -> None:
    assert derangements(9, 4).shape == (4, 9)
    assert np.array_equal(derangements(9, 4), derangements(9, 4, seed=0))
    assert not np.array_equal(derangements(9, 4), derangements(9, 4, seed=1))
    assert derangements(2, 3).tolist() == [[1, 0]] * 3
    with pytest.raises(InputError, match=r"expected \(5, 5\)"):
        Bootstrap(5).matched_and_shuffled(np.zeros((5, 4)))
