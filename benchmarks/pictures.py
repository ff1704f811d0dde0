"""Pictures for benchmarks/curation.py: real radiographs, changed ones, and what is no radiograph."""

from __future__ import annotations

import importlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xgem.data.manifest import Manifest, split_of
from xgem.data.transforms import read_with
from xgem.types import XgemError

SOURCES = ("nih", "nih_boxes", "openi", "hannover", "severity", "segmentations", "covid")
# Of the pictures that are no radiographs some are kept for measuring
HELD_OUT = {
    "coins",
    "chelsea",
    "rocket",
    "gravel",
    "text",
    "motorcycle_right",
    "flower",
    "MR_small",
    "cell",
    "clock_motion",
}
WORDS = [
    "NAME",
    "ID",
    "DOB",
    "SEX",
    "AP",
    "PA",
    "CHEST",
    "WARD",
    "BED",
    "ROOM",
    "HOSPITAL",
    "CLINIC",
    "DATE",
    "TIME",
    "KV",
    "MAS",
    "TECH",
    "DR",
    "ACC",
    "STUDY",
    "SERIES",
    "ERECT",
]


@dataclass(frozen=True)
class Real:
    """A radiograph of a data set: ``pixels`` (h, w) in [0, 1], its view, and the split of its subject."""

    file: Path
    view: str
    subject: str
    source: str
    split: str
    pixels: Any


def real(data: Path, split: tuple[str, ...], limit: dict[str, int] | None = None) -> list[Real]:
    """The radiographs whose subjects are in ``split``, in a fixed order; ``limit``: so many of a source and view."""
    found: list[Real] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            prepare: Any = importlib.import_module(f"xgem.data.sources.{source}").prepare
            manifest: Manifest = prepare(data / source.replace("-", "_"), Path(folder) / f"{source}.parquet")
            counts: dict[str, int] = {}
            for row in manifest.rows:
                file = manifest.file(row)
                hashed = split_of(row.subject.replace("nih-boxes-", "nih-"), val=0.15, test=0.15)
                if file is None or row.view is None or hashed not in split:
                    continue
                counts[row.view] = counts.get(row.view, 0) + 1
                if limit and counts[row.view] > limit.get(source, 10**9):
                    continue
                try:
                    pixels = read_with(file, reading=row.reading).pixels
                except XgemError:
                    continue
                found.append(Real(file, row.view, row.subject, source, hashed, pixels))
    return found


def others(held_out: bool) -> list[Any]:
    """Photographs, textures, microscopy, CT and MR slices of scikit-image, scikit-learn and pydicom."""
    import pydicom
    import pydicom.data
    import skimage.data
    import sklearn.datasets

    images: dict[str, Any] = {}
    for folder in (Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"):
        for file in sorted(folder.iterdir()):
            if file.suffix in (".png", ".jpg"):
                with Image.open(file) as image:
                    images[file.stem] = np.asarray(image.convert("L"), np.float32) / 255
    for name in ("CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "693_J2KI.dcm"):
        values = pydicom.dcmread(str(pydicom.data.get_testdata_file(name))).pixel_array.astype(np.float32)
        values = values if values.ndim == 2 else values.reshape(-1, *values.shape[-2:])[0]
        images[Path(name).stem] = (values - values.min()) / max(float(np.ptp(values)), 1)
    return [image for name, image in sorted(images.items()) if (name in HELD_OUT) == held_out]


def resized(pixels: Any, height: int, width: int) -> Any:
    """(h, w) in [0, 1] at another size."""
    image = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    return np.clip(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)


def not_chest(rng: np.random.Generator, pool: list[Any]) -> Any:
    """A picture (h, w) in [0, 1] of something else: a part of one of the pool, noise, a page, a chart."""
    kind = rng.choice(["photo", "photo", "photo", "noise", "page", "chart", "limb"])
    side = int(rng.integers(200, 400))
    if kind == "photo":
        image = pool[rng.integers(len(pool))]
        h, w = image.shape
        share = rng.uniform(0.4, 1)
        top, left = int(rng.uniform(0, h * (1 - share))), int(rng.uniform(0, w * (1 - share)))
        image = np.rot90(image[top : top + int(h * share), left : left + int(w * share)], int(rng.integers(4)))
        image = image[:, ::-1] if rng.random() < 0.5 else image
        return resized(np.clip(image ** rng.uniform(0.6, 1.6), 0, 1), side, side)
    if kind == "noise":
        image = resized(rng.random((int(rng.integers(3, side)),) * 2).astype(np.float32), side, side)
        return (
            image if rng.random() < 0.5 else np.clip(image + rng.normal(0, 0.1, image.shape).astype(np.float32), 0, 1)
        )
    if kind == "limb":
        return limb(rng, side)
    page = Image.new("L", (side, side), int(rng.integers(200, 256)))
    draw = ImageDraw.Draw(page)
    if kind == "page":
        size = int(rng.integers(8, 20))
        for y in range(10, side - size, int(size * rng.uniform(1.2, 2))):
            text = " ".join(rng.choice(WORDS, int(rng.integers(2, 12))))
            draw.text(
                (10, y),
                text.lower() if rng.random() < 0.7 else text,
                int(rng.integers(80)),
                ImageFont.load_default(size),
            )
    else:
        for _ in range(int(rng.integers(3, 15))):
            box = sorted(rng.integers(0, side, 2)), sorted(rng.integers(0, side, 2))
            shape = rng.choice(["rectangle", "ellipse", "line"])
            corners = (int(box[0][0]), int(box[1][0]), int(box[0][1]) + 1, int(box[1][1]) + 1)
            getattr(draw, shape)(corners, fill=int(rng.integers(256)))
    image = np.asarray(page, np.float32) / 255
    return 1 - image if rng.random() < 0.3 else image


def limb(rng: np.random.Generator, side: int) -> Any:
    """Bright bands in a grey one on black, as long bones lie in soft tissue."""
    y, x = np.mgrid[-1 : 1 : 1j * side, -1 : 1 : 1j * side].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    width = rng.uniform(0.3, 0.7) * (1 + rng.uniform(-0.3, 0.3) * along)
    image = 0.45 * np.sqrt(np.clip(1 - (across / width) ** 2, 0, None))
    for _ in range(int(rng.integers(1, 4))):
        middle = rng.uniform(-0.5, 0.5) * width + rng.uniform(-0.1, 0.1) * along
        bone = width * rng.uniform(0.12, 0.35) * (1 + 0.5 * along**2 * rng.uniform(0, 1))
        near = np.clip(1 - ((across - middle) / bone) ** 2, 0, None)
        image = image + near**0.5 * rng.uniform(0.25, 0.5)
    image = image + rng.normal(0, rng.uniform(0.005, 0.04), image.shape)
    image = np.clip(image, 0, 1).astype(np.float32)
    return 1 - image if rng.random() < 0.2 else image


def with_text(pixels: Any, rng: np.random.Generator) -> Any:
    """A radiograph with lines of a patient's and examination's data burned in at a corner."""
    image = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    width, height = image.size
    size = max(9, int(height * rng.uniform(0.035, 0.06)))
    y = int(rng.uniform(0.01, 0.06) * height) if rng.random() < 0.5 else int(rng.uniform(0.6, 0.75) * height)
    x = int(rng.choice([0.02, 0.45]) * width)
    for _ in range(int(rng.integers(3, 7))):
        text = " ".join([*rng.choice(WORDS, 2), str(rng.integers(10 ** int(rng.integers(3, 8))))])
        draw.text((x, y), text, int(rng.choice([255, 240, 0], p=[0.7, 0.2, 0.1])), ImageFont.load_default(size))
        y += int(size * 1.25)
    return np.asarray(image, np.float32) / 255


def collage(images: list[Any], rng: np.random.Generator) -> Any:
    """Two to four radiographs beside and below each other, with or without a gap."""
    rows, columns = [(1, 2), (2, 1), (2, 2), (1, 3)][rng.integers(4)]
    gap = int(rng.choice([0, 3, 8]))
    tiles = [resized(images[k % len(images)], 200, 200) for k in range(rows * columns)]
    tiles = [np.pad(tile, gap, constant_values=float(rng.choice([0, 1]))) for tile in tiles]
    return np.concatenate([np.concatenate(tiles[r * columns : (r + 1) * columns], 1) for r in range(rows)], 0)


def smaller(pixels: Any, rng: np.random.Generator) -> Any:
    scale = rng.uniform(0.55, 1.6)
    return resized(pixels, *(max(140, int(side * scale)) for side in pixels.shape))


def compressed(pixels: Any, rng: np.random.Generator) -> Any:
    stream = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(stream, "JPEG", quality=int(rng.integers(25, 70)))
    return np.asarray(Image.open(stream), np.float32) / 255


def brighter(pixels: Any, rng: np.random.Generator) -> Any:
    changed = pixels ** rng.uniform(0.75, 1.35) * rng.uniform(0.85, 1.15) + rng.uniform(-0.06, 0.06)
    return np.clip(changed, 0, 1).astype(np.float32)


def cropped(pixels: Any, rng: np.random.Generator) -> Any:
    h, w = pixels.shape
    top, bottom, left, right = rng.uniform(0, 0.05, 4) * (h, h, w, w)
    return pixels[int(top) : h - int(bottom), int(left) : w - int(right)]


CHANGES: dict[str, Callable[[Any, np.random.Generator], Any]] = {
    "resized": smaller,
    "JPEG": compressed,
    "brightness": brighter,
    "cropped": cropped,
    "several": lambda pixels, rng: compressed(brighter(cropped(pixels, rng), rng), rng),
}
"""What happens to copies of a picture."""
