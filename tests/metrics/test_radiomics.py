"""Radiomic features against pyradiomics 3.0.1, and the Frechet radiomics distance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xgem.metrics.radiomics import frechet_radiomics, radiomics
from xgem.types import InputError, ShapeError

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "radiomics.json").read_text())
"""What pyradiomics 3.0.1 gives for these images by the settings of FRD version 1, the mask without its first pixel."""


def drawn(seed: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    grey = 120 + 60 * np.sin(x / 5 + seed) * np.cos(y / 7) + rng.normal(0, 12, shape)
    return np.clip(grey, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", GOLDEN)
def test_features_are_those_of_pyradiomics(size: str) -> None:
    height, width = map(int, size.split("x"))
    expected = GOLDEN[size]["features"]
    found = radiomics(drawn(GOLDEN[size]["seed"], (height, width)))
    assert len(expected) == 385
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_brightness_and_contrast_do_not_matter_and_texture_does() -> None:
    image = drawn(3, (32, 32)).astype(np.float64)
    same, turned = radiomics(0.5 * image + 20), radiomics(image[::-1])
    for name, value in radiomics(image).items():
        assert same[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    rough = radiomics(image + np.random.default_rng(0).normal(0, 60, image.shape))
    assert rough["original_glcm_Contrast"] > 2 * same["original_glcm_Contrast"]
    assert turned["original_firstorder_Entropy"] == pytest.approx(same["original_firstorder_Entropy"])


@pytest.mark.parametrize("image", [np.zeros((8, 40)), np.zeros((40, 40, 3)), np.full((40, 40), 7.0)])
def test_images_without_texture_are_refused(image: NDArray[Any]) -> None:
    with pytest.raises((ShapeError, InputError), match="expected"):
        radiomics(image)


def test_the_distance_of_shifted_features_in_closed_form() -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(5, 3, (400, 6))
    shifted = real + 2 * real.std(axis=0)  # two standard deviations in each of six features: 6 * 2^2
    assert frechet_radiomics(real, shifted).value == pytest.approx(np.log(24), abs=1e-6)
    scaled = real * np.array([1, 10, 100, 1e3, 1e-3, 1])
    other = shifted * np.array([1, 10, 100, 1e3, 1e-3, 1])
    assert frechet_radiomics(scaled, other).value == pytest.approx(np.log(24), abs=1e-6)
    estimate = frechet_radiomics(real[:200], rng.normal(5.5, 3, (300, 6)))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 200


def test_features_that_do_not_vary_are_left_out() -> None:
    rng = np.random.default_rng(2)
    real, generated = rng.normal(size=(50, 3)), rng.normal(0.5, size=(50, 3))
    constant = [np.column_stack([one, np.full(50, 4.0)]) for one in (real, generated)]
    assert frechet_radiomics(*constant).value == pytest.approx(frechet_radiomics(real, generated).value)
    with pytest.raises(InputError, match="no radiomic feature varies"):
        frechet_radiomics(np.ones((5, 2)), generated[:5, :2])
    with pytest.raises(InputError, match="infinite"):
        frechet_radiomics(real, real)
    with pytest.raises(InputError, match="at least 2"):
        frechet_radiomics(real[:1], generated)
