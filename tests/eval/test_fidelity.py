from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.eval.fidelity import diversity, frechet_distance, real_floor, sampled_frechet, ssim
from xgem.types import InputError


def with_moments(rng: np.random.Generator, n: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Samples whose mean and covariance are exactly those given."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_closed_form_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    one, two = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 1.0, 1.0])
    a, b = with_moments(rng, 200, np.zeros(3), one), with_moments(rng, 150, np.array([1.0, 2.0, 0.0]), two)
    expected = 5 + sum((np.sqrt(p) - np.sqrt(q)) ** 2 for p, q in zip(np.diag(one), np.diag(two), strict=True))
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_matches_the_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(90, 6)) + 0.3
    s1, s2 = np.cov(a.T), np.cov(b.T)
    root = np.real(np.trace(np.asarray(sqrtm(s1 @ s2))))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected)


@given(st.integers(0, 1000), st.integers(3, 20), st.integers(2, 40))
def test_invariants(seed: int, d: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(n + 3, d)) + 1
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    distance = frechet_distance(a, b)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(b, a) == pytest.approx(distance)
    assert frechet_distance(a @ q + 5, b @ q + 5) == pytest.approx(distance)
    assert frechet_distance(a * 3, b * 3) == pytest.approx(distance * 9)


def test_floor_and_interval() -> None:
    rng = np.random.default_rng(2)
    training, real, far = rng.normal(size=(300, 8)), rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) + 1
    floor = real_floor(training, real).estimate()
    found = sampled_frechet(far, real, draws=20).estimate()
    assert floor.high < found.low < found.value < found.high
    assert frechet_distance(training[:60], real) < floor.high * 1.5
    with pytest.raises(InputError, match="at least as many"):
        real_floor(training[:10], real)


def test_frechet_refuses_what_it_cannot_use() -> None:
    with pytest.raises(InputError, match=r"\(n, d\)"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def test_ssim_matches_scikit_image() -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(3)
    a = rng.random((48, 40))
    b = np.clip(a + rng.normal(size=a.shape) * 0.2, 0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    assert ssim(a, b) == pytest.approx(structural_similarity(a, b, **options), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1)
    with pytest.raises(InputError, match="at least 11"):
        ssim(a[:8], b[:8])


def test_diversity_is_zero_for_one_picture_and_grows_with_noise() -> None:
    rng = np.random.default_rng(4)
    base = rng.random((3, 1, 32, 32))
    same, little, much = (base + rng.normal(size=(3, 4, 32, 32)) * s for s in (0, 0.05, 0.5))
    assert diversity(same) == pytest.approx(0)
    assert (diversity(little) < diversity(much)).all()
    with pytest.raises(InputError, match="two seeds"):
        diversity(base)
