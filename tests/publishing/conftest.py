"""Drawn radiographs: real ones of a manifest, and others that say that xgem generated them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.modalities import get_modality

SIZE = 96
TRAINING, HELD_OUT, GOOD = 60, 64, 12
Pixels = NDArray[np.uint8]


def drawn(seed: int) -> Pixels:
    """Two lungs, a heart and ribs in random places: every image is another one."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    image = 0.55 + 0.1 * random.standard_normal() + 0.2 * y
    blobs = [(0.3, 0.45, -0.4), (0.7, 0.45, -0.4), (0.55, 0.65, 0.35), *random.uniform(-0.3, 1, (6, 3))]
    for cx, cy, depth in blobs:
        dx, dy = random.normal(0, 0.06, 2)
        width, height = random.uniform(0.06, 0.2, 2)
        image = image + depth * np.exp(-(((x - cx - dx) / width) ** 2) - ((y - cy - dy) / height) ** 2)
    image = image + 0.04 * np.sin(2 * np.pi * (random.uniform(6, 12) * y + random.uniform(0, 1) + x * random.normal()))
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def metadata(number: int) -> dict[str, Any]:
    """As xgem writes it, as far as publishing reads it."""
    return {
        "format": 3, "synthetic": True, "output": "frontal", "sample": 0, "seed": number, "xgem": "0.1.0",
        "checkpoint": {"name": "openi-256", "hash": "0" * 16}, "inputs": {"report": {"text": "Cardiomegaly."}},
        "sampler": "unipc", "num_inference_steps": 30, "guidance_scale": 3.0,
    }  # fmt: skip


def smuggled(pixels: Pixels, quality: int = 80, shift: tuple[int, int] = (2, -1)) -> Pixels:
    """The same image after JPEG and a small shift, a little brighter."""
    stream = io.BytesIO()
    Image.fromarray(np.roll(pixels, shift, (0, 1))).save(stream, "JPEG", quality=quality)
    copied = np.asarray(Image.open(stream)).astype(np.float32)
    return np.clip(copied * 0.95 + 8, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of as many patients: 60 for training, 64 held out."""
    root = tmp_path_factory.mktemp("real")
    rows: list[Row] = []
    for number in range(TRAINING + HELD_OUT):
        Image.fromarray(drawn(number)).save(root / f"{number}.png")
        split = "train" if number < TRAINING else "val"
        rows.append(Row(study=f"r{number}", subject=f"p{number}", split=split, view="frontal", file=f"{number}.png"))
    Manifest(tuple(rows), root).write(root / "real.parquet")
    return root / "real.parquet"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a set of twelve good images, and after them whatever else is given; returns its manifest."""

    def write(*others: Pixels, source: str = "xgem", **changes: Any) -> Path:
        root = tmp_path_factory.mktemp("synthetic")
        rows: list[Row] = []
        for number, pixels in enumerate([*(drawn(1000 + k) for k in range(GOOD)), *others]):
            file = get_modality("frontal").write(Image.fromarray(pixels), root, f"{number:03}", metadata(number))
            assert file is not None
            known: dict[str, Any] = {
                "impression": "Cardiomegaly.",
                "labels": ("Cardiomegaly",),
                "age": 63.0,
                "sex": "F",
            }
            known |= {"source": source, "licence": "cc-by-nc-4.0", "split": "train" if number % 4 else "val", **changes}
            rows.append(Row(study=f"s{number:03}", subject=f"s{number:03}", view="frontal", file=file.name, **known))
        Manifest(tuple(rows), root).write(root / "manifest.parquet")
        return root / "manifest.parquet"

    return write
