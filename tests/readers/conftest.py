"""Sets of random textures, real and generated, with two compressibilities; and studies of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from xgem.readers.plan import StudyPlan, read_plan
from xgem.readers.study import Study, build, open_study

CASES = 24
REAL_TEXTS = ("The heart is normal in size. No effusion.", "Small left pleural effusion. XXXX consolidation.")
MADE_TEXTS = ("NO ACUTE DISEASE.", "left effusion  is seen .")


def texture(rng: np.random.Generator, size: int, smooth: bool) -> NDArray[np.uint8]:
    """Noise, which hardly compresses, or broad waves, which do."""
    if not smooth:
        return rng.integers(0, 256, (size, size), dtype=np.uint8)
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    waves = np.sin(rng.uniform(2, 6) * x + rng.uniform(0, 6)) * np.cos(rng.uniform(2, 6) * y)
    return np.asarray(128 + 100 * waves, dtype=np.uint8)


def write_set(folder: Path, *, real: bool, cases: int = CASES) -> Path:
    """A folder with ``metadata.csv``: a frontal and a lateral a case, and a report; generated ones name their case."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(int(real)), []
    texts = REAL_TEXTS if real else MADE_TEXTS
    for case in range(cases):
        for view in ("frontal", "lateral"):
            file = f"{case}-{view}.png"
            image = Image.fromarray(texture(rng, 72 if real else 64, smooth=not real))
            image.save(folder / file, optimize=real)
            row = {"file": file, "view": view, "report": texts[case % 2]}
            rows.append(row | {"id": f"{'r' if real else 'g'}{case}-{view}", "pair": f"r{case}"})
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, ["file", "view", "id", "pair", "report"])
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A real set and two generated ones; read only."""
    root = tmp_path_factory.mktemp("sets")
    names = {"real": True, "mine": False, "other": False}
    return {name: write_set(root / name, real=real) for name, real in names.items()}


@pytest.fixture
def plan_file(tmp_path: Path, sets: dict[str, Path]) -> Callable[..., Path]:
    """Writes a plan of the sets, with what is given over it; None leaves a field out."""

    def write(**fields: Any) -> Path:
        values: dict[str, Any] = {"name": "study", "seed": 3, "readers": ["anna", "ben"]}
        values |= {"real": str(sets["real"]), "generated": {"mine": str(sets["mine"])}, **fields}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def new_study(tmp_path: Path, plan_file: Callable[..., Path]) -> Callable[..., Study]:
    """Builds and opens a study of a plan with these fields; by default XGeM's protocol with four items a task."""

    def make(**fields: Any) -> Study:
        build(a_plan(plan_file, **fields), tmp_path / "study")
        return open_study(tmp_path / "study")

    return make


def a_plan(plan_file: Callable[..., Path], **fields: Any) -> StudyPlan:
    return read_plan(plan_file(**({"protocol": "xgem", "items": 2} | fields)))
