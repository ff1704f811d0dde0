"""Generated radiographs, cut from the documentation's sheets, and sources of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from xgem.data.manifest import Manifest
from xgem.data.rows import Row

CELL, STEP, TOP = 192, 198, 40
Pixels = NDArray[np.uint8]


def cut(sheet: Path, row: int) -> list[Pixels]:
    """The six images of a row of a sheet, without the caption that is burned into their lower edge."""
    with Image.open(sheet) as image:
        grey = np.asarray(image.convert("L"))
    top = TOP + row * STEP
    return [grey[top : top + 166, 6 + k * STEP : 6 + k * STEP + CELL].copy() for k in range(6)]


@pytest.fixture(scope="session")
def frontals(project: Path) -> list[Pixels]:
    return cut(project / "docs" / "images" / "samples.png", 0)


@pytest.fixture(scope="session")
def laterals(project: Path) -> list[Pixels]:
    return cut(project / "docs" / "images" / "samples.png", 1)


Source = Callable[..., Path]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Writes images and a manifest of them; fields of rows by name, for all or one each."""

    def write(name: str, images: dict[str, Pixels | None], **fields: Any) -> Path:
        root = tmp_path / name
        root.mkdir()
        rows: list[Row] = []
        for stem, pixels in images.items():
            if pixels is not None:
                Image.fromarray(pixels).save(root / f"{stem}.png")
            values = {key: value[stem] if isinstance(value, dict) else value for key, value in fields.items()}
            defaults = {"study": f"{name}-{stem}", "subject": f"{name}-{stem}", "split": "train", "view": "frontal"}
            rows.append(Row(**{**defaults, "file": f"{stem}.png", "source": "nih", "licence": "CC BY 4.0", **values}))
        Manifest(tuple(rows), root).write(root / "manifest.parquet")
        return root / "manifest.parquet"

    return write


@pytest.fixture
def write_plan(tmp_path: Path) -> Callable[..., Path]:
    """Writes a plan over manifests by their folders' names."""

    def write(*manifests: Path, **fields: Any) -> Path:
        sources = [{"name": path.parent.name, "manifest": str(path)} for path in manifests]
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({"name": "toy", "sources": sources, **fields}), encoding="utf-8")
        return path

    return write


def smooth(rng: np.random.Generator, side: int = 64) -> Pixels:
    """A drawn picture that is like no other."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
