"""The random parts of fidelity measures: their seeds decide them, and what is drawn is drawn without replacement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xgem.metrics import fidelity
from xgem.metrics.fidelity import frechet, frechet_distance, kernel_distance, kernel_subsets


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, 4))


REAL, GENERATED = features(60, 0), features(50, 1, 0.5)


@pytest.mark.parametrize("rows", [fidelity.ROWS, 55, 20])
def test_the_seed_decides_the_interval_of_a_frechet_distance(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped: list[int] = []
    of = fidelity._Groups.of

    def counted(values: Any, rng: np.random.Generator) -> Any:
        grouped.append(len(values))
        return of(values, rng)

    monkeypatch.setattr(fidelity, "ROWS", rows)
    monkeypatch.setattr(fidelity._Groups, "of", counted)
    one, again, other = (frechet_distance(REAL, GENERATED, seed=seed) for seed in (3, 3, 4))
    assert (one, one.draws.tolist()) == (again, again.draws.tolist())  # type: ignore[union-attr]
    assert one.interval != other.interval
    assert one.value == other.value == pytest.approx(frechet(REAL, GENERATED))
    assert grouped == [n for _ in range(3) for n in (50, 60) if n > rows]  # only what has more rows is in groups


@pytest.mark.parametrize(
    "measure",
    [
        lambda seed: kernel_distance(REAL, GENERATED, subsets=3, subset_size=20, seed=seed).interval,
        lambda seed: tuple(kernel_subsets(REAL, GENERATED, subsets=3, subset_size=20, seed=seed)),
        lambda seed: fidelity.mean_estimate(REAL[:, 0], seed=seed).interval,
    ],
    ids=["kernel distance", "kernel subsets", "mean"],
)
def test_the_seed_decides_what_is_drawn(measure: Callable[[int], tuple[float, ...]]) -> None:
    assert measure(3) == measure(3) != measure(4)


def test_subsets_as_large_as_a_set_take_each_of_its_images_once() -> None:
    subsets = kernel_subsets(REAL[:50], GENERATED, subsets=4, subset_size=None)
    assert subsets == pytest.approx(np.full(4, kernel_subsets(REAL[:50], GENERATED, subsets=1)[0]))
