"""ChestX-Det and ChestX-Det10: images of NIH ChestX-ray14 with boxes and outlines of findings by radiologists.

Lian et al., "A structure-aware relation network for thoracic diseases detection and segmentation", IEEE Transactions on
Medical Imaging 2021 (13 findings, boxes and polygons); Liu et al., "ChestX-Det10: Chest X-ray dataset on detection of
thoracic abnormalities", arXiv 2006.10550 (10 findings, boxes).

A folder of ``ChestX_Det_train.json`` and ``ChestX_Det_test.json`` or, of ChestX-Det10, ``train.json`` and
``test.json``, and the images anywhere below. A file is a list of ``{"file_name": "36346.png", "syms": [...], "boxes":
[[x1, y1, x2, y2], ...], "polygons": [[[x, y], ...], ...]}``, one finding, box and polygon after the other, in pixels;
ChestX-Det10 has no polygons.

Decisions:

* Labels are the findings' names, each once; an image without any is "No Finding", as ChexGen reads it. Classes that a
  set does not annotate (pneumonia, edema, devices; in ChestX-Det10 also cardiomegaly and pleural thickening) are
  unknown, not absent.
* Boxes have the findings' classes. Those that reach over the edge are cut there, and those without an area left out,
  with a warning that counts them.
* Polygons of one finding together are the mask of the structure that is called so ("Effusion" is "pleural effusion"),
  written to ``chestx-det-masks`` beside the manifest.
* The published test is test; a fixed hash of the patient gives 10 % of train to val. Files that are called as in
  ChestX-ray14 (``00000042_006.png``) are of its patients, with their name as subject, and images of a patient in test
  are all in test. Other names do not tell the patient: the subject is the image.
* Age and sex are not published. Images that are not there are left out with a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError, model_validator

from xgem.data.annotations import Box
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.rows import one_line
from xgem.data.sources import nih
from xgem.data.sources.drawings import Cutter, MaskFiles, Shape, Size, stored_size
from xgem.data.sources.rows import check_images, make_row, write_manifest
from xgem.labels.spatial import plain_name
from xgem.labels.terms import NO_FINDING
from xgem.labels.vocabulary import SOURCES
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE: Final = "chestx-det"
SOURCE_10: Final = "chestx-det10"
LICENCE: Final = f"annotations of Deepwise AI Lab, licence not stated; images of NIH ChestX-ray14: {nih.LICENCE}"
_FILES: Final = {SOURCE: "ChestX_Det_{}.json", SOURCE_10: "{}.json"}
_STRUCTURES: Final = {"effusion": "pleural effusion"}
_OF_NIH: Final = re.compile(r"(\d{8})_\d{3}")


class _Image(BaseModel):
    """The annotations of an image."""

    file_name: str
    syms: list[str]
    boxes: list[tuple[float, float, float, float]]
    polygons: list[list[tuple[float, float]]] | None = None

    @model_validator(mode="after")
    def _one_each(self) -> _Image:
        drawn = self.boxes if self.polygons is None else self.polygons
        if not len(self.syms) == len(self.boxes) == len(drawn):
            raise ValueError(f"{self.file_name}: a box, and a polygon if there are any, for each of syms")
        return self


_IMAGES: Final = TypeAdapter(list[_Image])


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a ChestX-Det folder to ``out``, with references to its images in place, and the masks.

    Raises:
        DataError: the folder has no annotations, they are not as above, a finding is unknown, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``, where masks are written; errors as :func:`prepare`."""
    listed = next((found for name, pattern in _FILES.items() if (found := _listed(source, name, pattern))), None)
    if listed is None:
        raise DataError(f"{source}: not a ChestX-Det folder; expected ChestX_Det_train.json, or train.json, in it")
    files, masks, cutter = ImageFiles(source), MaskFiles(root, SOURCE), Cutter()
    shown: list[tuple[str, Path, _Image, Path]] = []
    name, annotations = listed
    for split, path in annotations.items():
        images = _read(path)
        found = [(image, file) for image in images if (file := files.find(image.file_name)) is not None]
        check_images(f"{name}, {split}", path, len(images), len(found))
        shown += [(split, path, image, file) for image, file in found]
    tested = {_subject(file) for split, _, _, file in shown if split == "test"}
    rows = [
        make_row(
            f"{path}: image {image.file_name}",
            study=f"{SOURCE}-{file.stem}",
            subject=_subject(file),
            split="test" if _subject(file) in tested else split_of(_subject(file), test=0),
            view="frontal",
            file=place(file, root),
            **_findings(name, f"{path}: image {image.file_name}", image, file, masks, cutter),
            source=name,
            licence=LICENCE,
        )
        for _, path, image, file in shown
    ]
    cutter.warn(name)
    masks.write()
    return rows


def _listed(source: Path, name: str, pattern: str) -> tuple[str, dict[str, Path]] | None:
    files = {split: source / pattern.format(split) for split in ("train", "test")}
    there = {split: path for split, path in files.items() if path.is_file()}
    return (name, there) if there else None


def _read(path: Path) -> list[_Image]:
    try:
        return _IMAGES.validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; expected a list of file_name, syms, boxes and polygons") from None


def _subject(file: Path) -> str:
    of_nih = _OF_NIH.fullmatch(file.stem)
    return f"{nih.SOURCE}-{int(of_nih[1])}" if of_nih else f"{SOURCE}-{file.stem}"


def _findings(
    source: str, where: str, image: _Image, file: Path, masks: MaskFiles, cutter: Cutter
) -> Mapping[str, Any]:
    """Labels, boxes and masks of an image."""
    unknown = next((sym for sym in image.syms if sym not in SOURCES[source]), None)
    if unknown is not None:
        raise DataError(f"{where}: finding {unknown!r}; expected one of {', '.join(SOURCES[source])}")
    if not image.syms:
        return {"labels": (NO_FINDING,)}
    size = stored_size(file)
    boxes = [cutter.box(sym, corners, size) for sym, corners in zip(image.syms, image.boxes, strict=True)]
    return {
        "labels": tuple(dict.fromkeys(image.syms)),
        "boxes": tuple(box for box in boxes if box is not None),
        "masks": _masks(image, file, size, boxes, masks),
    }


def _masks(
    image: _Image, file: Path, size: Size, boxes: list[Box | None], masks: MaskFiles
) -> dict[str, tuple[str, ...]]:
    outlines: dict[str, list[Shape]] = {}
    for sym, points, box in zip(image.syms, image.polygons or (), boxes, strict=bool(image.polygons)):
        if len(points) < 3:
            logger.warning(
                "chestx-det: %s: an outline of %s has %d corners and is left out", file.name, sym, len(points)
            )
        elif box is not None:
            structure = _STRUCTURES.get(plain_name(sym), plain_name(sym))
            outlines.setdefault(structure, []).append(Shape("polygon", points))
    return {structure: masks.add(file, size, structure, shapes) for structure, shapes in outlines.items()}
