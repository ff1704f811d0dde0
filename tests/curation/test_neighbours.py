"""Fingerprints, their index, and alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.curation.conftest import Pixels, smooth
from xgem.curation.align import correlations
from xgem.curation.fingerprint import ORIENTATIONS, Projection, oriented, said, thumbnail, trimmed
from xgem.curation.neighbours import Index
from xgem.types import CheckpointError


def floats(image: Pixels) -> np.ndarray:
    return image.astype(np.float32) / 255


def test_a_thumbnail_sees_neither_brightness_nor_borders(frontals: list[Pixels]) -> None:
    plain = thumbnail(floats(frontals[0])).astype(int)
    gamma = thumbnail((0.1 + 0.6 * floats(frontals[0]) ** 0.7).astype(np.float32)).astype(int)
    padded = thumbnail(np.pad(floats(frontals[0]), ((20, 20), (50, 0)))).astype(int)
    assert np.abs(plain - gamma).mean() < 4
    assert np.abs(plain - padded).mean() < 4
    assert trimmed(np.zeros((40, 50), np.float32)).shape == (40, 50)


def test_orientations_of_thumbnails_are_those_of_pictures(frontals: list[Pixels]) -> None:
    image = floats(frontals[1])[:160, :160]
    for number in range(ORIENTATIONS):
        changed = np.rot90(image, number % 4)
        changed = changed[:, ::-1] if number & 4 else changed
        changed = 1 - changed if number & 8 else changed
        expected = oriented(thumbnail(image)[None], number)[0].astype(int)
        assert np.abs(thumbnail(np.ascontiguousarray(changed)).astype(int) - expected).mean() < 3
    assert said(0) == ""
    assert said(13) == "rotated by 90 degrees, mirrored, negative"


def test_the_index_finds_what_comparing_all_finds() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 20, (900, 64)).astype(np.float32)
    copies = vectors[:50] + rng.normal(0, 1, (50, 64)).astype(np.float32)
    index = Index.build(np.concatenate([vectors, copies]), np.arange(950) * 2)
    place, number, apart = index.near(copies, 30)
    expected = {(k, 2 * k) for k in range(50)} | {(k, 1800 + 2 * k) for k in range(50)}
    assert set(zip(place.tolist(), number.tolist(), strict=True)) == expected
    assert apart.max() < 30
    assert len(Index.build(vectors[:0], np.arange(0)).near(copies, 30)[0]) == 0


def test_the_index_is_written_as_it_is(tmp_path: Path) -> None:
    index = Index.build(np.random.default_rng(1).normal(0, 1, (30, 64)).astype(np.float32), np.arange(30))
    index.save(tmp_path / "index.npz")
    again = Index.load(tmp_path / "index.npz")
    assert all(np.array_equal(value, vars(again)[name]) for name, value in vars(index).items())


def test_a_crop_is_laid_over_its_picture_and_another_picture_is_not(frontals: list[Pixels]) -> None:
    whole = np.stack([thumbnail(floats(one)) for one in frontals])
    crops = np.stack([thumbnail(floats(one[6:-4, 3:-9])) for one in frontals])
    assert correlations(whole, crops).min() > 0.75
    assert correlations(whole, np.roll(whole, 1, axis=0)).max() < 0.75
    drawn = np.stack([thumbnail(floats(smooth(np.random.default_rng(seed)))) for seed in (1, 2)])
    assert correlations(drawn[:1], drawn[1:]).max() < 0.75


def test_another_projection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a projection of fingerprints"):
        Projection.load(tmp_path / "none.safetensors")
    save_file({"directions": np.zeros((3, 4), np.float32), "mean": np.zeros(4, np.float32)}, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=r"directions \(3, 4\); fit them again"):
        Projection.load(tmp_path / "p.safetensors")
