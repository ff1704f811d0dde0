"""Drawn studies, and what commands write of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.data.manifest import Manifest
from xgem.data.rows import Row

REPORTS = (
    ("Large right pleural effusion.", ("Pleural Effusion",)),
    ("Cardiomegaly. No effusion.", ("Cardiomegaly",)),
    ("No acute disease.", ("normal",)),
)
STUDIES = 12
QUICK = ("--bootstrap", 20)


@pytest.fixture(scope="session")
def model(debug_checkpoint: Path) -> Path:
    return debug_checkpoint


@pytest.fixture
def cxr(tmp_path: Path) -> Path:
    """A smooth synthetic image; nothing of a patient's."""
    y, x = np.mgrid[0:64, 0:64] / 64
    Image.fromarray(np.uint8(128 + 100 * np.sin(6 * x) * np.cos(4 * y))).save(tmp_path / "cxr.png")
    return tmp_path / "cxr.png"


def drawn(rng: np.random.Generator, kind: int, side: int = 48) -> Image.Image:
    """Smooth noise, brighter where the study has a finding; nothing of a patient's."""
    pixels = np.kron(rng.normal(120, 40, (4, 4)), np.ones((side // 4, side // 4)))
    pixels[: side // 2] += 40 * kind
    return Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies with both views, a report, labels and demographics; larger than the model's images."""
    root, rng = tmp_path_factory.mktemp("studies"), np.random.default_rng(0)
    rows: list[Row] = []
    for split in ("train", "val"):
        for i in range(STUDIES):
            impression, labels = REPORTS[i % 3]
            common: dict[str, Any] = {"study": f"{split}{i}", "subject": f"{split}{i}", "split": split}
            common |= {"source": "drawn", "licence": "free", "impression": impression, "labels": labels}
            common |= {"sex": "FM"[i % 2], "age": 30.0 + 3 * i}
            for view in ("frontal", "lateral"):
                drawn(rng, i % 3).save(root / f"{split}{i}-{view}.png")
                rows.append(Row(view=view, file=f"{split}{i}-{view}.png", **common))
    Manifest(tuple(rows), root).write(root / "studies.parquet")
    return root / "studies.parquet"


def labels(i: int) -> str:
    return f"{{'Edema': {i % 2}.0, 'Fracture': nan}}"


Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a folder of drawn images with a CSV."""

    def write(name: str, n: int = 8, seed: int = 0, side: int = 48, **columns: Callable[[int], Any]) -> Path:
        place, rng = tmp_path / name, np.random.default_rng(seed)
        place.mkdir()
        columns = {"file": lambda i: f"{i}.png", "id": lambda i: f"s{i}", **columns}
        with (place / "set.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(columns)
            for i in range(n):
                drawn(rng, i % 3, side).save(place / f"{i}.png")
                table.writerow([make(i) for make in columns.values()])
        return place

    return write


def read(out: Path, stem: str) -> dict[str, Any]:
    return json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))


def numbers(record: dict[str, Any], family: str) -> dict[str, Any]:
    """Of a record's family, by name, finding and space."""
    found = next(one for one in record["families"] if one["family"] == family)
    return {" ".join((one["name"], one.get("of", ""), one.get("extractor", ""))): one for one in found["metrics"]}


def check_whole(out: Path, stem: str) -> None:
    """All four files, and every number with its interval and n, or the reason why there is none."""
    record = read(out, stem)
    assert (record["format"], record["format_version"]) == ("xgem-measures", 2)
    assert record["xgem"]
    metrics = [one for family in record["families"] for one in family["metrics"]]
    for one in metrics:
        if "value" not in one:
            assert one["not_computed"], one["name"]
        else:
            assert isinstance(one["value"]["value"], float), one["name"]
            assert {"low", "high"} < set(one["value"])
            assert one["value"]["n"] >= 1
    with (out / f"{stem}.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["number"] == "value"]
    assert len(rows) == len(metrics)
    assert all(bool(row["value"]) != bool(row["not_computed"]) for row in rows)
    page = (out / f"{stem}.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count('<h2 id="family-') == len(record["families"])
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', page)
    assert (out / f"{stem}.md").read_text(encoding="utf-8").count("### ") == len(record["families"])
