from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgem.labels.vocabulary import CHEXPERT_5, CHEXPERT_CLASSES, CLASS_SETS
from xgem.metrics.bootstrap import Array, Bootstrap, derangements
from xgem.metrics.classification import as_binary, columns, compare_f1_by_class, compare_f1_scores
from xgem.types import InputError


def _labels(seed: int, n: int = 60, classes: int = 5) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, classes)) < np.linspace(0.1, 0.6, classes)).astype(float)
    flips = rng.random((n, classes)) < 0.25
    return truth, np.where(flips, 1 - truth, truth)


@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_f1_against_scikit_learn(average: str) -> None:
    from sklearn.metrics import f1_score

    truth, predicted = _labels(0)
    found = compare_f1_scores(truth, predicted, Bootstrap(60, draws=10))[f"{average}_f1"].matched
    assert found.value == pytest.approx(f1_score(truth, predicted, average=average))
    # A bootstrap draw is scikit-learn's value with its counts as weights
    weights = Bootstrap(60, draws=10).weights[3]
    assert found.draws[2] == pytest.approx(f1_score(truth, predicted, average=average, sample_weight=weights))


def test_unknown_labels_are_left_out_of_each_class() -> None:
    from sklearn.metrics import f1_score

    truth, predicted = _labels(1)
    hidden = np.random.default_rng(2).random(truth.shape) < 0.3
    unseen = np.random.default_rng(3).random(truth.shape) < 0.2
    marked, given_out = np.where(hidden, np.nan, truth), np.where(unseen, np.nan, predicted)
    found = compare_f1_by_class(marked, given_out, Bootstrap(60, draws=5))
    for k, one in enumerate(found):
        known = ~hidden[:, k] & ~unseen[:, k]
        assert one is not None
        assert one.matched.value == pytest.approx(f1_score(truth[known, k], predicted[known, k]))
    micro = compare_f1_scores(marked, given_out, Bootstrap(60, draws=5))["micro_f1"].matched.value
    known = ~hidden & ~unseen
    assert micro == pytest.approx(f1_score(truth[known], predicted[known]))


def test_shuffled_pools_all_pairs_of_different_studies() -> None:
    truth, predicted = _labels(4, n=30)
    marked = np.where(np.random.default_rng(5).random(truth.shape) < 0.3, np.nan, truth)
    found = compare_f1_by_class(marked, predicted, Bootstrap(30, draws=5))
    i, j = np.nonzero(~np.eye(30, dtype=bool))
    for k, one in enumerate(found):
        y, p = marked[i, k], predicted[j, k]
        known = np.isfinite(y)
        assert one is not None
        expected = 2 * (y[known] * p[known]).sum() / (y[known].sum() + p[known].sum())
        assert one.shuffled.value == pytest.approx(expected)


def test_swapped_labels_lose_f1_clear_of_zero_and_a_constant_has_none_to_lose() -> None:
    truth, predicted = _labels(6, n=120)
    bootstrap = Bootstrap(120, draws=200)
    for one in compare_f1_scores(truth, predicted, bootstrap).values():
        assert one.difference.estimate().above_zero
    dealt = predicted[derangements(120, 1)[0]]
    for one in compare_f1_scores(truth, dealt, bootstrap).values():
        assert not one.difference.estimate().above_zero
    constant = np.tile([0.0, 0, 1, 1, 1], (120, 1))
    for one in compare_f1_scores(truth, constant, bootstrap).values():
        np.testing.assert_allclose(one.difference.draws, 0, atol=0.02)
        assert one.difference.value == pytest.approx(0)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_f1_knows_no_order_and_no_copies(seed: int) -> None:
    truth, predicted = _labels(seed, n=20)
    order = np.random.default_rng(seed).permutation(20)
    own = compare_f1_scores(truth, predicted, Bootstrap(20, draws=1))
    moved = compare_f1_scores(truth[order], predicted[order], Bootstrap(20, draws=1))
    twice = compare_f1_scores(np.vstack([truth] * 2), np.vstack([predicted] * 2), Bootstrap(40, draws=1))
    for name, one in own.items():
        for other in (moved, twice):
            assert other[name].matched.value == pytest.approx(one.matched.value, nan_ok=True)


def test_a_class_that_nothing_affirms_has_no_f1() -> None:
    truth, predicted = _labels(7)
    truth[:, 0] = 0
    bootstrap = Bootstrap(60, draws=5)
    assert compare_f1_by_class(truth, predicted, bootstrap)[0] is None
    rest = compare_f1_scores(truth[:, 1:], predicted[:, 1:], bootstrap)["macro_f1"].matched.value
    assert compare_f1_scores(truth, predicted, bootstrap)["macro_f1"].matched.value == pytest.approx(rest)
    nothing = compare_f1_scores(np.zeros((60, 2)), np.zeros((60, 2)), bootstrap)
    assert all(math.isnan(one.matched.value) for one in nothing.values())


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        ("positive", "negative", [1, 0, 1, 0]),
        ("negative", "negative", [1, 0, 0, 0]),
        ("ignore", "ignore", [1, 0, math.nan, math.nan]),
        ("positive", "ignore", [1, 0, 1, math.nan]),
    ],
)
def test_what_uncertain_and_unmentioned_labels_count_as(uncertain, blank, expected) -> None:
    labels = np.array([[1, 0, -1, math.nan]])
    np.testing.assert_array_equal(as_binary(labels, uncertain=uncertain, blank=blank), [expected])


def test_a_label_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"label 2\.0"):
        as_binary(np.array([[2.0, 1.0]]), uncertain="positive", blank="negative")
    with pytest.raises(InputError, match=r"expected two of \(3, classes\)"):
        compare_f1_scores(np.zeros((4, 2)), np.zeros((4, 2)), Bootstrap(3))


def test_sets_of_classes_are_the_papers() -> None:
    assert {name: len(classes) for name, classes in CLASS_SETS.items()} == {
        "14": 14,
        "5": 5,
        "10+": 11,
        "findings": 13,
    }
    assert "No Finding" not in CLASS_SETS["findings"]
    assert set(CLASS_SETS["10+"]) == set(CHEXPERT_CLASSES) - {"Pleural Other", "Fracture", "Support Devices"}
    wide = np.arange(28.0).reshape(2, 14)
    assert columns(wide, CHEXPERT_5)[0].tolist() == [CHEXPERT_CLASSES.index(name) for name in CHEXPERT_5]
