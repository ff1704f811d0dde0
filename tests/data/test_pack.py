"""A data set packed into a small folder: the same images, texts and annotations, or nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.data.conftest import chest_like, dataset
from xgem.cli.data import app
from xgem.configs.components import TransformConfig
from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.data.pack import MANIFEST, pack
from xgem.data.prepare import prepare_images
from xgem.data.rows import Row
from xgem.data.study import read_study
from xgem.types import ImageError, InputError, OutputError

CONFIG = TransformConfig(size=64)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A wide frontal with a mask and a box, a negative as DICOM, a squashed lateral, and a report."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(chest_like(90, 120)).save(folder / "a.png")
    Image.fromarray(chest_like(100, 100)).save(folder / "b.png")
    dataset(255 - chest_like(80, 60), bits=8, photometric="MONOCHROME1").save_as(
        folder / "c.dcm", enforce_file_format=True
    )
    mask = np.zeros((90, 120), dtype=np.uint8)
    mask[30:60, 40:80] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    first: dict[str, Any] = {"study": "s/1", "subject": "p1", "split": "train", "impression": "Mass.", "age": 61.0}
    first |= {"masks": {"heart": ("mask.png",)}, "boxes": (Box("mass", 0.5, 0.5, 0.25, 0.5),)}
    rows = (
        Row(view="frontal", file="a.png", **first),
        Row(view="lateral", file="b.png", reading=ReadOptions(pixel_aspect=1.5), **first),
        Row(study="s2", subject="p2", split="val", view="frontal", file="c.dcm", labels=("Mass",)),
        Row(study="s3", subject="p3", split="train", findings="Clear."),
    )
    return Manifest(rows, folder)


def test_a_packed_folder_is_read_as_its_source(manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    counts = pack(manifest, out, CONFIG, quality=95)
    assert (counts["images"], sorted(file.name for file in out.iterdir())) == (3, ["images", MANIFEST, "masks"])
    packed = Manifest.read(out / MANIFEST)
    packed.check()
    for split in ("train", "val"):
        before = prepare_images(manifest, split, CONFIG, tmp_path / "cache", progress=False)
        after = prepare_images(packed, split, CONFIG, tmp_path / "cache", progress=False)
        assert before.ends.tolist() == after.ends.tolist()
        error = (before.values[:].float() - after.values[:].float()).square().mean(dim=(1, 2))
        assert float(error.max()) < 10  # of 255^2: 38 dB
    # The padding above and below the wide image, and beside the squashed one, is part of the picture
    assert int(prepare_images(packed, "train", CONFIG, tmp_path / "cache", progress=False).values[0][:6].max()) < 12
    kept = {"file": None, "reading": AS_STATED, "masks": {}, "boxes": ()}
    for row, other in zip(manifest.rows, packed.rows, strict=True):
        assert row.model_copy(update=kept) == other.model_copy(update=kept)
        assert other.reading == AS_STATED
    assert [row.file for row in packed.rows][-1] is None


def test_annotations_are_those_of_the_packed_image(manifest: Manifest, tmp_path: Path) -> None:
    pack(manifest, tmp_path / "packed", CONFIG)
    packed = Manifest.read(tmp_path / "packed" / MANIFEST)
    ours, theirs = (read_study(one.studies("train")[0], CONFIG) for one in (packed, manifest))
    np.testing.assert_array_equal(ours.masks["heart"], theirs.masks["heart"])
    (box,), (other,) = ours.boxes, theirs.boxes
    assert (box.x, box.y, box.w, box.h) == pytest.approx((other.x, other.y, other.w, other.h), abs=1e-6)
    assert (box.y, box.h) == pytest.approx((0.5, 0.375))  # 15 of 120 rows are added above and below


@pytest.mark.parametrize("quality", [0, 101])
def test_what_cannot_be_packed_leaves_nothing(quality: int, manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    with pytest.raises(InputError, match="expected 1 to 100"):
        pack(manifest, out, CONFIG, quality=quality)
    (manifest.root / "b.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"b\.png"):
        pack(manifest, out, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    out.mkdir()
    (out / "other").touch()
    with pytest.raises(OutputError, match="not an empty folder"):
        pack(manifest, out, CONFIG)


def test_the_command(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(manifest.root / "all.jsonl")
    out = tmp_path / "packed"
    words = ["pack", str(manifest.root / "all.jsonl"), "--out", str(out), "--preset", "debug", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert '"images": 3' in done.output
    assert {Image.open(file).size for file in (out / "images").iterdir()} == {(32, 32)}
