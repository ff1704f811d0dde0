"""A manifest in forms that other tools read."""

from __future__ import annotations

import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.configs.reading import AS_STATED
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.transforms import read_with
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels
from xgem.types import InputError
from xgem.utils.files import new_folder
from xgem.utils.tables import csv_text

logger = logging.getLogger(__name__)

METADATA: Final = "metadata.csv"
COLUMNS: Final = (
    *("file_name", "study", "subject", "view", "text", "findings", "impression", "age", "sex", "source", "licence"),
    *CHEXPERT_CLASSES,
)
FOLDERS: Final = {"train": "train", "val": "validation", "test": "test"}
"""By split, the folder of its images."""
_COMMON: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})


def write_imagefolder(manifest: Manifest, out: Path, *, copy: bool = False) -> dict[str, int]:
    """Write ``imagefolder`` of ``datasets``: ``train``, ``validation`` and ``test`` with images and ``metadata.csv``.

    Its columns are :data:`COLUMNS`: ``file_name``, ``text`` (findings and impression), and each of CheXpert's classes
    as 1, 0 or empty, where it is unknown. Images are symbolic links, or copies; DICOM and ``.npy`` become PNG of 16
    bits, as do images that are read in a way of their own. Masks and boxes are not written, nor are reports without an
    image (a warning counts them).

    Returns:
        number of images by folder.

    Raises:
        InputError: the manifest has no images. ImageError: one cannot be read.
        OutputError: ``out`` is used or cannot be written.
    """
    rows = [row for row in manifest.rows if row.file is not None]
    if not rows:
        raise InputError("the manifest has no images, of which an imagefolder is made")
    if len(rows) < len(manifest.rows):
        logger.warning("imagefolder: %d reports without an image are left out", len(manifest.rows) - len(rows))
    with new_folder(out) as folder:
        names = write_parts(manifest, rows, folder, copy=copy)
    return dict(Counter(name.partition("/")[0] for name in names))


def columns(more: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The columns of ``metadata.csv``: :data:`COLUMNS`, then those of ``more``, which :func:`write_parts` takes."""
    return [*COLUMNS, *dict.fromkeys(name for one in more for name in one)]


def write_parts(
    manifest: Manifest,
    rows: Sequence[Row],
    folder: Path,
    *,
    copy: bool,
    more: Sequence[Mapping[str, Any]] | None = None,
) -> list[str]:
    """Write the folders of :func:`write_imagefolder` for these rows, which have images, into an empty ``folder``.

    Args:
        more: further columns of ``metadata.csv`` by row; a row without one has an empty cell.

    Returns:
        the images' names within ``folder``, by row.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    taken: Counter[str] = Counter()
    names: list[str] = []
    for number, row in enumerate(rows):
        part = FOLDERS[row.split]
        (folder / part).mkdir(exist_ok=True)
        name = _put(manifest, row, folder / part, taken, copy=copy)
        tables.setdefault(part, []).append({"file_name": name, **_fields(row), **(more[number] if more else {})})
        names.append(f"{part}/{name}")
    heads = columns(more or ())
    for part, records in tables.items():
        (folder / part / METADATA).write_text(csv_text(heads, records), encoding="utf-8")
    return names


def _put(manifest: Manifest, row: Row, folder: Path, taken: Counter[str], *, copy: bool) -> str:
    """Link, copy or convert a row's image; the name that it gets."""
    file = manifest.file(row)
    assert file is not None
    stem = re.sub(r"[^\w.-]", "_", f"{row.study}-{row.view or 'unknown'}")
    taken[stem] += 1
    stem += "" if taken[stem] == 1 else f"-{taken[stem]}"
    if file.suffix.lower() not in _COMMON or row.reading != AS_STATED:
        from PIL import Image

        pixels = np.rint(read_with(file, reading=row.reading).pixels * 65535).astype(np.uint16)
        Image.fromarray(pixels).save(folder / f"{stem}.png")
        return f"{stem}.png"
    name = f"{stem}{file.suffix.lower()}"
    if copy:
        shutil.copyfile(file, folder / name)
    else:
        (folder / name).symlink_to(file)
    return name


def _fields(row: Row) -> dict[str, Any]:
    labels = annotated_labels(row.labels, row.source)
    return {
        **{name: getattr(row, name) for name in ("study", "subject", "view", "findings", "impression", "sex")},
        "age": None if row.age is None else f"{row.age:g}",
        "text": " ".join(text for text in (row.findings, row.impression) if text),
        "source": row.source,
        "licence": row.licence,
        **{name: f"{value:g}" for name, value in labels.items()},
    }
