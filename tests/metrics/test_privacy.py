"""Distances to training images against brute force, and the test of memorisation against planted copies."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from xgem.metrics import privacy
from xgem.metrics.memorisation import authenticity, memorisation_test
from xgem.metrics.privacy import (
    aligned_distance,
    count_above,
    estimate,
    latent_distance,
    per_prompt,
    pixel_distance,
    reidentification_score,
)
from xgem.types import InputError, ShapeError

Images = NDArray[np.uint8]


def smooth(n: int, seed: int, size: int = 32) -> Images:
    """Smooth random images, as unlike each other as radiographs of different patients are."""
    rng = np.random.default_rng(seed)
    small = rng.normal(128, 45, (n, 6, 6)).clip(0, 255).astype(np.uint8)
    resized = [Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in small]
    noise = rng.normal(0, 3, (n, size, size))
    return (np.stack([np.asarray(one) for one in resized]) + noise).clip(0, 255).astype(np.uint8)


def brute(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    x, y = (one.reshape(len(one), -1).astype(np.float64) for one in (a, b))
    table = np.sqrt(np.square(x[:, None] - y[None]).mean(axis=2))
    return table.min(axis=1), table.argmin(axis=1)


# ------------------------------------------------------------------------------------------------------ distances


def test_black_against_white_is_255_and_a_copy_is_0() -> None:
    black, white = np.zeros((1, 4, 5), np.uint8), np.full((1, 4, 5), 255, np.uint8)
    assert pixel_distance(black, white).values == 255
    assert pixel_distance(white, black).values == 255
    assert pixel_distance(white, np.concatenate([black, white])).values == 0
    assert pixel_distance(white, np.concatenate([black, white])).rows == 1


def test_a_grey_level_is_1_whatever_its_sign() -> None:
    """uint8 arrays would have -1 as 255."""
    darker, lighter = np.full((1, 4, 4), 100, np.uint8), np.full((1, 4, 4), 101, np.uint8)
    assert pixel_distance(darker, lighter).values == 1
    assert pixel_distance(lighter, darker).values == 1
    assert pixel_distance(darker, lighter, own_prompt=[0], wraparound=True).values == 1
    assert pixel_distance(lighter, darker, own_prompt=[0], wraparound=True).values == 255
    assert pixel_distance(lighter, darker, own_prompt=[0]).values == 1


def test_the_published_wraparound_is_numpys() -> None:
    a, b = smooth(3, 0), smooth(3, 1)
    expected = [np.linalg.norm(y - x) / np.sqrt(x.size) for x, y in zip(a, b, strict=True)]
    found = pixel_distance(a, b, own_prompt=[0, 1, 2], wraparound=True).values
    np.testing.assert_allclose(found, expected)
    with pytest.raises(InputError, match="own_prompt"):
        pixel_distance(a, b, wraparound=True)


@pytest.mark.parametrize("block", [1, 3, 7, 2048])
def test_pixel_distance_is_brute_force_in_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generated, training = smooth(9, 0, 16), smooth(23, 1, 16)
    values, rows = brute(generated, training)
    monkeypatch.setattr(privacy, "_BLOCK_ROWS", block)
    for given in (
        training,
        [training[:4], training[4:4], training[4:]],
        (training[i : i + 5] for i in range(0, 23, 5)),
    ):
        found = pixel_distance(generated, given)
        np.testing.assert_array_equal(found.values, values)  # sums of whole numbers: exact
        np.testing.assert_array_equal(found.rows, rows)


@pytest.mark.parametrize("block", [2, 5, 2048])
def test_latent_distance_is_brute_force_over_the_root_of_the_dimension(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    generated, training = rng.normal(size=(8, 12)).astype(np.float32), rng.normal(size=(11, 12)).astype(np.float32)
    monkeypatch.setattr(privacy, "_BLOCK_ROWS", block)
    values, rows = brute(generated, training)
    found = latent_distance(generated, training)
    np.testing.assert_allclose(found.values, values, rtol=1e-12)
    np.testing.assert_array_equal(found.rows, rows)
    assert latent_distance(np.zeros((1, 768)), np.ones((1, 768))).values == pytest.approx(1)


def test_a_copy_among_large_features_is_at_0() -> None:
    """Where |x|^2 + |y|^2 - 2xy alone would leave a rounding error."""
    training = np.random.default_rng(0).normal(1e4, 1, (20, 64))
    found = latent_distance(training[[7]], training)
    assert (found.values[0], found.rows[0]) == (0, 7)


@pytest.mark.parametrize("block", [4, 2048])
def test_aligned_distance_is_brute_force_over_windows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generated, training = smooth(3, 0, 12), smooth(10, 1, 12)
    monkeypatch.setattr(privacy, "_BLOCK_ROWS", block)

    def standard(x: Images) -> NDArray[np.float64]:
        return (x - x.mean()) / x.std()

    table = [
        [
            min(
                np.sqrt(np.square(standard(x[i : i + 10, j : j + 10]) - standard(y[1:11, 1:11])).mean())
                for i in range(3)
                for j in range(3)
            )
            for y in training
        ]
        for x in generated
    ]
    found = aligned_distance(generated, training, margin=1)
    np.testing.assert_allclose(found.values, np.min(table, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found.rows, np.argmin(table, axis=1))
    np.testing.assert_array_equal(
        aligned_distance(training, training, margin=1, exclude=range(10)).rows == range(10), False
    )


def test_shifts_and_exposure_do_not_hide_a_copy() -> None:
    training = smooth(20, 0)
    moved = np.roll(training[[5, 9]], (2, -1), axis=(1, 2))
    changed = (moved.astype(np.float64) * 0.6 + 20).round().astype(np.uint8)
    found = aligned_distance(changed, training)
    np.testing.assert_array_equal(found.rows, [5, 9])
    assert found.values.max() < 0.05
    assert pixel_distance(changed, training).values.min() > 20
    assert aligned_distance(255 - training[:1], training[:1], margin=0).values == pytest.approx(2, abs=1e-3)
    with pytest.raises(InputError, match="give larger ones"):
        aligned_distance(training, training, margin=16)


@pytest.mark.parametrize("block", [3, 2048])
def test_reidentification_is_the_highest_score(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    generated, training = rng.random((7, 16)), rng.random((10, 16))
    weight, bias = rng.normal(size=16), 0.3
    table = 1 / (1 + np.exp(-(np.abs(generated[:, None] - training[None]) @ weight + bias)))
    monkeypatch.setattr(privacy, "_BLOCK_ROWS", block)
    found = reidentification_score(generated, training, weight, bias)
    np.testing.assert_allclose(found.values, table.max(axis=1))
    np.testing.assert_array_equal(found.rows, table.argmax(axis=1))
    own = reidentification_score(generated, training, weight, bias, own_prompt=[9, 1, 2, 3, 4, 5, 0])
    np.testing.assert_allclose(own.values, table[range(7), own.rows])


def test_own_prompt_misses_copies_of_other_images() -> None:
    training = smooth(6, 0)
    generated = training[[3, 1]]
    np.testing.assert_array_equal(pixel_distance(generated, training).values, [0, 0])
    own = pixel_distance(generated, training, own_prompt=[0, 1])
    assert own.values[0] > 20
    assert own.values[1] == 0
    np.testing.assert_array_equal(own.rows, [0, 1])
    features = training.reshape(6, -1) / 255
    assert latent_distance(features[[3]], features, own_prompt=[0]).values > 0.05


def test_excluding_itself() -> None:
    training = smooth(6, 0, 8)
    found = pixel_distance(training, training, exclude=np.arange(6))
    table = np.sqrt(np.square(training[:, None].astype(float) - training[None]).mean(axis=(2, 3)))
    np.fill_diagonal(table, np.inf)
    np.testing.assert_array_equal(found.values, table.min(axis=1))
    with pytest.raises(InputError, match="only one"):
        pixel_distance(training[:1], training[:1], exclude=[0])


def test_what_is_refused() -> None:
    images = smooth(2, 0)
    with pytest.raises(ShapeError, match=r"expected \(n, h, w\)"):
        pixel_distance(images[0], images)
    with pytest.raises(InputError, match="expected uint8"):
        pixel_distance(images.astype(np.int64), images)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="training of shape"):
        pixel_distance(images, images[:, :16])
    with pytest.raises(InputError, match="no training images"):
        pixel_distance(images, [])
    with pytest.raises(InputError, match="rows from 0 to 1"):
        pixel_distance(images, images, own_prompt=[0, 2])
    with pytest.raises(InputError, match="NaN"):
        latent_distance(np.full((1, 3), np.nan), np.zeros((1, 3)))
    with pytest.raises(ShapeError, match="one per feature"):
        reidentification_score(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(2), 0.0)


# -------------------------------------------------------------------------------------------------------- summaries


def test_the_worst_over_the_seeds_of_a_prompt() -> None:
    values, prompts = np.array([3.0, 1.0, 5.0, 2.0]), ["b", "a", "b", "a"]
    np.testing.assert_array_equal(per_prompt(values, prompts, np.min), [3, 1])
    np.testing.assert_array_equal(per_prompt(values, prompts, np.max), [5, 2])
    with pytest.raises(ShapeError, match="one prompt per value"):
        per_prompt(values, prompts[:3], np.min)


def test_estimates() -> None:
    values = np.array([0.1, 0.85, 0.86, 0.9])
    assert estimate(values, count_above()).value == 2  # 0.85 is not above 0.85
    many = np.random.default_rng(0).normal(3, 1, 400)
    found = estimate(many)
    assert found.low < 3 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert estimate(many, np.max).high == many.max()
    assert estimate(many, seed=4) == estimate(many, seed=4)


def test_seeds_of_a_prompt_are_drawn_together() -> None:
    """Ten equal values a prompt are one value."""
    values = np.random.default_rng(0).normal(size=40)
    alone, together = estimate(values), estimate(values.repeat(10), groups=list(np.arange(40).repeat(10)))
    assert together.value == pytest.approx(alone.value)
    assert together.interval == pytest.approx(alone.interval)
    assert together.n == 400
    naive = estimate(values.repeat(10))
    assert naive.high - naive.low < (together.high - together.low) / 2
    with pytest.raises(InputError, match="1 independent values"):
        estimate(values, groups=["a"] * 40)


# ----------------------------------------------------------------------------------------------------- memorisation


def recompressed(images: Images) -> Images:
    out = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=60)
        out.append(np.asarray(Image.open(stream)))
    return np.stack(out)


def shifted_and_brighter(images: Images) -> Images:
    moved = np.roll(images, 1, axis=2)
    return (moved.astype(np.int64) + 8).clip(0, 255).astype(np.uint8)


TRAINING, HELD_OUT, FRESH = smooth(300, 0), smooth(150, 1), smooth(150, 2)


@pytest.mark.parametrize(
    "copy", [np.array, recompressed, shifted_and_brighter], ids=["exact", "recompressed", "shifted and brighter"]
)
def test_a_few_planted_copies_are_caught(copy: Any) -> None:
    generated = np.concatenate([copy(TRAINING[:12]), FRESH[12:]])
    closest = pixel_distance(generated, TRAINING)
    np.testing.assert_array_equal(closest.rows[:12], np.arange(12))
    found = memorisation_test(closest.values, pixel_distance(HELD_OUT, TRAINING).values, draws=200)
    assert found.p_value < 0.01
    assert found.p_near < found.p_shift  # too few to shift the whole
    assert found.share.value >= 12 / 150
    assert found.share.low > found.quantile


def test_unseen_real_images_are_not_caught() -> None:
    held_out = pixel_distance(HELD_OUT, TRAINING).values
    found = memorisation_test(pixel_distance(FRESH, TRAINING).values, held_out, draws=200)
    assert found.p_value > 0.2
    assert found.nearer.low < 0.5 < found.nearer.high
    assert found.share.value < 0.05


def test_noisy_copies_of_everything_shift_the_whole() -> None:
    noise = np.random.default_rng(3).normal(0, 20, (150, 32, 32))
    generated = (TRAINING[:150] + noise).clip(0, 255).astype(np.uint8)
    found = memorisation_test(
        pixel_distance(generated, TRAINING).values, pixel_distance(HELD_OUT, TRAINING).values, draws=50
    )
    assert found.p_shift < 1e-6
    assert found.nearer.value > 0.9


def test_the_larger_set_is_cut_to_equal_n() -> None:
    rng = np.random.default_rng(0)
    found = memorisation_test(rng.random(500), rng.random(40), draws=20)
    assert found.n == found.nearer.n == found.share.n == 40
    with pytest.raises(InputError, match="at least 8"):
        memorisation_test(rng.random(7), rng.random(40))


def test_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(1)
    p = [memorisation_test(rng.random(60), rng.random(60), draws=1).p_value for _ in range(400)]
    assert 0 < np.mean(np.array(p) < 0.1) < 0.14


def test_precedence_is_enumerated() -> None:
    """Of eight and eight in random order, all generations come first in one of 12870 orders."""
    p = memorisation_test(np.arange(8.0), np.arange(8.0) + 100, draws=1).p_near
    assert p == pytest.approx(1 / 12870)


def test_authenticity_of_copies_and_of_strangers() -> None:
    rows = np.arange(20)
    neighbours = pixel_distance(TRAINING[rows], TRAINING, exclude=rows).values
    copies = (TRAINING[rows].astype(np.int64) + 2).clip(0, 255).astype(np.uint8)
    assert authenticity(pixel_distance(copies, TRAINING).values, neighbours, draws=20).value == 0
    assert authenticity(neighbours + 1, neighbours, draws=20).value == 1
