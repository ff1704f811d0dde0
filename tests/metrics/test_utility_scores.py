from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, roc_auc_score

from xgem.eval.utility.runner import bootstrap_p, pool
from xgem.metrics.auc import auc, auc_draws
from xgem.metrics.bootstrap import Bootstrap, Sampled
from xgem.metrics.classification import brier, classification_measures, untestable, weighted_f1_draws
from xgem.metrics.significance import signed_ranks
from xgem.types import ShapeError

CLASSES = ("Edema", "Fracture", "Cardiomegaly")


@pytest.fixture(name="case")
def _case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random((90, 3)) < [0.5, 0.2, 0.4]).astype(float)
    scores = np.clip(np.round(0.5 * labels + rng.random((90, 3)) * 0.7, 1), 0, 1)  # rounded, so that scores are tied
    return scores, labels


def test_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    found = classification_measures(scores, labels, CLASSES, Bootstrap(90, draws=5))
    said = scores >= 0.5
    for average in ("micro", "macro", "weighted"):
        assert found[f"AUROC {average}", ""].value == pytest.approx(roc_auc_score(labels, scores, average=average))
        assert found[f"F1 {average}", ""].value == pytest.approx(f1_score(labels, said, average=average))
    for k, name in enumerate(CLASSES):
        assert found["AUROC", name].value == pytest.approx(roc_auc_score(labels[:, k], scores[:, k]))
        assert found["accuracy", name].value == pytest.approx(accuracy_score(labels[:, k], said[:, k]))
    assert found["accuracy macro", ""].value == pytest.approx((said == labels).mean())


def test_every_resampling_is_what_scikit_learn_makes_of_the_drawn_cases(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    bootstrap = Bootstrap(90, draws=4, seed=3)
    found = classification_measures(scores, labels, CLASSES, bootstrap)
    for draw in range(4):
        rows = np.repeat(np.arange(90), bootstrap.weights[draw + 1].astype(int))
        assert found["AUROC weighted", ""].draws[draw] == pytest.approx(
            roc_auc_score(labels[rows], scores[rows], average="weighted")
        )
        assert found["F1 weighted", ""].draws[draw] == pytest.approx(
            f1_score(labels[rows], scores[rows] >= 0.5, average="weighted")
        )


def test_ranks_give_the_area_that_pairs_give(
    case: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, labels = case[0][:, 0], case[1][:, 0].copy()
    labels[:9] = np.nan
    bootstrap = Bootstrap(90, draws=40)
    expected = auc(scores, labels, bootstrap)
    monkeypatch.setattr("xgem.metrics.auc._BLOCK", 500)  # several blocks of draws
    found = auc_draws(scores, labels, bootstrap.weights)
    np.testing.assert_allclose(found, [expected.value, *expected.draws])


def test_unknown_labels_have_no_say(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    labels = labels.copy()
    labels[70:, 1] = np.nan
    found = classification_measures(scores, labels, CLASSES, Bootstrap(90, draws=5))
    assert found["AUROC", "Fracture"].value == pytest.approx(roc_auc_score(labels[:70, 1], scores[:70, 1]))
    assert found["F1", "Fracture"].value == pytest.approx(f1_score(labels[:70, 1], scores[:70, 1] >= 0.5))


def test_a_class_of_one_kind_is_said_to_be_untestable_and_has_no_part(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    labels = labels.copy()
    labels[:, 1] = 0
    assert untestable(labels, CLASSES) == {
        "Fracture": "0 positives and 90 negatives: an AUROC needs at least 5 of each"
    }
    found = classification_measures(scores, labels, CLASSES, Bootstrap(90, draws=5))
    assert ("AUROC", "Fracture") not in found
    kept = [0, 2]
    assert found["AUROC macro", ""].value == pytest.approx(roc_auc_score(labels[:, kept], scores[:, kept]))
    assert found["F1 macro", ""].value == pytest.approx(
        f1_score(labels[:, kept], scores[:, kept] >= 0.5, average="macro")
    )
    assert np.isnan(auc_draws(scores[:, 1], labels[:, 1], np.ones((1, 90)))).all()
    assert classification_measures(scores, np.zeros_like(labels), CLASSES, Bootstrap(90, draws=5)) == {}


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match="one column per class"):
        classification_measures(np.zeros((4, 2)), np.zeros((4, 3)), CLASSES, Bootstrap(4))


def test_weighted_f1_counts_classes_by_their_positives() -> None:
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=float)
    scores = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=float)
    # F1 of the first: 2 * 2 / (4 + 0 + 1) = 0.8 with 3 positives; of the second: 2 / (2 + 1) with 1
    assert weighted_f1_draws(scores, labels, np.ones((1, 4)))[0] == pytest.approx((3 * 0.8 + 2 / 3) / 4)


def test_brier_score_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case[0], case[1].copy()
    each = [brier_score_loss(labels[:, k], scores[:, k]) for k in range(3)]
    assert brier(scores, labels).mean() == pytest.approx(np.mean(each))
    labels[0, 1:], labels[1] = np.nan, np.nan
    found = brier(scores, labels)
    assert found[0] == pytest.approx((scores[0, 0] - labels[0, 0]) ** 2)
    assert np.isnan(found[1])


def test_judges_that_differ_by_chance_alone_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        labels = np.zeros((60, 2))
        labels[:2, 0], labels[:30, 1] = 1, 1  # two positives: what they do must not decide for all
        first, second = rng.random((2, 60, 2))
        found += signed_ranks(brier(first, labels) - brier(second, labels))[2] < 0.05
    assert found / 200 < 0.09


def test_pooled_intervals_hold_the_chance_of_runs() -> None:
    runs = [Sampled(value, np.full(500, value), 10) for value in (0.5, 0.6, 0.7, 0.8, 0.9)]
    pooled = pool(runs).estimate()
    assert pooled.value == pytest.approx(0.7)
    assert pooled.low == pytest.approx(0.7 - 1.96 * np.std([0.5, 0.6, 0.7, 0.8, 0.9]) / np.sqrt(5), abs=0.03)
    assert pool(runs[:1]).estimate().interval == (0.5, 0.5)
    # equal runs of two protocols stay together, so their difference does not vary
    shifted = [Sampled(one.value - 0.1, one.draws - 0.1, 10) for one in runs]
    assert (pool(runs) - pool(shifted)).estimate().interval == pytest.approx((0.1, 0.1))


def test_bootstrap_p_counts_draws_on_the_rarer_side() -> None:
    draws = np.r_[np.full(96, 1.0), np.full(3, -1.0)]
    assert bootstrap_p(Sampled(1.0, draws, 10)) == pytest.approx(2 * 4 / 100)
    assert bootstrap_p(Sampled(-1.0, -draws, 10)) == pytest.approx(2 * 4 / 100)
    assert bootstrap_p(Sampled(0.0, np.zeros(99), 10)) == 1.0
