"""``xgem data check --images`` finds what would stop training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from xgem.cli.data import app
from xgem.data.manifest import Manifest
from xgem.data.rows import Row


def _manifest(folder: Path, image: np.ndarray, mask: np.ndarray, ending: str = "png", **options) -> str:
    Image.fromarray(image).save(folder / "image.png", **options)
    Image.fromarray(mask).save(folder / f"mask.{ending}")
    row = Row(
        study="s", subject="p", split="train", view="frontal", file="image.png", masks={"heart": (f"mask.{ending}",)}
    )
    Manifest((row,), folder).write(folder / "m.jsonl")
    return str(folder / "m.jsonl")


def _mask(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[10:40, 20:50] = 255
    return mask


def _checked(path: str, *options: str):
    return CliRunner().invoke(app, ["check", path, *options])


def test_images_of_a_small_range_are_counted(tmp_path: Path, chest):
    path = _manifest(tmp_path, chest(bits=12), _mask(96, 80))
    assert json.loads(_checked(path, "--images", "--json").stdout)["small range"] == 1
    assert "small range" not in _checked(path, "--json").stdout


def test_sound_files_pass(tmp_path: Path, chest):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _manifest(tmp_path, np.rot90(chest()).copy(), _mask(96, 80), exif=exif)
    found = _checked(path, "--images", "--json")
    assert found.exit_code == 0
    assert "small range" not in found.stdout


@pytest.mark.parametrize(
    ("mask", "ending", "words"),
    [
        (_mask(96, 80) // 2 + np.arange(80, dtype=np.uint8), "png", "without smoothing"),
        (_mask(96, 80), "jpg", "JPEG"),
        (np.zeros((96, 80), np.uint8), "png", "is empty"),
        (_mask(80, 96), "png", r"a mask of \(80, 96\) pixels for an image of \(96, 80\)"),
    ],
)
def test_masks_that_cannot_be_used_are_found(tmp_path: Path, chest, mask, ending: str, words: str):
    path = _manifest(tmp_path, chest(), mask, ending)
    assert _checked(path).exit_code == 0
    refused = _checked(path, "--images")
    assert refused.exit_code != 0
    with pytest.raises(Exception, match=rf"1 of 2 files cannot be used, first .*{words}"):
        raise refused.exception or AssertionError("not refused")


def test_a_damaged_image_is_found(tmp_path: Path, chest):
    path = _manifest(tmp_path, chest(), _mask(96, 80))
    (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:200])
    assert "truncated" in str(_checked(path, "--images").exception)
