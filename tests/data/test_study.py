"""Annotations of a study lie where the image that they are of does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xgem.configs.components import TransformConfig
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.study import Study, read_study
from xgem.data.transforms import read_square
from xgem.metrics import spatial
from xgem.types import InputError

SIZE = 32


@pytest.mark.parametrize("pad", [True, False])
def test_annotations_lie_where_the_image_does(tmp_path: Path, pad: bool) -> None:
    """The mask and the box of a bright rectangle, in an image that is no square, find it in the square one."""
    transform = TransformConfig(size=SIZE, pad=pad)
    pixels = np.zeros((64, 128), dtype=np.uint8)
    pixels[16:48, 32:64] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    left, right = np.zeros_like(pixels), np.zeros_like(pixels)
    left[16:48, 32:48], right[16:48, 48:64] = 255, 255
    Image.fromarray(left > 0).save(tmp_path / "left.png")  # 1 bit
    Image.fromarray(right).save(tmp_path / "right.png")  # 8 bit
    study = Study(
        id="a",
        subject="a",
        split="val",
        images={"frontal": (tmp_path / "image.png",)},
        masks={"device": (tmp_path / "left.png", tmp_path / "right.png")},
        boxes=(Box("mass", 0.25, 0.25, 0.25, 0.5),),
    )
    shown = read_square(tmp_path / "image.png", transform) >= 0
    np.testing.assert_array_equal(read_study(study, transform).masks["device"], shown)
    (box,) = read_study(study, transform).boxes
    np.testing.assert_array_equal(spatial.region(box, SIZE), shown)

    thin = np.zeros_like(pixels)
    thin[:, 40] = 255
    Image.fromarray(thin).save(tmp_path / "thin.png")
    thinner = read_study(replace(study, masks={"device": (tmp_path / "thin.png",)}), transform)
    assert thinner.masks["device"].any()


def test_unusable_masks_are_named(tmp_path: Path) -> None:
    study, transform = Study(id="a", subject="a", split="val"), TransformConfig(size=SIZE)
    for name, shape, value in (("one", (64, 64), 255), ("other", (32, 64), 255), ("empty", (64, 64), 0)):
        mask = np.zeros(shape, dtype=np.uint8)
        mask[: shape[0] // 2] = value
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    for names, message in (
        (("absent",), r"absent\.png"),
        (("text",), r"text\.png"),
        (("one", "other"), "not of one size"),
        (("empty",), r"empty"),
    ):
        files = tuple(tmp_path / f"{name}.png" for name in names)
        with pytest.raises(InputError, match=message):
            read_study(replace(study, masks={"device": files}), transform)


def disc(height: int, width: int, spacing: tuple[float, float]) -> np.ndarray:
    """(h, w) uint8: a disc of 12 mm radius, off the centre, which is an ellipse in stored pixels."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    inside = (y * spacing[0] - 0.6 * height * spacing[0]) ** 2 + (x * spacing[1] - 0.35 * width * spacing[1]) ** 2
    return np.where(inside < 12**2, 255, 0).astype(np.uint8)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


SPACINGS = [((0.2, 0.1), (300, 500)), ((0.1, 0.3), (600, 256)), ((0.2, 0.1), (400, 400)), ((0.15, 0.15), (400, 320))]


@pytest.mark.parametrize(("spacing", "shape"), SPACINGS)
@pytest.mark.parametrize("fixed", [None, 0.25])
def test_annotations_of_pixels_that_are_not_square(
    tmp_path: Path, write_dicom, spacing: tuple[float, float], shape: tuple[int, int], fixed: float | None
) -> None:
    """Mask and box of a bright disc in a DICOM file lie on it after reading, for training and for measures."""
    from xgem.data.set_files import read_set

    pixels = disc(*shape, spacing)
    image = write_dicom(pixels, name="image.dcm", PixelSpacing=list(spacing), ViewPosition="PA")
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    rows, columns = (np.flatnonzero(pixels.any(axis=1 - axis)) for axis in (0, 1))
    x, y = columns[0] / shape[1], rows[0] / shape[0]
    box = Box("mass", float(x), float(y), (len(columns)) / shape[1], len(rows) / shape[0])
    row = Row(
        study="a", subject="a", split="val", view="frontal", file=str(image),
        masks={"device": ("disc.png",)}, boxes=(box,),
    )  # fmt: skip
    Manifest((row,), tmp_path).write(tmp_path / "m.jsonl")
    study = Manifest.read(tmp_path / "m.jsonl").studies()[0]
    transform = TransformConfig(size=128, pixel_spacing=fixed)
    shown = read_square(image, transform) >= 0
    height, width = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    assert abs(len(height) - len(width)) <= 2  # a disc again
    measured = read_set(tmp_path / "m.jsonl").images(128)[0] >= 128
    found = read_study(study, transform)
    region = np.zeros_like(shown)
    region[height[0] : height[-1] + 1, width[0] : width[-1] + 1] = True
    for seen in (shown, measured):
        assert iou(found.masks["device"], seen) > 0.9
    assert iou(spatial.region(found.boxes[0], 128), region) > 0.9
    only = read_study(replace(study, masks={}), transform)
    assert iou(spatial.region(only.boxes[0], 128), region) > 0.9
