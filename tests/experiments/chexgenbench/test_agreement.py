"""Agreement with CheXGenBench's published code: numbers that its functions gave for these seeded arrays.

Its FID and KID are torchmetrics', its PRDC is of the package `prdc`; the arrays stand for features of images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics import fidelity, privacy
from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.classification import classification_measures, confusion, f1_of
from xgem.metrics.radiomics import frechet_radiomics


class Arrays(NamedTuple):
    """Images (60, 4, 4), features of them (60, 16), and what follows from the same generator."""

    real: NDArray[np.uint8]
    generated: NDArray[np.uint8]
    x: NDArray[Any]
    y: NDArray[Any]
    weight: NDArray[np.float64]
    texts: NDArray[np.float64]
    radiomics: tuple[NDArray[np.float64], NDArray[np.float64]]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    rng = np.random.default_rng(29)
    real = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    generated = np.clip(rng.normal(140, 60, (60, 4, 4)), 0, 255).astype(np.uint8)
    x, y = (images.reshape(60, -1).astype(np.float32) / 255 for images in (real, generated))
    weight, texts = rng.normal(size=16), rng.normal(size=(60, 16))
    first = rng.normal(size=(80, 12)) * np.arange(1, 13)
    first[:, 3] = 5
    second = rng.normal(0.2, 1.1, size=(80, 12)) * np.arange(1, 13)
    second[:, 3] = 5
    labels = (rng.random((50, 14)) < 0.3).astype(int)
    labels[:, 13] = 0
    scores = np.clip(labels * 0.3 + rng.random((50, 14)) * 0.7, 0, 1)
    return Arrays(real, generated, x, y, weight, texts, (first, second), labels, scores)


def test_frechet_distance(arrays: Arrays) -> None:
    assert fidelity.frechet(arrays.x, arrays.y) == pytest.approx(0.29056429862976074, rel=1e-5)


def test_kernel_distance_of_whole_sets(arrays: Arrays) -> None:
    # subset_size = n, as its code sets it: every subset is the whole set, so its spread is 3e-7
    values = fidelity.kernel_subsets(arrays.x, arrays.y, subset_size=None)
    assert values.mean() == pytest.approx(0.006804237142205238, abs=1e-6)
    assert values.std() == 0


def test_kernel_distance_of_subsets_is_the_same_in_expectation(arrays: Arrays) -> None:
    # torchmetrics draws other subsets of 20: mean 0.00939, spread 0.01299 over 100 of them
    values = fidelity.kernel_subsets(arrays.x, arrays.y, subset_size=20)
    error = 0.012988491915166378 / np.sqrt(100)
    assert abs(values.mean() - 0.00939458142966032) < 4 * error
    assert values.std() == pytest.approx(0.012988491915166378, rel=0.3)


def test_precision_recall_density_coverage(arrays: Arrays) -> None:
    found = fidelity.prdc(arrays.x, arrays.y)
    values = (found.precision.value, found.recall.value, found.density.value, found.coverage.value)
    assert values == pytest.approx((1.0, 0.55, 2.6633333333333336, 1.0))


def test_alignment_but_for_its_rounding(arrays: Arrays) -> None:
    # Its code rounds each cosine, and their mean, to three places
    assert fidelity.alignment(arrays.y, arrays.texts).value == pytest.approx(-0.029, abs=0.001)


def test_pixel_distance_in_float_and_with_the_published_wrap_around(arrays: Arrays) -> None:
    own = list(range(60))
    exact = privacy.pixel_distance(arrays.generated, arrays.real, own_prompt=own).values[:3]
    assert exact == pytest.approx([98.92042256278529, 31.68694526141641, 93.67096668658864])
    wrapped = privacy.pixel_distance(arrays.generated, arrays.real, own_prompt=own, wraparound=True).values[:3]
    assert wrapped == pytest.approx([150.60295481829036, 145.91799923244562, 166.5840628631683])


def test_latent_distance_and_the_closest_image(arrays: Arrays) -> None:
    own = privacy.latent_distance(arrays.y, arrays.x, own_prompt=list(range(60))).values
    assert own[:3] == pytest.approx([0.3879232108592987, 0.12426253408193588, 0.3673371374607086], rel=1e-5)
    closest = privacy.latent_distance(arrays.y, arrays.x).values
    assert (closest <= own + 1e-9).all()  # the paper's definition; the code compares with the own prompt alone
    assert (closest < own).any()


def test_reidentification_score(arrays: Arrays) -> None:
    generated, real = (1 / (1 + np.exp(-one.astype(np.float64))) for one in (arrays.y, arrays.x))
    found = privacy.reidentification_score(generated, real, arrays.weight, 0.3, own_prompt=list(range(60))).values
    assert found[:3] == pytest.approx([0.5448638284316083, 0.5599085724058279, 0.5347131901657259])


def test_radiomics_distance(arrays: Arrays) -> None:
    assert frechet_radiomics(*arrays.radiomics).value == pytest.approx(0.5972798221916954, abs=1e-4)


def test_classification_but_for_classes_without_positives(arrays: Arrays) -> None:
    labels = arrays.labels.astype(np.float64)
    measures = classification_measures(arrays.scores, labels, CHEXPERT_CLASSES, Bootstrap(50, draws=2))
    assert measures["AUROC macro", ""].value == pytest.approx(0.8528163838849478)
    aucs = [measures["AUROC", name].value for name in CHEXPERT_CLASSES[:3]]
    assert aucs == pytest.approx([0.9106029106029107, 0.7945670628183361, 0.9257142857142857])
    # The published F1 and accuracy count the class without a positive too: F1 0 of it, and its false positives
    assert measures["F1 macro", ""].value == pytest.approx(0.5405599002609822 * 14 / 13)
    tp, fp, fn, tn = confusion(arrays.scores, labels, np.ones((1, 50)))
    assert f1_of(tp.sum(axis=1), fp.sum(axis=1), fn.sum(axis=1))[0] == pytest.approx(0.5682326623921938)
    assert (tp + tn).sum() / labels.size == pytest.approx(0.7242857142857143)
