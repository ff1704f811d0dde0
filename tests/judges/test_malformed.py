"""Malformed images are told from real ones, by features and by grey levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from xgem.judges.extractors import open_extractor
from xgem.judges.malformed import FEWEST, Neighbourhood, beyond_any, grey_statistics
from xgem.types import InputError

SIZE = 64


def chests(count: int, seed: int) -> np.ndarray:
    """(count, 64, 64): two dark lungs and a bright heart, of varying shapes and exposures, with fine grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    images = []
    for _ in range(count):
        image = np.full((SIZE, SIZE), rng.uniform(0.55, 0.65))
        for centre in (0.3, 0.7):
            lung = ((x - centre + rng.normal(0, 0.01)) / 0.16) ** 2 + ((y - 0.45) / rng.uniform(0.28, 0.34)) ** 2
            image -= 0.45 * np.exp(-(lung**3))
        image += 0.3 * np.exp(-(((x - 0.56) / 0.13) ** 2 + ((y - 0.65) / 0.14) ** 2))
        image += 0.02 * gaussian_filter(rng.normal(0, 1, image.shape), 1)
        images.append(image * rng.uniform(0.95, 1.05) * 255)
    return np.clip(images, 0, 255).astype(np.uint8)


BROKEN = {
    "haze": lambda images, rng: images * 0.4 + 110,
    "noise": lambda images, rng: images + rng.normal(0, 30, images.shape),
    "burnt out": lambda images, rng: images * 2.2,
    "blur": lambda images, rng: gaussian_filter(images, (0, 5, 5)),
    "negative": lambda images, rng: 255 - images,
}


@pytest.fixture(scope="module")
def finder() -> Any:
    extractor = open_extractor("mobilenet-v2")

    def vectors(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"features": extractor(images), "grey levels": grey_statistics(images)}

    real, held_out = vectors(chests(90, 0)), vectors(chests(100, 1))
    spaces = {name: Neighbourhood.fitted(real[name], held_out[name], scaled=name == "grey levels") for name in real}
    return lambda images: beyond_any(spaces, vectors(images))


def test_real_images_are_kept(finder: Any) -> None:
    found = finder(chests(60, 2))
    assert found["any"].mean() <= 0.1
    assert (found["any"] == (found["features"] | found["grey levels"])).all()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_flagged(finder: Any, name: str) -> None:
    images = BROKEN[name](chests(6, 3).astype(np.float64), np.random.default_rng(4))
    assert finder(np.clip(images, 0, 255).astype(np.uint8))["any"].mean() >= 0.95


def test_the_threshold_keeps_99_of_100() -> None:
    rng = np.random.default_rng(0)
    space = Neighbourhood.fitted(rng.normal(size=(400, 3)), rng.normal(size=(500, 3)), scaled=True)
    kept = 1 - space.beyond(rng.normal(size=(4000, 3))).mean()
    assert kept == pytest.approx(0.99, abs=0.012)
    assert space.beyond(np.full((1, 3), 9.0)).all()


def test_too_few_images_give_no_threshold() -> None:
    with pytest.raises(InputError, match="held-out real images: expected at least"):
        Neighbourhood.fitted(np.zeros((100, 2)), np.zeros((FEWEST - 1, 2)), scaled=False)


def test_grey_statistics_of_a_known_image() -> None:
    image = np.zeros((1, 10, 10), np.uint8)
    image[:, 5:] = 255
    found = grey_statistics(image)[0]
    np.testing.assert_allclose(found[:7], [0, 0, 0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(np.exp(found[7:]), [1 / 9 + 1e-4, 1e-4], rtol=1e-4)
