"""Object-CXR: frontal radiographs with outlines of foreign objects, and such as have none.

JF Healthcare, "Object-CXR: Automatic detection of foreign objects on chest X-rays", MIDL challenge 2020.

A folder of ``train.csv`` and ``dev.csv``, also ``test.csv``, each with image_name (or image_path) and annotation, and
the images as JPEG in ``train/``, ``dev/`` and ``test/``. An annotation lists objects, divided by ";": ``0 x1 y1 x2 y2``
is a rectangle, ``1 x1 y1 x2 y2`` an ellipse in such a rectangle, ``2 x1 y1 x2 y2 ... xn yn`` a polygon, in pixels.
Without objects it is empty.

Decisions:

* An object is a box of class "foreign object", which a ControlNet has if its configuration lists it. Boxes that reach
  over the edge are cut there, and those without an area left out, with a warning that counts them.
* All objects of an image together are the mask "foreign object", written to ``object-cxr-masks`` beside the manifest.
* Labels are "Foreign Object" or "no Foreign Object". Neither says anything about findings; tubes and other devices were
  not annotated.
* The published splits; dev is val. Patients are not published: every image is a study and a subject of its own.
* Images that are not there are left out with a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, Split, place
from xgem.data.sources.drawings import Corners, Cutter, Kind, MaskFiles, Shape, stored_size
from xgem.data.sources.rows import check_images, make_row, table_of, write_manifest
from xgem.data.tables import read_table
from xgem.labels.spatial import plain_name
from xgem.labels.terms import DENIED, FOREIGN_OBJECT
from xgem.types import DataError

SOURCE: Final = "object-cxr"
LICENCE: Final = "published for research by JF Healthcare, licence not stated"
_TABLES: Final[dict[str, Split]] = {"train": "train", "dev": "val", "test": "test"}
_KINDS: Final[dict[str, Kind]] = {"0": "rectangle", "1": "ellipse", "2": "polygon"}
_STRUCTURE: Final = plain_name(FOREIGN_OBJECT)


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of an Object-CXR folder to ``out``, with references to its images in place, and the masks.

    Raises:
        DataError: the folder has no table, it lacks a column, an annotation is none, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``, where masks are written; errors as :func:`prepare`."""
    masks, cutter = MaskFiles(root, SOURCE), Cutter()
    rows: list[Row] = []
    for part, split in _TABLES.items():
        table = table_of(source, f"{part}.csv")
        if table is None:
            continue
        read = read_table(table, "annotation")
        column = "image_path" if "image_path" in read.header else "image_name"
        read.require(column)
        names = {PurePosixPath(record[column]).name: record["annotation"] for record in read.rows}
        places = ImageFiles(folder if (folder := source / part).is_dir() else source).found(names)
        check_images(f"{SOURCE}, {part}", table, len(names), len(places))
        for name, image in places.items():
            where = f"{table}: image {name}"
            study = f"{SOURCE}-{image.stem}"
            rows.append(
                make_row(
                    where,
                    study=study,
                    subject=study,
                    split=split,
                    view="frontal",
                    file=place(image, root),
                    **_shown(where, image, names[name], masks, cutter),
                    source=SOURCE,
                    licence=LICENCE,
                )
            )
    if not rows:
        raise DataError(f"{source}: not an Object-CXR folder; expected train.csv or dev.csv in it")
    cutter.warn(SOURCE)
    masks.write()
    return rows


def _shown(where: str, image: Path, annotation: str, masks: MaskFiles, cutter: Cutter) -> Mapping[str, Any]:
    """The label of an image, its boxes, and its mask."""
    shapes = [_shape(where, text) for text in annotation.split(";") if text.strip()]
    if not shapes:
        return {"labels": (f"{DENIED}{FOREIGN_OBJECT}",)}
    size = stored_size(image)
    inside: list[Shape] = []
    boxes = []
    for shape in shapes:
        if (box := cutter.box(_STRUCTURE, _around(shape.points), size)) is not None:
            inside.append(shape)
            boxes.append(box)
    outlined = {_STRUCTURE: masks.add(image, size, _STRUCTURE, inside)} if inside else {}
    return {"labels": (FOREIGN_OBJECT,), "boxes": tuple(boxes), "masks": outlined}


def _around(points: Sequence[tuple[float, float]]) -> Corners:
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def _shape(where: str, text: str) -> Shape:
    """An object of its kind and coordinates."""
    code, *words = text.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    kind = _KINDS.get(code)
    right = len(numbers) % 2 == 0 and (len(numbers) >= 6 if kind == "polygon" else len(numbers) == 4)
    if kind is None or not right or not all(math.isfinite(number) for number in numbers):
        raise DataError(
            f"{where}: object {text.strip()!r:.60}; expected 0 or 1 and x1 y1 x2 y2, or 2 and the corners of a polygon"
        )
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    if kind == "polygon":
        return Shape(kind, points)
    left, top, right_edge, bottom = _around(points)
    return Shape(kind, [(left, top), (right_edge, bottom)])
