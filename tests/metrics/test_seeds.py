"""Variance between studies and between seeds, where both are known."""

from __future__ import annotations

import numpy as np
import pytest

from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.seeds import compare_jaccard, intraclass_correlation, jaccard
from xgem.types import InputError

K, N, D = 3, 150, 4
BOOTSTRAP = Bootstrap(N, draws=300)


def world(between: float, within: float, seed: int = 0, *, dims: int = D) -> np.ndarray:
    """(k, n, d) of known variances between studies and between seeds, around a mean far from zero."""
    rng = np.random.default_rng(seed)
    study = rng.normal(size=(1, N, dims)) * np.sqrt(between)
    return 5 + study + rng.normal(size=(K, N, dims)) * np.sqrt(within)


@pytest.mark.parametrize(("between", "within"), [(0.0, 1.0), (1.0, 1.0), (3.0, 1.0), (1.0, 0.0)])
def test_the_share_of_variance_between_studies_is_found(between: float, within: float) -> None:
    truth = between / (between + within)
    found = intraclass_correlation(world(between, within), BOOTSTRAP).estimate()
    assert found.value == pytest.approx(truth, abs=0.06)
    assert found.low - 1e-9 <= truth <= found.high + 1e-9
    assert found.n == N


def test_in_one_dimension_it_is_shrout_and_fleiss() -> None:
    """Their example: six targets, four judges, ICC(1,1) = 0.17 (Shrout & Fleiss 1979, Tables 2 and 4)."""
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    found = intraclass_correlation(ratings.T[:, :, None], Bootstrap(6, draws=50))
    assert found.value == pytest.approx(0.1657, abs=5e-5)


def test_resampling_does_not_lower_it() -> None:
    few = Bootstrap(12, draws=4000)
    found = intraclass_correlation(world(1, 0.2, dims=40)[:, :12], few)
    assert np.mean(found.draws) == pytest.approx(found.value, abs=0.01)


def test_units_and_origin_do_not_matter_and_equal_outputs_have_none() -> None:
    vectors = world(1, 1)
    found = intraclass_correlation(vectors, BOOTSTRAP)
    assert intraclass_correlation(1e-3 * vectors - 7, BOOTSTRAP).value == pytest.approx(found.value)
    assert np.isnan(intraclass_correlation(np.full((2, N, 3), 0.1), BOOTSTRAP).value)


@pytest.mark.parametrize("shape", [(1, N, D), (2, N - 1, D), (2, N)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 2 samples"):
        intraclass_correlation(np.zeros(shape), BOOTSTRAP)


def test_jaccard_of_pairs_of_sets() -> None:
    sets = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    assert jaccard(sets, sets) == pytest.approx(np.array([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]))


def test_label_sets_that_follow_the_study_the_seed_or_chance() -> None:
    rng = np.random.default_rng(1)
    study, seed = rng.random((1, N, 6)) < 0.3, rng.random((K, 1, 6)) < 0.3
    by_study = compare_jaccard(np.repeat(study, K, axis=0), BOOTSTRAP)
    assert by_study.matched.value == 1
    assert by_study.difference.estimate().low > 0.3
    by_seed = compare_jaccard(np.repeat(seed, N, axis=1), BOOTSTRAP)
    assert by_seed.shuffled.value == 1
    assert by_seed.difference.value < 0
    by_chance = compare_jaccard(rng.random((K, N, 6)) < 0.3, BOOTSTRAP).difference.estimate()
    assert by_chance.low < 0 < by_chance.high
