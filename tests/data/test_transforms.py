"""Preprocessing: each step does its own thing and can be switched off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xgem.configs.components import TransformConfig
from xgem.data.read import Radiograph, read_image
from xgem.data.transforms import grid_spacing, pad_square, read_square, resample, resize, to_square
from xgem.types import ImageError


def image(pixels: np.ndarray, spacing: tuple[float, float] | None = None) -> Radiograph:
    return Radiograph(pixels.astype(np.float32), spacing, "0", "x")


@given(
    height=st.integers(32, 90),
    width=st.integers(32, 90),
    size=st.integers(16, 100),
    pad=st.booleans(),
    interpolation=st.sampled_from(["bicubic", "area", "bilinear"]),
    spacing=st.none() | st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
)
def test_always_square_in_range_and_never_padded_with_grey(height, width, size, pad, interpolation, spacing):
    config = TransformConfig(size=size, pad=pad, interpolation=interpolation, pixel_spacing=0.139)
    pixels = np.random.default_rng(0).random((height, width))
    square = to_square(image(pixels, spacing), config)
    assert square.shape == (size, size)
    assert square.dtype == np.float32
    assert square.min() >= -1
    assert square.max() <= 1


@given(height=st.integers(1, 50), width=st.integers(1, 50))
def test_padding_is_zero_around_the_centred_image(height: int, width: int):
    padded = pad_square(np.ones((height, width), np.float32))
    side = max(height, width)
    assert padded.shape == (side, side)
    assert padded.sum() == height * width
    rows, columns = np.nonzero(padded)
    assert abs(rows.min() - (side - 1 - rows.max())) <= 1
    assert abs(columns.min() - (side - 1 - columns.max())) <= 1


def test_padding_is_black_and_can_be_switched_off(chest):
    source = image(chest(100, 50) / 255 * 0.5 + 0.5)
    padded = to_square(source, TransformConfig(size=100, pad=True, interpolation="area"))
    assert (padded[:, :24] == -1).all()
    assert (padded[:, 26:74] >= 0).all()
    stretched = to_square(source, TransformConfig(size=100, pad=False, interpolation="area"))
    assert (stretched >= 0).all()


def test_area_is_the_mean(chest):
    pixels = (chest(64, 64) / 255).astype(np.float32)
    expected = pixels.reshape(32, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(resize(pixels, (32, 32), "area"), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_resize_agrees_with_torch(chest, mode: str):
    pixels = (chest(90, 70) / 255).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None, None], (40, 40), mode=mode, antialias=True, align_corners=False
    )[0, 0].clamp(0, 1)
    np.testing.assert_allclose(resize(pixels, (40, 40), mode), expected.numpy(), atol=2e-3)


def test_fine_stripes_vanish_and_leave_no_moire():
    stripes = np.tile(np.array([0, 1], np.float32), (256, 128))
    for interpolation in ("bicubic", "area", "bilinear"):
        assert resize(stripes, (64, 64), interpolation).std() < 0.02


def test_nothing_is_mirrored(chest):
    pixels = chest(80, 80) / 255
    pixels[:20, :20] = 1
    pixels[:20, 60:] = 0
    square = to_square(image(pixels), TransformConfig(size=40))
    assert square[:8, :8].mean() > 0.9
    assert square[:8, 32:].mean() < -0.9


def test_spacing_resamples_rows_and_columns_by_their_own():
    pixels = np.random.default_rng(0).random((40, 60)).astype(np.float32)
    assert resample(pixels, (0.278, 0.139), 0.139, "bicubic").shape == (80, 60)
    assert resample(pixels, (0.1395, 0.1385), 0.139, "bicubic") is pixels
    stretched = to_square(image(pixels, (0.278, 0.139)), TransformConfig(size=80, pixel_spacing=0.139))
    assert (stretched[:, :9] == -1).all()
    assert (stretched[4, 12:68] > -1).any()
    untouched = to_square(image(pixels, (0.278, 0.139)), TransformConfig(size=80, pixel_spacing=None))
    assert (untouched[:12] == -1).all()


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("wanted", [None, 0.3, 0.1405])
@pytest.mark.parametrize("spacing", [(0.14, 0.14), (0.2, 0.14), (0.14, 0.3)])
def test_the_spacing_of_the_grid_measures_distances(spacing: tuple[float, float], wanted: float | None, pad: bool):
    """The distance in mm of two bright spots, before and after."""
    y, x = np.mgrid[:333, :401]
    spots = ((y - row) ** 2 + (x - column) ** 2 for row, column in ((80, 90), (250, 310)))
    pixels = np.sum([np.exp(-spot / 128) for spot in spots], axis=0).astype(np.float32)
    radiograph = Radiograph(pixels, spacing, "0", "x", aspect=spacing[0] / spacing[1])
    config = TransformConfig(size=256, pixel_spacing=wanted, pad=pad, interpolation="bilinear")
    square, found = to_square(radiograph, config) + 1, grid_spacing(radiograph, config)
    assert found is not None
    halves = (square[:, :128], square[:, 128:])
    rows, columns = np.mgrid[:256, :256]
    first, second = (
        np.array([np.average(axis, weights=part) for axis in (rows[:, :128], columns[:, at : at + 128])])
        for part, at in zip(halves, (0, 128), strict=True)
    )
    distance = (second - first) * found
    np.testing.assert_allclose(distance, np.array([170, 220]) * spacing, rtol=2e-3)


def test_without_a_stated_spacing_the_grid_has_none():
    assert grid_spacing(image(np.ones((40, 60))), TransformConfig(size=64)) is None


def test_an_absurd_spacing_is_an_error():
    with pytest.raises(ImageError, match="correct the header"):
        resample(np.zeros((4000, 4000), np.float32), (9.0, 9.0), 0.139, "area")


def test_voi_and_inversion_follow_the_config(chest, write_dicom):
    path = write_dicom(chest(), photometric="MONOCHROME1", WindowCenter=100, WindowWidth=50)
    base = {"size": 64, "pixel_spacing": None}
    plain = read_square(path, TransformConfig(**base))
    turned = read_square(path, TransformConfig(**base, invert_monochrome1=False))
    windowed = read_square(path, TransformConfig(**base, voi="window"))
    np.testing.assert_allclose(plain[:, 10:50], -turned[:, 10:50], atol=1e-5)
    assert not np.allclose(plain, windowed, atol=0.1)
    np.testing.assert_array_equal(plain, to_square(read_image(path), TransformConfig(**base)))
