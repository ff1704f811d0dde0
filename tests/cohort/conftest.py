"""Tiny checkpoints of random weights, plans of them, and a drawn manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.data.rows import Row


@pytest.fixture(scope="session")
def model(debug_checkpoint: Path) -> Path:
    return debug_checkpoint


@pytest.fixture(scope="session")
def control(chexgen_checkpoint: Path) -> Path:
    """A model of frontals alone that takes demographics and annotations."""
    return chexgen_checkpoint


@pytest.fixture
def write_plan(tmp_path: Path, model: Path) -> Callable[..., Path]:
    """Writes a plan file: quick settings, and what is given over them; None leaves a field out."""

    def write(file: str = "plan", **fields: Any) -> Path:
        values: dict[str, Any] = {"name": "toy", "model": str(model), "seed": 5}
        values |= {"num_inference_steps": 2, "batch_size": 4, **fields}
        path = tmp_path / f"{file}.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five studies of the split test, each with something else; and one of the split train."""
    root = tmp_path_factory.mktemp("studies")
    mask = np.zeros((48, 64), np.uint8)
    mask[10:40, 8:30] = 255
    Image.fromarray(mask).save(root / "lung.png")
    known: dict[str, dict[str, Any]] = {
        "a": {"impression": "Small effusion.", "labels": ("Effusion",), "age": 40.0, "sex": "F", "race": "White"},
        "b": {"impression": "Normal heart.", "labels": ("normal",), "sex": "M"},
        "c": {"impression": "", "labels": ("Cardiomegaly",)},
        "d": {
            "impression": "Opacity.",
            "severity": 4.0,
            "boxes": (Box("mass", 0.25, 0.25, 0.5, 0.5),),
            "masks": {"right lung": ("lung.png",)},
        },
        "e": {"impression": "Report alone."},
        "t": {"impression": "Of another split.", "split": "train"},
    }
    rows: list[Row] = []
    for number, (name, fields) in enumerate(known.items()):
        common = {"study": name, "subject": name, "split": "test", "source": "drawn", "licence": "free", **fields}
        if name == "e":
            rows.append(Row(**common))
            continue
        for view in ("frontal", "lateral") if name in "ab" else ("frontal",):
            y, x = np.mgrid[0:48, 0:64] / 48
            image = 128 + 100 * np.sin((number + 2) * x + len(view)) * np.cos(4 * y)
            Image.fromarray(np.uint8(image)).save(root / f"{name}-{view}.png")
            rows.append(Row(view=view, file=f"{name}-{view}.png", **common))
    Manifest(tuple(rows), root).write(root / "studies.parquet")
    return root / "studies.parquet"
