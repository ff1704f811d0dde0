from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.metrics import fidelity
from xgem.metrics.fidelity import (
    alignment,
    frechet,
    frechet_distance,
    kernel_distance,
    kernel_subsets,
    mean_estimate,
    prdc,
    shuffled_alignment,
)
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
    assert frechet(a, b) == pytest.approx(expected)


def test_matches_the_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(90, 6)) + 0.3
    s1, s2 = np.cov(a.T), np.cov(b.T)
    root = np.real(np.trace(np.asarray(sqrtm(s1 @ s2))))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root
    assert frechet(a, b) == pytest.approx(expected)


@given(st.integers(0, 1000), st.integers(3, 20), st.integers(2, 40))
def test_invariants(seed: int, d: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(n + 3, d)) + 1
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    distance = frechet(a, b)
    assert frechet(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet(b, a) == pytest.approx(distance)
    assert frechet(a @ q + 5, b @ q + 5) == pytest.approx(distance)
    assert frechet(a * 3, b * 3) == pytest.approx(distance * 9)


def test_a_distance_clear_of_the_floor_of_real_against_real() -> None:
    rng = np.random.default_rng(2)
    training, real, far = rng.normal(size=(60, 8)), rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) + 1
    floor, found = frechet_distance(real, training), frechet_distance(real, far)
    assert floor.high < found.low < found.value < found.high
    assert found.value == pytest.approx(frechet(real, far))


def test_frechet_refuses_what_it_cannot_use() -> None:
    with pytest.raises(InputError, match=r"\(n, d\)"):
        frechet(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(InputError, match="at least 2"):
        frechet(np.zeros((1, 3)), np.zeros((4, 3)))


def test_more_samples_than_dimensions_or_fewer_give_the_same_covariance() -> None:
    """Below and above d the root is made in two ways; both are the definition."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(5)
    mix = rng.normal(size=(12, 12))
    a, b = (
        (rng.normal(size=(11, 12)) @ mix).astype(np.float32),
        (rng.normal(size=(9000, 12)) @ mix + 1).astype(np.float32),
    )
    s1, s2 = np.cov(a.T.astype(np.float64)), np.cov(b.T.astype(np.float64))
    root = np.real(np.trace(np.asarray(sqrtm(s1 @ s2))))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root
    assert frechet(a, b) == pytest.approx(expected, rel=1e-4)


def test_frechet_matches_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(300, 16)), rng.normal(size=(200, 16)) * 1.2 + 0.1
    parts = [torch.from_numpy(part) for part in (a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))]
    assert frechet(a, b) == pytest.approx(float(_compute_fid(*parts)), rel=1e-6)


def test_interval_of_a_frechet_distance_holds_the_value_and_shrinks_with_n(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "ROWS", 100)
    rng = np.random.default_rng(7)

    def width(n: int) -> float:
        real, generated = rng.normal(size=(n, 4)), rng.normal(size=(n + 10, 4)) + 0.8
        found = frechet_distance(real, generated, draws=200)
        assert found.low < found.value < found.high
        assert found.n == n
        return found.high - found.low

    assert width(400) / width(6400) == pytest.approx(4, rel=0.35)
    same = rng.normal(size=(50, 4))
    assert frechet_distance(same, same).value == pytest.approx(0, abs=1e-9)
    assert frechet_distance(same, same).low == 0


@pytest.mark.parametrize(
    ("n", "m", "d", "shift", "wider"),
    [(300, 300, 3, 1.0, 1.0), (300, 100, 3, 1.0, 1.0), (120, 120, 100, 0.05, 1.5)],
    ids=["few dimensions", "unequal sets", "many dimensions, near the floor"],
)
@pytest.mark.parametrize("rows", [1000, 90])
def test_the_interval_is_the_spread_of_repeated_experiments(
    n: int, m: int, d: int, shift: float, wider: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New samples of the same distributions fall as widely as it says, in rows as in groups; never by far less."""
    monkeypatch.setattr(fidelity, "ROWS", rows)
    rng = np.random.default_rng(8)

    def sets() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + shift

    spread = 3.92 * np.std([frechet(*sets()) for _ in range(150)])
    widths = [found.high - found.low for found in (frechet_distance(*sets(), draws=60) for _ in range(4))]
    assert np.mean(widths) == pytest.approx(wider * spread, rel=0.3)


def test_three_images_have_a_distance_and_no_interval() -> None:
    rng = np.random.default_rng(21)
    found = frechet_distance(rng.normal(size=(3, 2)), rng.normal(size=(9, 2)))
    assert found.value > 0
    assert np.isnan(found.high)


@pytest.mark.filterwarnings("error")
def test_two_images_have_a_kernel_distance() -> None:
    """Half of the draws hold one image twice and have no pairs; they are left out."""
    x, y = np.eye(2), np.eye(2) * 3
    found = kernel_distance(x, y, draws=100)
    assert found.value == pytest.approx(explicit_mmd(x, y))
    assert found.n == 2


def explicit_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, eq. 3, term by term."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m)


def test_kernel_distance_is_the_unbiased_discrepancy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity.neighbours, "BLOCK", 7)
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 5)) + 0.5
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(explicit_mmd(x, y))
    assert found.low < found.value < found.high
    assert kernel_subsets(x, y, subset_size=None, subsets=3) == pytest.approx([explicit_mmd(x, y)] * 3)


def test_kernel_distance_matches_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(150, 24)), rng.normal(size=(150, 24)) * 1.3
    expected = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert kernel_distance(x, y).value == pytest.approx(expected)
    single = kernel_distance(x.astype(np.float32), y.astype(np.float32)).value
    assert single == pytest.approx(expected, abs=1e-5)


def test_subsets_of_larger_sets_scatter_about_the_whole_distance() -> None:
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(700, 8)), rng.normal(size=(500, 8)) + 0.3
    parts = kernel_subsets(x, y, subsets=80, subset_size=100)
    whole = kernel_subsets(x[:500], y, subset_size=None)[0]
    assert parts.std() > 0
    assert abs(parts.mean() - whole) < 4 * parts.std() / np.sqrt(80) + 0.02
    assert (kernel_subsets(x, y, subsets=3, subset_size=100) == parts[:3]).all()
    assert kernel_distance(x, y, subset_size=100).n == 500


def test_kernel_interval_covers_zero_for_equal_distributions() -> None:
    rng = np.random.default_rng(12)
    hits = 0
    for _ in range(30):
        found = kernel_distance(rng.normal(size=(80, 4)), rng.normal(size=(80, 4)), draws=200)
        hits += found.low <= 0 <= found.high
    assert hits >= 24


@pytest.mark.parametrize(("n", "m", "d"), [(80, 120, 4), (150, 60, 16), (400, 400, 32)])
def test_prdc_equals_the_package(n: int, m: int, d: int, capsys: pytest.CaptureFixture[str]) -> None:
    compute_prdc = pytest.importorskip("prdc").compute_prdc
    rng = np.random.default_rng(13)
    real, generated = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 0.9 + 0.2
    found = prdc(real, generated)
    expected = compute_prdc(real, generated, 5)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name).value == pytest.approx(expected[name], abs=1e-12)
    assert (found.precision.n, found.density.n, found.recall.n, found.coverage.n) == (m, m, n, n)
    assert found.recall.low < found.recall.value < found.recall.high


def test_prdc_of_identical_sets_is_one() -> None:
    real = np.random.default_rng(14).normal(size=(90, 6)).astype(np.float32)
    found = prdc(real, real.copy())
    assert [one.value for one in (found.precision, found.recall, found.density, found.coverage)] == [1, 1, 1, 1]


def test_prdc_sees_a_dropped_mode_and_an_added_one() -> None:
    rng = np.random.default_rng(15)
    near, far = rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 30
    real = np.concatenate([near, far])
    generated = rng.normal(size=(400, 4))
    dropped = prdc(real, generated)
    assert dropped.precision.value > 0.8
    assert dropped.recall.value < 0.55
    assert dropped.coverage.value < 0.55
    added = prdc(near, np.concatenate([generated[:200], far + 60]))
    assert added.precision.value == pytest.approx(0.5, abs=0.1)
    assert added.recall.value > 0.8


@given(st.integers(0, 300), st.floats(0.1, 20), st.integers(7, 40))
def test_invariants_of_prdc_and_kernel(seed: int, scale: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, 3)), rng.normal(size=(n + 2, 3)) * 1.5
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    found = prdc(a, b, draws=10)
    moved = prdc((a @ q * scale + 3)[rng.permutation(n)], (b @ q * scale + 3)[rng.permutation(n + 2)], draws=10)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name).value == pytest.approx(getattr(moved, name).value, abs=1e-9)
    swapped = prdc(b, a, draws=10)
    assert swapped.precision.value == pytest.approx(found.recall.value)
    whole = kernel_subsets(a, b[:n], subsets=1, subset_size=None)
    assert kernel_subsets(b[:n] @ q, a @ q, subsets=1, subset_size=None) == pytest.approx(whole)
    # Every sample twice: the same Gaussian but for n - 1 in its covariance
    twice = frechet(np.repeat(a, 2, axis=0), np.repeat(b, 2, axis=0))
    assert twice == pytest.approx(frechet(a, b), rel=0.2)


def test_too_few_images_say_how_many_are_needed() -> None:
    four = np.random.default_rng(16).normal(size=(4, 3))
    with pytest.raises(InputError, match="at least 6"):
        prdc(four, four)
    with pytest.raises(InputError, match="at least 2"):
        kernel_distance(four[:1], four)
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(four[:1], four)


def test_alignment_is_a_mean_cosine_and_its_control_that_of_others() -> None:
    rng = np.random.default_rng(17)
    texts = rng.normal(size=(30, 5))
    images = texts * rng.uniform(0.1, 9, size=(30, 1))
    found = alignment(images, texts)
    assert found.value == pytest.approx(1)
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    others = (unit @ unit.T)[~np.eye(30, dtype=bool)].mean()
    control = shuffled_alignment(images, texts)
    assert control.value == pytest.approx(others)
    assert control.low < control.value < control.high < found.low
    assert alignment(-images, texts).value == pytest.approx(-1)
    with pytest.raises(InputError, match="length 0"):
        alignment(np.zeros((3, 5)), texts[:3])


def test_mean_estimate_is_the_bootstrap_of_a_mean() -> None:
    values = np.random.default_rng(18).normal(size=400) * 2 + 5
    found = mean_estimate(values)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(3.92 * values.std() / 20, rel=0.1)


def test_the_interval_of_the_kernel_distance_is_that_of_the_whole_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap resamples at most ``ROWS`` images of a side; its spread is scaled to the sets' size."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 8)), rng.normal(0.6, size=(600, 8))
    widths: dict[int, float] = {}
    for rows in (150, 600):
        monkeypatch.setattr("xgem.metrics.fidelity.ROWS", rows)
        found = [kernel_distance(x, y, subsets=1, draws=300, seed=seed) for seed in range(8)]
        widths[rows] = float(np.mean([one.high - one.low for one in found]))
    assert widths[150] == pytest.approx(widths[600], rel=0.2)  # without the scale it would be twice as wide
