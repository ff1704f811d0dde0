"""Masks that a segmenter draws for training images which nobody has outlined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import dataset
from xgem.cli import main
from xgem.configs.components import TransformConfig
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.study import read_study
from xgem.judges.segmenter import SegmenterConfig
from xgem.train.outlines import _written, outline
from xgem.types import DataError

HEIGHT, WIDTH = 40, 64
CONFIG = SegmenterConfig(size=32, width=8, epochs=30, learning_rate=5e-3)


def study(folder: Path, number: int, split: Any, *, masked: bool = False, **more: Any) -> tuple[Row, np.ndarray]:
    """A bright block on noise, wherever; its mask is the "left lung"."""
    rng = np.random.default_rng(number)
    top, left = int(rng.integers(2, 16)), int(rng.integers(2, 36))
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + 20, left : left + 24] = True
    pixels = np.where(mask, 200, 60) + rng.integers(-20, 20, mask.shape)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    if masked:
        Image.fromarray(mask).save(folder / f"{number}.left_lung.png")
        more["masks"] = {"left lung": (f"{number}.left_lung.png",)}
    row = Row(study=str(number), subject=str(number), split=split, view="frontal", file=f"{number}.png", **more)
    return row, mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("outlines")
    made = [study(folder, n, "train", masked=True) for n in range(24)]
    made += [study(folder, n, "train") for n in range(24, 30)]
    made += [
        study(folder, 30, "train", severity=3.0),
        study(folder, 31, "train", boxes=(Box("mass", 0.1, 0.1, 0.3, 0.3),)),
    ]
    made += [study(folder, 32, "val")]
    return Manifest(tuple(row for row, _ in made), folder), {row.study: mask for row, mask in made}


def test_new_masks_lie_on_what_they_outline_and_on_nothing_else(
    data: tuple[Manifest, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    manifest, truth = data
    outlined = outline(
        manifest, tmp_path / "masks", tmp_path / "cache", config=CONFIG, structures=["left lung"], progress=False
    )
    outlined.check()
    studies = {one.id: one for one in outlined.studies()}
    scores = []
    for number in range(24, 30):
        (file,) = studies[str(number)].masks["left lung"]
        found = np.array(Image.open(file))
        assert found.shape == (HEIGHT, WIDTH)  # of the image itself, not of the padded square
        wanted = truth[str(number)]
        scores.append(2 * (found & wanted).sum() / (found.sum() + wanted.sum()))
        assert read_study(studies[str(number)], TransformConfig(size=32)).masks["left lung"].any()
    assert min(scores) > 0.8
    assert all(not studies[one].masks for one in ("30", "31", "32"))  # annotated otherwise, or not for training
    before = {row.study: row for row in manifest.rows}
    assert all(row == before[row.study] for row in outlined.rows if row.study not in map(str, range(24, 30)))


def test_structures_are_learnt_from_the_images_that_have_them(
    data: tuple[Manifest, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    manifest, truth = data
    rows = [
        row.model_copy(update={"masks": {"heart": row.masks["left lung"]}}) if row.masks and int(row.study) % 2 else row
        for row in manifest.rows
    ]
    mixed = Manifest(tuple(rows), manifest.root)
    outlined = outline(mixed, tmp_path / "masks", tmp_path / "cache", config=CONFIG, progress=False)
    masks = {study.id: study.masks for study in outlined.studies()}
    assert set(masks["0"]) == {"left lung"}
    assert set(masks["1"]) == {"heart"}
    for number in range(24, 30):
        assert set(masks[str(number)]) == {"left lung", "heart"}  # and no structure that nobody has drawn
        for (file,) in masks[str(number)].values():
            found, wanted = np.array(Image.open(file)), truth[str(number)]
            assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.7


def test_equal_seeds_draw_equal_masks(data: tuple[Manifest, dict[str, np.ndarray]], tmp_path: Path) -> None:
    manifest, _ = data
    config = replace(CONFIG, epochs=1)
    drawn = []
    for name in ("a", "b"):
        folder = tmp_path / name
        outline(manifest, folder / "masks", folder / "cache", config=config, structures=["left lung"], progress=False)
        drawn.append({file.name: file.read_bytes() for file in sorted((folder / "masks").iterdir())})
    assert drawn[0] == drawn[1]


def test_without_hand_drawn_masks_there_is_nothing_to_learn_from(
    data: tuple[Manifest, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    manifest = Manifest(tuple(row for row in data[0].rows if not row.masks), data[0].root)
    with pytest.raises(DataError, match="has a mask of left lung, right lung"):
        outline(manifest, tmp_path / "masks", tmp_path / "cache", config=CONFIG, progress=False)
    assert not (tmp_path / "masks").exists()
    manifest.write(manifest.root / "m.jsonl")
    command = ["data", "outline", str(manifest.root / "m.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--epochs", "1"]
    assert main(command) == 2
    assert not (tmp_path / "o.jsonl").exists()


def test_masks_are_written_on_the_stored_pixels_of_an_image_with_unequal_spacing(tmp_path: Path) -> None:
    """What is written of masks on the square grid gives them again when it is read as a manifest's masks."""
    pixels = np.zeros((60, 100), np.uint8)
    pixels[20:50, 30:80] = 255
    file = tmp_path / "a.dcm"
    dataset(pixels, bits=8, PixelSpacing=[0.2, 0.1]).save_as(file, enforce_file_format=True)
    row = Row(study="a", subject="a", split="train", view="frontal", file="a.dcm")
    found = np.zeros((1, 64, 64), bool)
    found[0, 16:48, 20:40] = True
    (one,) = Manifest((row,), tmp_path).studies()
    masks = _written(one, found, ["left lung"], tmp_path, tmp_path)
    assert np.asarray(Image.open(tmp_path / masks["left lung"][0])).shape == pixels.shape
    (again,) = Manifest((row.model_copy(update={"masks": masks}),), tmp_path).studies()
    read = read_study(again, TransformConfig(size=64)).masks["left lung"]
    assert (read & found[0]).sum() / (read | found[0]).sum() > 0.9
