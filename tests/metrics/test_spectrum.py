from __future__ import annotations

import numpy as np
import pytest

from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.spectrum import band_power, band_ratio, radial_power
from xgem.types import InputError


def wave(size: int, cycles: float) -> np.ndarray:
    return np.broadcast_to(np.sin(2 * np.pi * cycles * np.arange(size) / size), (1, size, size))


@pytest.mark.parametrize(("cycles", "share"), [(4, 0.0), (12, 1.0), (28, 1.0)])
def test_a_wave_is_where_it_belongs(cycles: float, share: float) -> None:
    image = wave(64, cycles)  # Nyquist is 32 cycles: the band starts at 8
    frequency, curve = radial_power(image)
    assert frequency[curve[0].argmax()] == pytest.approx(cycles / 32, abs=2 / 32)
    assert band_power(image)[0] / curve.sum() == pytest.approx(share, abs=0.02)


def test_white_noise_is_flat_and_the_curve_adds_up() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 32, 32))
    _, curve = radial_power(noise, bins=8)
    _, single = radial_power(noise, bins=1)
    np.testing.assert_allclose(curve.sum(axis=1), single[:, 0])
    area = np.arange(1, 16, 2)  # rings of equal width hold area in proportion to their radius
    np.testing.assert_allclose(curve.mean(axis=0)[1:] / area[1:], (curve.mean(axis=0) / area)[1:].mean(), rtol=0.15)


def test_ratio_of_half_amplitude_is_a_quarter_and_brightness_does_not_count() -> None:
    real = np.random.default_rng(1).normal(size=(20, 32, 32))
    found = band_ratio(real / 2 + 100, real, Bootstrap(20, draws=50)).estimate()
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_blur_is_seen() -> None:
    from scipy.ndimage import gaussian_filter

    real = np.random.default_rng(2).normal(size=(20, 32, 32))
    assert band_ratio(gaussian_filter(real, (0, 1, 1)), real, Bootstrap(20, draws=50)).estimate().high < 0.3


def test_only_square_images() -> None:
    with pytest.raises(InputError, match=r"\(n, s, s\)"):
        radial_power(np.zeros((2, 16, 20)))
