"""A drawn manifest of two splits, the tiny checkpoint, and a plan that runs in seconds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from xgem.data.manifest import Manifest
from xgem.data.rows import Row


def drawn(folder: Path, name: str, number: int) -> str:
    """A grey pattern as a PNG; its file name."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:64, 0:64] / 64
    grey = 120 + 60 * np.sin((3 + number % 5) * x) * np.cos(4 * y + number) + rng.normal(0, 9, x.shape)
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return f"{name}.png"


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 training and 12 test studies, half of them with a finding; two training studies have one text."""
    root = tmp_path_factory.mktemp("bench-studies")
    rows: list[Row] = []
    for number in range(26):
        split, finding = "train" if number < 14 else "test", number % 2 == 0
        text = (
            f"Cardiomegaly of grade {number}."
            if finding
            else f"Normal heart, study {max(1, number - 2 * (number == 3))}."
        )
        rows.append(
            Row(
                study=f"s{number:02d}",
                subject=f"p{number:02d}",
                split=split,
                view="frontal",
                file=drawn(root, f"s{number:02d}", number),
                impression=text,
                labels=("Cardiomegaly",) if finding else ("No Finding",),
                source="chexpert",
            )
        )
    Manifest(tuple(rows), root).write(root / "studies.parquet")
    return root / "studies.parquet"


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory, studies: Path) -> Path:
    """The benchmark's CSV of another model's images, for the prompts of the test split."""
    root = tmp_path_factory.mktemp("given")
    with (root / "prompt_INFO.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["prompt", "img_savename"])
        for study in Manifest.read(studies).studies("test"):
            table.writerow([study.impression, drawn(root, study.id, 100 + int(study.id[1:]))])
    return root / "prompt_INFO.csv"


@pytest.fixture(scope="session")
def values(studies: Path, given: Path, debug_checkpoint: Path) -> dict[str, Any]:
    """A plan's fields: the tiny model with all parts, and the given images, of which fidelity alone can be measured."""
    return {
        "name": "tiny",
        "data": {"manifest": str(studies), "train": "train", "test": "test"},
        "models": [
            {"name": "tiny", "model": str(debug_checkpoint), "sampling": {"num_inference_steps": 1}},
            {"name": "theirs", "sets": {"test": str(given)}},
        ],
        "fidelity": {"n": 10, "spaces": ["rad-dino", "radiomics", "mobilenet-v2"]},
        "privacy": {"prompts": 4, "seeds": 2, "spaces": ["mobilenet-v2"], "reid": "xgem"},
        "classification": {"n": 12, "settings": "small", "epochs": 1},
        "reports": {"n": 10, "test_n": 8, "preset": "debug", "init": str(debug_checkpoint), "steps": 1},
        "bootstrap": 20,
    }


@pytest.fixture
def write(tmp_path: Path, values: dict[str, Any]) -> Callable[..., Path]:
    """Writes a plan file with what is given over the fields; None leaves a field out."""

    def write_plan(**fields: Any) -> Path:
        path = tmp_path / "plan.yaml"
        kept = {key: value for key, value in (values | fields).items() if value is not None}
        path.write_text(yaml.safe_dump(kept), encoding="utf-8")
        return path

    return write_plan
