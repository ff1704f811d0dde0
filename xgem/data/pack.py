"""A manifest's data set in one small folder: images prepared at a preset's size, as lossy WebP, with all of its texts.

For machines that data have to be carried to. What is lost is what WebP's compression loses: the images of a folder
are those that the preset reads from the sources, so that no size, padding, inversion or pixel aspect is left to do.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from xgem.configs.reading import AS_STATED
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.study import ANNOTATED_VIEW, Study, read_study
from xgem.data.transforms import Notes, grey_levels, read_with, to_square
from xgem.types import InputError
from xgem.utils.files import new_folder
from xgem.utils.hashing import in_threads
from xgem.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgem.configs.components import TransformConfig

MANIFEST: Final = "manifest.parquet"
_SLOWEST = 6  # WebP's method: the smallest files


def pack(manifest: Manifest, out: Path, config: TransformConfig, *, quality: int = 85) -> dict[str, Any]:
    """Write ``out``: :data:`MANIFEST`, ``images`` as grey WebP of ``config.size`` pixels, ``masks`` as PNG.

    Rows keep all of their fields; ``reading`` is done and no longer stated. Masks and boxes are those of the prepared
    images; a mask of both lungs becomes one of each.

    Args:
        quality: WebP's, 1 to 100.

    Returns:
        ``images``, their number; ``megabytes`` (10^6 bytes) of the folder; ``psnr`` of the images against those that
        are not compressed, and the ``lowest psnr``, in dB.

    Raises:
        InputError: no images, or a quality that is none. ImageError: an image cannot be read.
        OutputError: ``out`` is used or cannot be written; then, as with any error, nothing is left there.
    """
    if not 1 <= quality <= 100:
        raise InputError(f"quality {quality}: expected 1 to 100")
    rows = [row for row in manifest.rows if row.file is not None]
    if not rows:
        raise InputError("the manifest has no images to pack")
    names = dict(zip(map(manifest.file, rows), _names(rows), strict=True))
    noted = Notes()
    with new_folder(out) as folder:
        (folder / "images").mkdir()

        def write(row: Row) -> float:
            file = manifest.file(row)
            assert file is not None
            radiograph = read_with(file, config, row.reading)
            noted.add(radiograph.notes, file)
            grey = grey_levels(to_square(radiograph, config))
            data = _webp(grey, quality)
            (folder / names[file]).write_bytes(data)
            return _psnr(grey, data)

        ratios = in_threads(write, rows, "packing images")
        annotated = {study.id: study for study in manifest.studies() if study.masks or study.boxes}
        changed = {
            study.id: _annotations(study, folder, config)
            for study in track(annotated.values(), "packing annotations", len(annotated))
        }
        packed: list[Row] = []
        for row in manifest.rows:
            file = manifest.file(row)
            place = {} if file is None else {"file": names[file]}
            packed.append(row.model_copy(update={"reading": AS_STATED, **changed.get(row.study, {}), **place}))
        Manifest(tuple(packed), folder).write(folder / MANIFEST)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    noted.log()
    return {
        "images": len(rows),
        "megabytes": round(size / 1e6, 2),
        "psnr": round(float(np.mean(ratios)), 2),
        "lowest psnr": round(min(ratios), 2),
    }


def _names(rows: Sequence[Row]) -> list[str]:
    """A file for each row, ``images/STUDY-VIEW.webp``, with a number where it is taken."""
    taken: Counter[str] = Counter()
    names: list[str] = []
    for row in rows:
        stem = _plain(f"{row.study}-{row.view or 'unknown'}")
        taken[stem] += 1
        names.append(f"images/{stem}{'' if taken[stem] == 1 else f'.{taken[stem]}'}.webp")
    return names


def _plain(text: str) -> str:
    return re.sub(r"[^\w-]", "_", text)


def _webp(grey: NDArray[np.uint8], quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "WEBP", quality=quality, method=_SLOWEST)
    return stream.getvalue()


def _psnr(grey: NDArray[np.uint8], data: bytes) -> float:
    """Peak signal-to-noise ratio of a file's image, in dB; 99 where it is the same."""
    read = np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=np.float32)
    error = float(np.square(read - grey).mean())
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0


def _annotations(study: Study, folder: Path, config: TransformConfig) -> Mapping[str, Any]:
    """The fields ``masks`` and ``boxes`` on the grid of the prepared image; masks are written."""
    if ANNOTATED_VIEW not in study.images:
        raise InputError(f"study {study.id!r} has masks or boxes and no {ANNOTATED_VIEW}; drop them or its rows")
    annotation = read_study(study, config)
    masks: dict[str, tuple[str, ...]] = {}
    for structure, mask in annotation.masks.items():
        name = f"masks/{_plain(study.id)}-{_plain(structure)}.png"
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / name)
        masks[structure] = (name,)
    return {"masks": masks, "boxes": annotation.boxes}
