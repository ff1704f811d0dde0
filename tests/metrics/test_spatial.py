"""Overlaps, contrasts and responses in closed form, and correlation as SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from xgem.data.annotations import Box
from xgem.metrics import spatial
from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.correlation import compare_correlation, correlation
from xgem.types import InputError


def test_overlaps_by_hand() -> None:
    found, asked = np.zeros((2, 4, 4), dtype=bool), np.zeros((2, 4, 4), dtype=bool)
    found[0, :2], asked[0, 1:3], asked[1, 0] = True, True, True
    dice, iou = spatial.overlaps(found, asked)
    np.testing.assert_allclose(dice, [[0.5, 2 / 3], [0, 0]])
    np.testing.assert_allclose(iou, [[1 / 3, 0.5], [0, 0]])
    with pytest.raises(InputError, match="is empty"):
        spatial.overlaps(asked, found)


def test_places_of_boxes() -> None:
    box = Box("mass", 0.25, 0.5, 0.25, 0.25)
    inside = spatial.region(box, 16)
    assert np.argwhere(inside).min(axis=0).tolist() == [8, 4]
    assert inside.sum() == 16
    assert spatial.ring(box, 16).sum() == 36 - 16
    assert np.argwhere(spatial.mirrored(box, 16)).min(axis=0).tolist() == [8, 8]
    assert not (spatial.ring(box, 16) & inside).any()
    assert not spatial.mirrored(Box("cardiomegaly", 0.25, 0.5, 0.5, 0.25), 16).any()
    assert spatial.region(Box("nodule", 0.999, 0.5, 0.001, 0.001), 16).sum() == 1


def test_contrast_and_response_are_those_of_the_box() -> None:
    boxes = [[Box("nodule", 0.25, 0.25, 0.25, 0.25)], [Box("nodule", 0.25, 0.5, 0.5, 0.25)]]
    images = np.full((2, 16, 16), 100, dtype=np.uint8)
    images[0, spatial.region(boxes[0][0], 16)] += 51
    scores = spatial.contrasts(images, boxes, spatial.ring)
    assert scores[0, 0] == pytest.approx(0.2)
    assert scores[1].tolist() == pytest.approx([0, 0])
    other = spatial.contrasts(images, boxes, spatial.mirrored)
    assert other[0, 0] == pytest.approx(0.2)
    assert np.isnan(other[:, 1]).all(), "a box across the middle has no other side"

    def logits(shown: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros(len(shown)), shown[:, 4:8, 4:8].mean(axis=(1, 2))], axis=1)

    known = [[(box, 1) for box in own] for own in boxes]
    found = spatial.responses(images, known, logits)
    assert found[0, 0] > 20
    assert found[0, 1] == found[1, 0] == found[1, 1] == 0


def test_correlation_is_scipys_on_every_resampling() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 15).astype(float)
    y = x + rng.normal(0, 2, 15).round()
    bootstrap = Bootstrap(15, draws=20)
    for ranks, reference in ((False, pearsonr), (True, spearmanr)):
        found = correlation(x, y, bootstrap, ranks=ranks)
        for weights, value in zip(bootstrap.weights, [found.value, *found.draws], strict=True):
            rows = np.repeat(np.arange(15), weights.astype(int))
            expected: Any = reference(x[rows], y[rows])
            assert value == pytest.approx(expected.statistic)
    assert np.isnan(correlation(x, np.ones(15), bootstrap).value)
    compared = compare_correlation(x, y, bootstrap, permutations=200)
    assert compared.difference.estimate().low > 0
    assert compared.shuffled.value == pytest.approx(0, abs=0.12)
