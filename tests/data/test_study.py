"""Annotations of a study lie where the image that they are of does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xgem.configs.components import TransformConfig
from xgem.data.annotations import Box
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
