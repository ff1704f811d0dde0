"""Resampling sentences and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from xgem.metrics.bootstrap import Bootstrap, CrossedBootstrap
from xgem.types import InputError


def test_a_cell_counts_as_often_as_its_row_times_its_column() -> None:
    crossed = CrossedBootstrap(3, 4, draws=50, seed=1)
    assert crossed.n == 12
    assert crossed.weights.shape == (51, 12)
    assert (crossed.weights[0] == 1).all()
    assert (crossed.weights.sum(axis=1) == 12).all()
    rows, columns = crossed.row_weights[7], crossed.column_weights[7]
    np.testing.assert_array_equal(crossed.weights[7].reshape(3, 4), np.outer(rows, columns))


def test_what_differs_between_sentences_is_less_certain_than_cells_would_have_it() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=12), 20)  # one value for all seeds of a sentence
    crossed = CrossedBootstrap(12, 20, draws=400).mean(values).estimate()
    cells = Bootstrap(240, draws=400).mean(values).estimate()
    assert crossed.value == pytest.approx(cells.value)
    assert crossed.high - crossed.low > 3 * (cells.high - cells.low)


def test_one_row_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 x 2"):
        CrossedBootstrap(1, 4)
