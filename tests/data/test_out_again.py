"""Manifests seen on a page, written as imagefolder, and loaded in PyTorch."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import xgem.data
from tests.data.conftest import chest_like, dataset
from xgem.cli.data import app
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import InputError, OutputError


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(chest_like(64, 48)).save(folder / name)
    dataset(chest_like(64, 48, 12), bits=12).save_as(folder / "c.dcm", enforce_file_format=True)
    mask = np.zeros((64, 48), dtype=np.uint8)
    mask[16:48, 12:36] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    common: Any = {"source": "nih"}
    rows = (
        Row(
            study="s/1", subject="p1", split="train", view="frontal", file="a.png", labels=("Mass",), sex="F", age=61,
            impression='A "mass" <here>.', masks={"heart": ("mask.png",)}, boxes=(Box("mass", 0.1, 0.1, 0.5, 0.5),),
            **common,
        ),
        Row(study="s2", subject="p2", split="val", view="lateral", file="b.png", **common),
        Row(study="s3", subject="p3", split="train", view="frontal", file="c.dcm", findings="Clear.", **common),
        Row(study="s4", subject="p4", split="train", impression="No image.", **common),
    )  # fmt: skip
    Manifest(rows, folder).write(folder / "manifest.parquet")
    return folder / "manifest.parquet"


def test_items_collate_to_a_matrix(manifest: Path) -> None:
    loaded = xgem.data.load_dataset(manifest.parent, "train", size=32)
    assert len(loaded) == 2
    batch = next(iter(DataLoader(loaded, batch_size=2)))
    assert batch["image"].shape == (2, 1, 32, 32)
    assert batch["image"].dtype == batch["labels"].dtype == torch.float32
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["labels"].shape == (2, 14)
    classes = list(loaded.classes)
    assert classes == list(CHEXPERT_CLASSES)
    first = dict(zip(classes, batch["labels"][0].tolist(), strict=True))
    assert (first["Lung Lesion"], first["Edema"]) == (1, 0)
    assert math.isnan(first["Support Devices"])  # NIH has no term for them
    assert batch["labels"][1].isnan().all()
    torch.testing.assert_close(loaded.labels, batch["labels"], equal_nan=True)
    assert (batch["id"], batch["subject"], batch["sex"]) == (["s/1", "s3"], ["p1", "p3"], ["F", ""])
    assert batch["text"] == ['A "mass" <here>.', "Clear."]
    assert (batch["age"][0], bool(batch["age"][1].isnan())) == (61, True)
    # Padded, not stretched: the sides of a portrait are empty
    assert batch["image"][0, 0, :, :3].max() == 0


def test_which_images_are_loaded(manifest: Path) -> None:
    assert [item["view"] for item in xgem.data.load_dataset(manifest, view=None, size=8)] == [
        "frontal",
        "lateral",
        "frontal",
    ]
    turned = xgem.data.load_dataset(
        manifest, "val", view="lateral", size=8, sections=(), transform=lambda image: 1 - image
    )
    plain = xgem.data.load_dataset(manifest, "val", view="lateral", size=8)
    torch.testing.assert_close(turned[0]["image"], 1 - plain[0]["image"])
    for wrong in ({"split": "test"}, {"split": "all"}, {"view": "oblique"}, {"size": 0}, {"sections": ("report",)}):
        with pytest.raises(InputError):
            xgem.data.load_dataset(manifest, **wrong)  # pyright: ignore[reportArgumentType]


def test_the_package_imports_no_torch() -> None:
    code = "import sys, xgem, xgem.data, xgem.cli.data; assert 'torch' not in sys.modules; xgem.data.load_dataset"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imagefolder(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    told = ["export", str(manifest), "--format", "imagefolder", "--out", str(out)]
    made = CliRunner().invoke(app, told)
    assert made.exit_code == 0, made.output
    with (out / "train/metadata.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert next(iter(first)) == "file_name"
    assert (first["file_name"], first["study"], first["text"]) == ("s_1-frontal.png", "s/1", 'A "mass" <here>.')
    assert (first["Lung Lesion"], first["Edema"], first["Support Devices"], first["age"]) == ("1", "0", "", "61")
    assert (out / "train" / first["file_name"]).is_symlink()
    assert second["file_name"] == "s3-frontal.png"
    with Image.open(out / "train/s3-frontal.png") as image:
        assert (image.mode, image.size) == ("I;16", (48, 64))
    assert sorted(path.name for path in out.iterdir()) == ["train", "validation"]
    assert isinstance(CliRunner().invoke(app, told).exception, OutputError)
    assert CliRunner().invoke(app, [*told[:-1], str(tmp_path / "copied"), "--copy"]).exit_code == 0
    copied = tmp_path / "copied/train/s_1-frontal.png"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (manifest.parent / "a.png").read_bytes()


def test_a_page_shows_images_with_their_texts(manifest: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told = ["show", str(manifest), "--out", str(page), "-n", "9"]
    assert CliRunner().invoke(app, told).exit_code == 0
    text = page.read_text()
    assert text.count("<img") == 3
    assert "&lt;here&gt;" in text  # a text is no markup
    assert "61 years" in text
    assert isinstance(CliRunner().invoke(app, told).exception, OutputError)
    assert CliRunner().invoke(app, ["show", str(manifest), "--out", str(tmp_path / "page.png")]).exit_code == 0
    with Image.open(tmp_path / "page.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20) or ()}
    assert (230, 85, 13) in colours  # the outline of the mask, and the box


def test_pages_that_are_refused(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "repository/.git").mkdir(parents=True)
    runner = CliRunner()
    for out, error in ((tmp_path / "repository/docs/page.html", OutputError), (tmp_path / "page.pdf", InputError)):
        assert isinstance(runner.invoke(app, ["show", str(manifest), "--out", str(out)]).exception, error)
    told = ["show", str(manifest), "--out", str(tmp_path / "p.html"), "--split", "test"]
    assert isinstance(runner.invoke(app, told).exception, InputError)
