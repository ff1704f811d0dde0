from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgem.metrics.agreement import cosine
from xgem.metrics.bootstrap import Bootstrap, derangements
from xgem.metrics.consistency import compare_cosine, compare_hamming, cosines, hamming_distances
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import InputError


def hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, n) distances of set i of the first and set j of the second, pair by pair."""
    return np.array([[(one != other).sum() for other in second] for one in first], dtype=np.float64)


def test_cosine_by_hand() -> None:
    assert cosines(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[6.0, 8.0], [0.0, 2.0]])).tolist() == [1, 0]


def test_both_agree_with_the_table_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(25, 7)), rng.normal(size=(25, 7))
    p, q = rng.random((25, 6)) < 0.3, rng.random((25, 6)) < 0.4
    bootstrap = Bootstrap(25, draws=40)
    for found, table in (
        (compare_cosine(a, b, bootstrap), cosine(a, b)),
        (compare_hamming(p, q, bootstrap), hamming(p, q)),
    ):
        expected = bootstrap.matched_and_shuffled(table)
        for one, other in ((found.matched, expected.matched), (found.shuffled, expected.shuffled)):
            assert one.value == pytest.approx(other.value)
            np.testing.assert_allclose(one.draws, other.draws)
    np.testing.assert_array_equal(hamming_distances(p, q), np.diag(hamming(p, q)))
    np.testing.assert_allclose(cosines(a, b), np.diag(cosine(a, b)))


def test_pairs_of_one_request_agree_more_than_swapped_ones() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(80, 10))
    a, b = shared + rng.normal(size=shared.shape), shared + rng.normal(size=shared.shape)
    bootstrap = Bootstrap(80, draws=200)
    assert compare_cosine(a, b, bootstrap).difference.estimate().low > 0.2
    order = derangements(80, 1)[0]
    swapped = compare_cosine(a[order], b, bootstrap).difference.estimate()
    assert swapped.low < 0 < swapped.high
    sets = shared > 0.5
    flipped = sets ^ (rng.random(sets.shape) < 0.1)
    assert compare_hamming(sets, flipped, bootstrap).difference.estimate().high < -1
    assert abs(compare_hamming(sets[order], flipped, bootstrap).difference.value) < 0.5


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_cosine_knows_no_scale_and_no_order(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    order = rng.permutation(12)
    own = compare_cosine(a, b, Bootstrap(12, draws=1))
    other = compare_cosine(scale * a[order], b[order], Bootstrap(12, draws=1))
    assert other.matched.value == pytest.approx(own.matched.value)
    assert other.shuffled.value == pytest.approx(own.shuffled.value)


def test_what_has_no_cosine_or_distance_is_refused() -> None:
    with pytest.raises(InputError, match="length 0"):
        cosines(np.zeros((2, 3)), np.ones((2, 3)))
    with pytest.raises(InputError, match="expected two of"):
        hamming_distances(np.zeros((2, 3), bool), np.zeros((2, 4), bool))


def test_encoders_are_taken_from_an_opened_model() -> None:
    model = SimpleNamespace(
        name="tiny",
        hash="abc",
        images=("frontal",),
        reports=("report",),
        modalities=("frontal", "report"),
        transform=SimpleNamespace(size=16),
        embed=lambda name, values: np.full((len(values), 2), float(len(name))),
    )
    encoders = PromptEncoders.of(model)  # type: ignore[arg-type]
    assert (encoders.size, encoders.weights) == (16, "abc")
    assert encoders.images(np.zeros((3, 16, 16), np.uint8)).tolist() == [[7, 7]] * 3
    assert encoders.reports(["a"]).tolist() == [[6, 6]]
    with pytest.raises(InputError, match="lateral"):
        PromptEncoders.of(model, "lateral")  # type: ignore[arg-type]
