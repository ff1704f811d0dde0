from __future__ import annotations

import numpy as np
import pytest

from xgem.metrics import agreement
from xgem.metrics.auc import auc, compare_auc
from xgem.metrics.bootstrap import Bootstrap
from xgem.types import InputError


def images(n: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (n, 16, 16), dtype=np.uint8)
    return small.repeat(2, axis=1).repeat(2, axis=2)


def test_copies_of_the_target_rank_first() -> None:
    target = agreement.coarse(images(40))
    scores = agreement.own_rank_scores(target, target)
    assert np.diag(scores) == pytest.approx(1)
    comparison = Bootstrap(40, draws=200).matched_and_shuffled(scores)
    assert comparison.matched.value == 1
    assert comparison.difference.estimate().above_zero


def test_rank_by_hand() -> None:
    target, output = np.array([[0.0], [1.0], [3.0]]), np.array([[2.2], [1.1], [0.4]])
    # output 0 is nearest to target 2 (0.8), then 1 (1.2), then its own (2.2): rank 1, score 0
    scores = agreement.own_rank_scores(target, output)
    assert scores[:, 0].tolist() == [0, 0.5, 1]
    assert np.diag(scores).tolist() == [0, 1, 0]


def test_an_output_that_ignores_its_prompt_ranks_at_chance() -> None:
    target = agreement.coarse(images(60))
    noise = agreement.coarse(images(60, seed=1))
    same = np.repeat(noise[:1], 60, axis=0)
    for output in (noise, same):
        comparison = Bootstrap(60, draws=300).matched_and_shuffled(agreement.own_rank_scores(target, output))
        assert comparison.matched.value == pytest.approx(0.5, abs=0.15)
        assert not comparison.difference.estimate().above_zero


def test_coarse_is_blind_to_exposure() -> None:
    some = images(5) // 2
    np.testing.assert_allclose(agreement.coarse(some), agreement.coarse(some + 40), atol=1e-9)
    assert agreement.coarse(np.zeros((1, 32, 32), dtype=np.uint8)).tolist() == [[0.0] * 256]
    with pytest.raises(InputError, match="divisible"):
        agreement.coarse(np.zeros((1, 30, 30), dtype=np.uint8))


def test_logit_agreement_is_the_mean_correlation_over_classes() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 4))
    generated = real * [1, 2, 3, 4] + rng.normal(size=(50, 4)) + 7
    expected = np.mean([np.corrcoef(real[:, k], generated[:, k])[0, 1] for k in range(4)])
    assert np.diag(agreement.logit_scores(real, generated)).mean() == pytest.approx(expected)


def test_ridge_finds_a_planted_line() -> None:
    rng = np.random.default_rng(1)
    prompt, matrix = rng.normal(size=(400, 20)), rng.normal(size=(20, 30))
    target = agreement.standardised(prompt @ matrix)
    predicted = agreement.ridge_prediction(prompt[300:], prompt[:300], target[:300])
    assert np.mean(predicted * target[300:]) > 0.9


def test_auc_against_scikit_learn_with_unknown_labels() -> None:
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    rng = np.random.default_rng(2)
    labels = (rng.random(80) < 0.4).astype(float)
    scores = np.round(labels + rng.normal(size=80), 1)  # with ties
    known = rng.random(80) < 0.8
    marked = np.where(known, labels, np.nan)
    comparison = compare_auc(scores, marked, Bootstrap(80, draws=300))
    assert comparison.matched.value == pytest.approx(roc_auc_score(labels[known], scores[known]))
    assert comparison.shuffled.value == pytest.approx(0.5, abs=0.06)
    assert comparison.difference.estimate().above_zero
    with pytest.raises(InputError, match="needs both"):
        auc(scores, np.ones(80), Bootstrap(80, draws=2))
