"""Drawn studies for experiments at debug size: shapes in place of findings, so that networks have what to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.data.rows import Row, Split
from xgem.labels.terms import DENIED
from xgem.utils.files import new_folder

FINDINGS: Final = ("Cardiomegaly", "Pleural Effusion", "Lung Opacity")
OWN: Final = "round shadow"
"""A term of the source that is none of CheXpert's classes."""
MASK, BOX = "consolidation", "pneumonia"
"""What an opacity is in masks and in boxes."""
_COUNTS: Final[dict[Split, int]] = {"train": 32, "val": 16, "test": 16}
_SIDE: Final = 48
_TEXT: Final = {
    "Cardiomegaly": "The heart is enlarged.",
    "Pleural Effusion": "There is a pleural effusion.",
    "Lung Opacity": "Lung opacity.",
}


def draw(folder: Path, *, name: str, seed: int, skewed: bool = False) -> Path:
    """A manifest of drawn studies with both views, reports, labels, masks, boxes, severity, age, sex and race.

    The same ``name`` and ``seed`` give the same files; a folder that is there already is taken as it is. Every finding
    is in half of the studies; ``skewed``: of training studies, in 1/2, 3/8 and 1/4.
    """
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        return manifest
    rng = np.random.default_rng([seed, *name.encode()])
    with new_folder(folder) as root:
        studies: list[tuple[Split, int]] = [
            (split, number) for split, count in _COUNTS.items() for number in range(count)
        ]
        rows = [
            row
            for split, number in studies
            for row in _study(root, name, split, number, rng, skewed and split == "train")
        ]
        Manifest(tuple(rows), root).write(root / manifest.name)
    return manifest


def _study(root: Path, name: str, split: Split, number: int, rng: np.random.Generator, skewed: bool) -> list[Row]:
    """One study; every eight have all combinations of findings, of each sex and race in turn."""
    study = f"{name}-{split}{number:02d}"
    kept = (True, bool(number & 24), bool(number & 8)) if skewed else (True,) * len(FINDINGS)
    shown = [finding for bit, finding in enumerate(FINDINGS) if number >> bit & 1 and kept[bit]]
    lungs, (x, y, side) = _lungs(), (float(rng.uniform(0.15, 0.3)), float(rng.uniform(0.25, 0.5)), 0.2)
    files: dict[str, str] = {}
    for view in ("frontal", "lateral"):
        files[view] = f"{study}-{view}.png"
        pixels = _drawn(lungs, shown, (x, y, side), rng)
        Image.fromarray(pixels if view == "frontal" else pixels[:, ::2].repeat(2, axis=1)).save(root / files[view])
    has_opacity = "Lung Opacity" in shown
    right = _grid()[1] < 0.5
    masks = {"right lung": lungs & right, "left lung": lungs & ~right}
    masks |= {MASK: _square(x, y, side)} if has_opacity else {}
    named = {structure: f"{study}-{structure.replace(' ', '-')}.png" for structure in masks}
    for structure, mask in masks.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / named[structure])
    stated = {name: name in shown for name in FINDINGS} | {OWN: has_opacity}
    common: dict[str, Any] = {
        "study": study,
        "subject": study,
        "split": split,
        "impression": " ".join(_TEXT[finding] for finding in shown) or "No acute disease.",
        "labels": tuple(name if has else f"{DENIED}{name}" for name, has in stated.items()),
        "age": (30.0, 50.0, 75.0)[number % 3],
        "sex": "FM"[number // 8 % 2],
        "race": ("White", "Black")[(number + number // 8) % 2],
        "severity": 6.0 * has_opacity + 6.0 * ("Pleural Effusion" in shown),
        "masks": {structure: (file,) for structure, file in named.items()},
        "boxes": (Box(BOX, x, y, side, side),) if has_opacity else (),
        "source": "chexpert",  # all findings are stated, by CheXpert's names
        "licence": "drawn by xgem; of no patient",
    }
    return [Row(view=view, file=file, **common) for view, file in files.items()]


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    return y, x


def _lungs() -> NDArray[np.bool_]:
    y, x = _grid()
    left, right = (((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.33) ** 2 < 1 for centre in (0.28, 0.72))
    return left | right


def _square(x: float, y: float, side: float) -> NDArray[np.bool_]:
    rows, columns = _grid()
    return (columns >= x) & (columns < x + side) & (rows >= y) & (rows < y + side)


def _drawn(
    lungs: NDArray[np.bool_], shown: list[str], box: tuple[float, float, float], rng: np.random.Generator
) -> NDArray[np.uint8]:
    y, x = _grid()
    image = np.where(lungs, 70.0, 150.0)
    width = 0.22 if "Cardiomegaly" in shown else 0.1
    image[((x - 0.5) / width) ** 2 + ((y - 0.62) / 0.18) ** 2 < 1] = 200
    if "Pleural Effusion" in shown:
        image[lungs & (y > 0.68)] = 215
    if "Lung Opacity" in shown:
        image[_square(*box)] = 235
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
