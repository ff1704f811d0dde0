from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.metrics import neighbours
from xgem.metrics.neighbours import nearest, overlap, squared_radii
from xgem.types import InputError


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 16)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(axis=2))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_all_distances(offset: float, dtype: type, small_blocks: None) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(90, 5)) + offset).astype(dtype), (rng.normal(size=(130, 5)) + offset).astype(dtype)
    table = distances(a, b)
    found, index = nearest(a, b, 3)
    np.testing.assert_array_equal(index, np.argsort(table, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(found, np.sort(table, axis=1)[:, :3], rtol=1e-12)
    own = distances(a, a)
    np.testing.assert_allclose(squared_radii(a, 4), np.sort(own, axis=1)[:, 4] ** 2, rtol=1e-12)


def test_ties_are_strict_and_duplicates_have_no_ball(small_blocks: None) -> None:
    line = np.arange(40, dtype=np.float32)[:, None]
    radii = squared_radii(line, 2)
    assert radii.tolist() == [4.0] + [1.0] * 38 + [4.0]
    found = overlap(line, line + 1, radii, radii)
    # Each generated point meets its own place, whose ball is open: the neighbours at exactly 1 do not count,
    # save for the balls of the two ends, which reach to 2.
    assert found.balls.tolist() == [2] + [1] * 36 + [2, 1, 1]
    twice = np.repeat(line, 3, axis=0)
    assert not squared_radii(twice, 2).any()
    assert not overlap(twice, twice, squared_radii(twice, 2), squared_radii(twice, 2)).balls.any()


def test_near_ties_are_decided_in_double_precision(small_blocks: None) -> None:
    """Points that differ by less than float32 can tell about the centre of a far spread set."""
    rng = np.random.default_rng(1)
    far = rng.normal(size=(60, 3)) * 1e4
    close = 1 + np.arange(40)[:, None] * 1e-7 * np.ones(3)
    points = np.concatenate([far, close])
    order = np.argsort(distances(points, points), axis=1, kind="stable")[:, 1:4]
    expected = np.take_along_axis(distances(points, points), order, 1)[:, 2] ** 2
    np.testing.assert_allclose(squared_radii(points, 3), expected, rtol=1e-9)
    np.testing.assert_array_equal(nearest(close + 1e-8, points, 1)[1][:, 0], np.arange(60, 100))


@given(st.integers(0, 500), st.integers(2, 50), st.integers(1, 4), st.integers(1, 4))
def test_any_small_sets(seed: int, n: int, d: int, k: int) -> None:
    """Coarse whole numbers: many exact ties and duplicates."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, (n + k, d)).astype(np.float32), rng.integers(0, 4, (n + k + 3, d)).astype(np.float32)
    ra, rb = squared_radii(a, k), squared_radii(b, k)
    np.testing.assert_array_equal(ra, np.rint(np.sort(distances(a, a), axis=1)[:, k] ** 2))
    table = np.rint(distances(a, b) ** 2)
    found = overlap(a, b, ra, rb)
    inside = table < ra[:, None]
    np.testing.assert_array_equal(found.balls, inside.sum(axis=0))
    np.testing.assert_array_equal(found.covered, inside.any(axis=1))
    np.testing.assert_array_equal(found.reached, (table < rb[None]).any(axis=1))


def test_memory_is_that_of_a_block_not_of_the_sets_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 256)
    monkeypatch.setattr(neighbours, "_PAIRS", 1 << 16)
    rng = np.random.default_rng(2)
    a = rng.normal(size=(6000, 8)).astype(np.float32)
    tracemalloc.start()
    radii = squared_radii(a, 5)
    overlap(a, a, radii, radii)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 6000 * 4 / 15  # a matrix of float32 has 144 MB


def test_refusals() -> None:
    good = np.zeros((6, 2))
    with pytest.raises(InputError, match="needs at least 6"):
        squared_radii(good[:5], 5)
    with pytest.raises(InputError, match="need at least 7"):
        nearest(good, good, 7)
    with pytest.raises(InputError, match=r"\(n, d\)"):
        nearest(good, np.zeros((6, 3)))
    with pytest.raises(InputError, match="finite"):
        nearest(good, np.full((6, 2), np.nan))
