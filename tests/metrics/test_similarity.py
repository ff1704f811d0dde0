from __future__ import annotations

import numpy as np
import pytest

from xgem.metrics.similarity import MS_SSIM_SIDE, MS_SSIM_WEIGHTS, diversity, ms_ssim, pairwise, ssim
from xgem.types import InputError


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


def test_ms_ssim_is_made_of_torchmetrics_terms() -> None:
    """Each scale's terms, where the window lies inside; torchmetrics itself mirrors the last scale's border."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
    from torchmetrics.functional.image.ssim import _ssim_update

    rng = np.random.default_rng(19)
    a = rng.random((208, 180))
    b = np.clip(a + rng.normal(size=a.shape) * 0.2, 0, 1)
    x, y = (torch.from_numpy(one)[None, None] for one in (a, b))
    expected = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale < 4:
            expected *= float(_ssim_update(x, y, return_contrast_sensitivity=True, data_range=1.0)[1]) ** weight
            x, y = (torch.nn.functional.avg_pool2d(one, 2) for one in (x, y))
        else:
            whole = _ssim_update(x, y, return_full_image=True, data_range=1.0)[1]
            expected *= float(whole[..., 5:-5, 5:-5].mean()) ** weight
    assert ms_ssim(a, b) == pytest.approx(expected, abs=1e-7)
    theirs = multiscale_structural_similarity_index_measure(
        torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None], data_range=1.0
    )
    assert ms_ssim(a, b) == pytest.approx(float(theirs), abs=0.02)
    assert ms_ssim(a, a) == pytest.approx(1)
    with pytest.raises(InputError, match="at least 176"):
        ms_ssim(a[: MS_SSIM_SIDE - 1], b[: MS_SSIM_SIDE - 1])


def test_pairwise_is_the_mean_over_all_pairs() -> None:
    rng = np.random.default_rng(20)
    four = rng.random((4, 24, 24))
    expected = np.mean([ssim(four[i], four[j]) for i in range(4) for j in range(i)])
    assert pairwise(four) == pytest.approx(expected)
    assert diversity(four[None])[0] == pytest.approx(1 - expected)
    with pytest.raises(InputError, match="two seeds"):
        pairwise(four[:1])


def test_diversity_is_zero_for_one_image_and_grows_with_noise() -> None:
    rng = np.random.default_rng(4)
    base = rng.random((3, 1, 32, 32))
    same, little, much = (base + rng.normal(size=(3, 4, 32, 32)) * s for s in (0, 0.05, 0.5))
    assert diversity(same) == pytest.approx(0)
    assert (diversity(little) < diversity(much)).all()
    with pytest.raises(InputError, match="two seeds"):
        diversity(base)
