"""Boxes by their corners, and masks that are run lengths or outlines."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tests.data.conftest import dataset
from xgem.data.annotation_files import read_masks
from xgem.data.annotations import Box
from xgem.data.sources.drawings import Cutter, Kind, MaskFiles, Runs, Shape, check_scale, stored_size
from xgem.types import DataError, OutputError


def encoded(mask: np.ndarray) -> str:
    """A mask as SIIM-ACR writes it: for each run down the columns the pixels since the last one, and its length."""
    flat = np.concatenate(([0], mask.T.ravel().astype(int), [0]))
    starts, ends = (np.flatnonzero(np.diff(flat) == sign) for sign in (1, -1))
    pairs = zip(starts, np.concatenate(([0], ends[:-1])), ends, strict=True)
    return " ".join(f"{start - before} {end - start}" for start, before, end in pairs)


@given(mask=arrays(bool, (5, 7)).filter(lambda mask: mask.any()))
def test_run_lengths_are_read_as_they_are_written(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(Runs.relative(encoded(mask), (5, 7), "x").mask((5, 7)), mask)


@given(text=st.text("0123456789- ", max_size=12))
def test_run_lengths_lie_in_the_image_or_are_refused(text: str) -> None:
    try:
        runs = Runs.relative(text, (3, 4), "x")
    except DataError:
        return
    assert runs.mask((3, 4)).sum() == (runs.ends - runs.starts).sum() > 0


def test_runs_on_another_grid_cover_half_of_a_pixel() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:4] = True
    small = Runs.relative(encoded(mask), (8, 8), "x").mask((4, 4))
    assert {(int(y), int(x)) for y, x in np.argwhere(small)} == {(1, 1), (2, 1)}
    # What is thinner than that stays at its widest
    assert Runs.relative("9 1", (8, 8), "x").mask((2, 2)).sum() == 1


def test_shapes() -> None:
    box = Shape("rectangle", [(1, 2), (3, 4)]).mask((6, 8))
    assert (box.shape, box.sum(), box[2:5, 1:4].all()) == ((6, 8), 9, True)
    ellipse = Shape("ellipse", [(0, 0), (20, 10)]).mask((30, 30))
    assert (ellipse[5, 10], ellipse[0, 0], ellipse[10, 20]) == (True, False, False)
    triangle = Shape("polygon", [(0, 0), (40, 0), (0, 40)]).mask((10, 10))
    assert triangle.all()


@given(
    kind=st.sampled_from(["rectangle", "ellipse"]),
    left=st.floats(-3, 8),
    top=st.floats(-3, 6),
    width=st.floats(0.01, 4),
    height=st.floats(0.01, 4),
)
def test_what_has_a_box_has_a_mask(kind: Kind, left: float, top: float, width: float, height: float) -> None:
    box = Cutter().box("Mass", (left, top, left + width, top + height), (6, 8))
    mask = Shape(kind, [(left, top), (left + width, top + height)]).mask((6, 8))
    assert mask.any() or box is None


def test_boxes_are_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    cutter = Cutter()
    assert cutter.box("Pleural Effusion", (10, 10, 30, 20), (20, 40)) == Box("pleural effusion", 0.25, 0.5, 0.5, 0.5)
    assert cutter.box("Mass", (-5, 10, 20, 25), (20, 40)) == Box("mass", 0, 0.5, 0.5, 0.5)
    assert cutter.box("Mass", (40, 1, 50, 5), (20, 40)) is None
    assert cutter.box("Mass", (5, 1, 5, 5), (20, 40)) is None
    with caplog.at_level(logging.WARNING):
        cutter.warn("here")
        Cutter().warn("nowhere")
    assert "here: 1 boxes reach over" in caplog.text
    assert "here: 2 boxes have no area" in caplog.text
    assert "nowhere" not in caplog.text


def test_masks_are_written_once_and_together(tmp_path: Path) -> None:
    masks = MaskFiles(tmp_path, "src")
    left, right = Shape("rectangle", [(0, 0), (1, 1)]), Shape("rectangle", [(4, 4), (5, 5)])
    (named,) = masks.add(Path("elsewhere/a.b.dcm"), (6, 6), "left lung", [left, right])
    assert named == "src-masks/a.b.left_lung.png"
    assert not (tmp_path / "src-masks").exists()
    masks.write()
    annotation = read_masks(str(tmp_path / named))  # the name says what it shows
    assert annotation.masks["left lung"].sum() == 8
    with pytest.raises(DataError, match="another image of this name has a mask of left lung"):
        masks.add(Path("other/a.b.png"), (6, 6), "left lung", [left])
    written = (tmp_path / named).stat().st_mtime_ns
    masks.write()
    assert (tmp_path / named).stat().st_mtime_ns == written
    (tmp_path / named).write_bytes(b"half")
    masks.write()
    assert Image.open(tmp_path / named).size == (6, 6)
    assert [path.name for path in (tmp_path / "src-masks").iterdir()] == ["a.b.left_lung.png"]


def test_masks_that_cannot_be(tmp_path: Path) -> None:
    masks = MaskFiles(tmp_path, "src")
    masks.add(Path("a.png"), (6, 6), "heart", [Shape("rectangle", [(8, 8), (9, 9)])])
    with pytest.raises(DataError, match=r"a\.heart\.png: the mask covers no pixel"):
        masks.write()
    (tmp_path / "file").write_text("")
    blocked = MaskFiles(tmp_path / "file", "src")
    blocked.add(Path("a.png"), (6, 6), "heart", [Shape("rectangle", [(0, 0), (1, 1)])])
    with pytest.raises(OutputError, match="cannot be written"):
        blocked.write()


def test_sizes(tmp_path: Path, chest) -> None:
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    whole = dataset(chest(9, 7), bits=8)
    whole.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert (stored_size(tmp_path / "a.png"), stored_size(tmp_path / "a.dcm")) == ((6, 8), (9, 7))
    del whole.Rows
    whole.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"a\.dcm: its header has no Rows and Columns"):
        stored_size(tmp_path / "a.dcm")
    check_scale(tmp_path / "a.png", (511, 512), (1024, 1024))
    with pytest.raises(DataError, match="10 x 12 pixels, but its annotations are of 8 x 8"):
        check_scale(tmp_path / "a.png", (12, 10), (8, 8))
