"""Annotations: they go where their radiograph goes, are drawn in values that never change, and unite into one."""

from __future__ import annotations

import math
import re
from itertools import combinations
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.configs.components import TransformConfig
from xgem.data.annotations import Annotation, Box, render
from xgem.data.read import Radiograph
from xgem.data.transforms import to_square
from xgem.labels import spatial
from xgem.labels.spatial import BACKGROUND, BOX_CLASSES, MAX_ADDED, STRUCTURES, Vocabulary
from xgem.types import InputError, ShapeError

level = Vocabulary().level

SPANS = st.tuples(st.integers(0, 60), st.integers(1, 60))


def rectangle(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


def grid(size: int, *, pad: bool = True, **more: Any) -> TransformConfig:
    return TransformConfig(size=size, pad=pad, interpolation="area", **more)


# ------------------------------------------------------------------------------------------------ geometry


@given(
    height=st.integers(32, 90), width=st.integers(32, 90), rows=SPANS, columns=SPANS, size=st.integers(16, 100), pad=...
)
def test_a_mask_and_a_box_go_where_the_radiograph_goes(height, width, rows, columns, size, pad: bool):
    """A white rectangle on black, its mask and its box."""
    top, left = min(rows[0], height - 2), min(columns[0], width - 2)
    bottom, right = min(top + rows[1], height), min(left + columns[1], width)
    mask = rectangle(height, width, slice(top, bottom), slice(left, right))
    box = Box("mass", left / width, top / height, (right - left) / width, (bottom - top) / height)
    config = grid(size, pad=pad)
    covered = (to_square(Radiograph(mask.astype(np.float32), None, "0", "x"), config) + 1) / 2
    squared = Annotation({"device": mask}, (box,)).squared(config)
    assert squared.size == (size, size)
    if covered.max() >= 0.5:
        clear = abs(covered - 0.5) > 1e-3
        assert np.array_equal(squared.masks["device"][clear], covered[clear] > 0.5)
    (moved,) = squared.boxes
    lit_rows, lit_columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    edges = [lit_columns[0], lit_rows[0], lit_columns[-1] + 1, lit_rows[-1] + 1]
    shares = np.array([moved.x, moved.y, moved.x + moved.w, moved.y + moved.h])
    assert shares * size == pytest.approx(np.array(edges), abs=1.001)


@given(height=st.integers(32, 200), width=st.integers(32, 200), row=st.integers(0, 199), pad=...)
def test_no_mask_vanishes(height: int, width: int, row: int, pad: bool):
    line = rectangle(height, width, slice(row % height, row % height + 1), slice(None))
    squared = Annotation({"device": line}).squared(grid(16, pad=pad))
    rows = np.flatnonzero(squared.masks["device"].any(1))
    assert 1 <= len(rows) <= 2 + 16 // height


def test_squaring_twice_changes_nothing_more():
    config = grid(64)
    once = Annotation({"device": rectangle(50, 80, slice(9), slice(9))}, (Box("mass", 0, 0, 0.5, 1),)).squared(config)
    twice = once.squared(config)
    assert twice.sha256 == once.sha256
    assert twice.annotated == once.annotated == (50, 80)


def test_boxes_of_a_image_of_unknown_size_are_shares_of_a_square_one():
    box = Box("nodule", 0.1, 0.2, 0.3, 0.4)
    assert Annotation(boxes=(box,)).squared(grid(64)).boxes == (box,)
    assert Annotation(boxes=(box,), size=(50, 100)).squared(grid(64)).boxes != (box,)
    assert Annotation(boxes=(box,), size=(50, 100)).squared(grid(64, pad=False)).boxes == (box,)


# ------------------------------------------------------------------------------------------------ uniting


def test_parts_unite_into_what_one_annotation_would_be():
    lung, heart = rectangle(50, 80, slice(9), slice(9)), rectangle(50, 80, slice(20, 40), slice(20, 60))
    box = Box("mass", 0, 0, 0.5, 1)
    config = grid(32)
    parts = [
        Annotation({"cardiomediastinum": heart}),
        Annotation({"left lung": lung}),
        Annotation(boxes=(box,), size=(100, 160)),
        Annotation(severity=3),
    ]
    whole = Annotation({"left lung": lung, "cardiomediastinum": heart}, (box,), 3)
    assert parts[0].united(*parts[1:]).sha256 == parts[3].united(*parts[2::-1]).sha256 == whole.sha256
    first, *others = [part.squared(config) for part in parts]
    assert first.united(*others).sha256 == whole.squared(config).sha256


LUNG = Annotation({"left lung": rectangle(50, 80, slice(9), slice(9))})
SQUARE_BOX = Annotation(boxes=(Box("mass", 0, 0, 0.5, 1),))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (LUNG, LUNG, "duplicate mask 'left lung'"),
        (Annotation(severity=0), Annotation(severity=0), "duplicate severity"),
        (LUNG, Annotation({"device": rectangle(80, 50, slice(9), slice(9))}), "of 50 x 80 and 80 x 50"),
        (LUNG, Annotation({"device": rectangle(100, 160, slice(9), slice(9))}), "100 x 160 pixels, expected 50 x 80"),
        (LUNG, Annotation(boxes=SQUARE_BOX.boxes, size=(60, 60)), "of 50 x 80 and 60 x 60"),
        (LUNG.squared(grid(32)), SQUARE_BOX.squared(grid(32)), "of 50 x 80 and 32 x 32"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(one: Annotation, other: Annotation, message: str):
    with pytest.raises(InputError, match=message):
        one.united(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Annotation({"Left_Lung": rectangle(9, 9, slice(3), slice(3))}),
            "'Left_Lung': expected a name",
        ),
        (lambda: Annotation({"device": np.zeros((9, 9), bool)}), "'device' is empty"),
        (
            lambda: Annotation({"device": cast(Any, np.ones((9, 9), np.uint8))}),
            "expected .h, w. bool, got .9, 9. uint8",
        ),
        (lambda: Annotation({"device": np.ones((9, 9), bool)}, size=(9, 8)), "9 x 9 pixels, expected 9 x 8"),
        (lambda: Annotation(severity=18.5), "18.5, expected a Brixia score from 0 to 18"),
        (lambda: Annotation(severity=-1), "-1, expected"),
        (lambda: Annotation(severity=math.nan), "nan, expected"),
        (lambda: Box("Fracture", 0, 0, 1, 1), "'Fracture': expected a name in lower case"),
        (lambda: Box("mass", 0.5, 0, 0.6, 1), "extends beyond the image"),
        (lambda: Box("mass", -0.002, 0, 0.6, 1), "extends beyond the image"),
        (lambda: Box("mass", 0, 0, 0, 1), "no area"),
        (lambda: Box("mass", 0, 0, 1, -1), "no area"),
        (lambda: Box("mass", math.nan, 0, 1, 1), "finite"),
    ],
)
def test_what_no_image_has_is_refused(make: Any, message: str):
    with pytest.raises(InputError, match=message):
        make()


def test_a_box_may_be_rounded_over_the_edge():
    image = render(Annotation(boxes=(Box("mass", -0.0009, 0.5, 1.0018, 0.5009),)), 64, filled=True)
    assert (image[32:] == level("mass", box=True)).all()


# ------------------------------------------------------------------------------------------------ the drawing


def test_values_are_the_documented_ones_and_differ():
    """Trained weights rely on them: a change of this table breaks every ControlNet."""
    rows = re.findall(r"^\| ([a-z ]+) \| (-?\d\.\d+) \| ([a-z ()]+) \| (-?\d\.\d+) \|$", spatial.__doc__ or "", re.M)
    masks, values, boxes, others = zip(*rows, strict=True)
    assert masks == STRUCTURES
    assert boxes == (*BOX_CLASSES, "severity (a bar)")
    assert [float(value) for value in values] == pytest.approx([level(name) for name in STRUCTURES], abs=6e-4)
    drawn = [*(level(name, box=True) for name in BOX_CLASSES), level("severity")]
    assert [float(value) for value in others] == pytest.approx(drawn, abs=6e-4)
    every = [BACKGROUND, *(level(name) for name in STRUCTURES), *drawn]
    assert min(abs(one - other) for one, other in combinations(every, 2)) > 0.1
    assert max(every) == 1


RIB = Annotation({"rib": np.ones((32, 32), bool)})
FRACTURE = Annotation(boxes=(Box("fracture", 0, 0, 1, 1),))


def test_names_that_a_model_does_not_know_are_refused_and_listed():
    for annotation, name, known in ((RIB, "rib", STRUCTURES), (FRACTURE, "fracture", BOX_CLASSES)):
        with pytest.raises(InputError, match=f"unknown .* '{name}': this model knows {', '.join(known)}"):
            render(annotation, 32)
    with pytest.raises(InputError, match="heart and mediastinum is 'cardiomediastinum'"):
        render(Annotation({"heart": np.ones((32, 32), bool)}), 32)


def test_added_names_have_levels_of_their_own_and_change_no_built_in_one():
    added = [f"thing {number:02}" for number in range(MAX_ADDED)]
    more = Vocabulary.extended(["rib", *added[1:]], ["fracture", *added[1:]])
    assert [more.level(name) for name in STRUCTURES] == [level(name) for name in STRUCTURES]
    assert [more.level(name, box=True) for name in BOX_CLASSES] == [level(name, box=True) for name in BOX_CLASSES]
    masks = [more.level(name) for name in more.structures]
    every = [BACKGROUND, level("severity"), *masks, *(more.level(name, box=True) for name in more.box_classes)]
    assert -1 <= min(every) <= max(every) <= 1
    assert min(abs(one - other) for one, other in combinations(every, 2)) > 3 / 255  # told apart in 8 bits
    assert (render(RIB, 32, vocabulary=more) == np.float32(more.level("rib"))).all()
    assert (render(FRACTURE, 32, vocabulary=more, filled=True) == np.float32(more.level("fracture", box=True))).all()
    # A name that is appended leaves the levels of those before it.
    assert Vocabulary.extended(["rib"], []).level("rib") == more.level("rib")


def test_small_things_lie_over_large_ones():
    whole = np.ones((64, 64), bool)
    masks = {name: whole[: 64 - 4 * i].copy() for i, name in enumerate(STRUCTURES)}
    masks = {name: np.pad(mask, ((0, 64 - len(mask)), (0, 0))) for name, mask in masks.items()}
    backwards = dict(reversed(masks.items()))
    image = render(Annotation(backwards), 64)
    assert image.dtype == np.float32
    assert [image[62 - 4 * i, 0] for i in range(9)] == pytest.approx([level(name) for name in STRUCTURES])
    boxes = (Box("mass", 0.4, 0.4, 0.2, 0.2), Box("pneumonia", 0.1, 0.1, 0.8, 0.8))
    drawn = render(Annotation(masks, boxes), 64, filled=True)
    assert drawn[32, 32] == pytest.approx(level("mass", box=True))
    assert drawn[12, 32] == pytest.approx(level("pneumonia", box=True))
    assert np.array_equal(drawn, render(Annotation(masks, boxes[::-1]), 64, filled=True))


def test_nothing_is_background():
    assert (render(Annotation(), 32) == BACKGROUND).all()


@given(
    x=st.floats(0, 0.9),
    y=st.floats(0, 0.9),
    w=st.floats(0.001, 1),
    h=st.floats(0.001, 1),
    size=st.sampled_from([32, 64, 128, 512]),
)
def test_a_box_is_an_outline_inside_its_edges(x: float, y: float, w: float, h: float, size: int):
    box = Box("nodule", x, y, min(w, 1 - x), min(h, 1 - y))
    outline, area = (render(Annotation(boxes=(box,)), size, filled=filled) > BACKGROUND for filled in (False, True))
    rows, columns = np.flatnonzero(area.any(1)), np.flatnonzero(area.any(0))
    assert rows[0] == pytest.approx(box.y * size, abs=1)
    assert rows[-1] + 1 == pytest.approx((box.y + box.h) * size, abs=1)
    assert columns[0] == pytest.approx(box.x * size, abs=1)
    assert columns[-1] + 1 == pytest.approx((box.x + box.w) * size, abs=1)
    thick = {32: 1, 64: 1, 128: 2, 512: 8}[size]
    inside = np.zeros_like(area)
    inside[rows[0] + thick : max(rows[-1] + 1 - thick, 0), columns[0] + thick : max(columns[-1] + 1 - thick, 0)] = True
    assert np.array_equal(outline, area & ~inside)


@given(scores=st.lists(st.integers(0, 180), min_size=2, max_size=2, unique=True))
def test_the_bar_grows_with_the_score_and_zero_is_not_nothing(scores: list[int]):
    low, high = sorted(score / 10 for score in scores)
    nothing, zero, one, other, most = (
        int((render(Annotation(severity=score), 128) == np.float32(level("severity"))).sum())
        for score in (None, 0, low, high, 18)
    )
    assert nothing == 0
    assert zero == 4 * 4
    assert zero <= one <= other <= most == 4 * 128
    assert one - zero == pytest.approx(low / 18 * 4 * 124, abs=2)


def test_another_grid_is_refused():
    with pytest.raises(ShapeError, match="50 x 80 pixels, expected 64 x 64: make it square first"):
        render(LUNG, 64)
