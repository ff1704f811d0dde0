"""A manifest of synthetic images and made-up reports, with studies that lack a view or the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.data.manifest import Manifest, Row
from xgem.train.corpus import Corpus

REPORTS = (
    ("No acute disease.", ("normal",)),
    ("Large left pleural effusion. Clear right lung.", ("Pleural Effusion",)),
    ("Cardiomegaly. Clear lungs. No effusion.", ("Cardiomegaly",)),
)
# What each kind of study has: frontals, laterals, a report.
KINDS = ((1, 1, True), (1, 1, True), (2, 1, True), (1, 0, True), (0, 1, True), (1, 1, False), (0, 0, True))


def make_rows(folder: Path, split: str, count: int) -> list[Row]:
    rng = np.random.default_rng(sum(split.encode()))
    y, x = np.mgrid[0:40, 0:40] / 40
    rows: list[Row] = []
    for number in range(count):
        name = f"{split}{number:02d}"
        frontals, laterals, has_report = KINDS[number % len(KINDS)]
        text, labels = REPORTS[number % len(REPORTS)] if has_report else ("", ())
        views: list[Any] = ["frontal"] * frontals + ["lateral"] * laterals or [None]
        for i, view in enumerate(views):
            file = None
            if view is not None:
                file = f"{name}-{i}.png"
                waves = 127 + 60 * np.sin(6 * x + number) + 40 * np.cos(5 * y + 2 * i + len(view))
                grey = (waves + rng.normal(0, 6, x.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(grey).save(folder / file)
            common: dict[str, Any] = {"study": name, "subject": name, "split": split, "source": "toy"}
            rows.append(Row(view=view, file=file, impression=text, labels=labels, **common))
    return rows


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest's file."""
    folder = tmp_path_factory.mktemp("toy")
    rows = make_rows(folder, "train", 21) + make_rows(folder, "val", 7)
    Manifest(tuple(rows), folder).write(folder / "toy.jsonl")
    return folder / "toy.jsonl"


@pytest.fixture(scope="session")
def corpora(toy: Path, debug_preset: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    """The splits train and val, prepared."""
    cache = tmp_path_factory.mktemp("cache")
    manifest = Manifest.read(toy)
    train, val = (Corpus.load(manifest, split, debug_preset, cache, progress=False) for split in ("train", "val"))
    return train, val
