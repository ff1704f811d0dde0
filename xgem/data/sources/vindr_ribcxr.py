"""VinDr-RibCXR: frontal radiographs with an outline of each of the upper ten ribs of either side.

Nguyen et al., "VinDr-RibCXR: A benchmark dataset for automatic segmentation and labeling of individual ribs on chest
X-rays", MIDL 2021.

A folder of ``Vindr_RibCXR_train_mask.json`` and ``Vindr_RibCXR_val_mask.json``, anywhere below, and the images that
they name (``data/train/img/VinDr_RibCXR_train_000.png``). A file is an object: ``img`` gives each image's path by its
number, and ``R1`` to ``R10`` and ``L1`` to ``L10`` the corners of that rib's outline, ``[{"x": ..., "y": ...}, ...]``
in pixels, by the same number.

Decisions:

* Masks are of the structures "right rib 1" to "left rib 10", by the patient's sides, and are written to
  ``vindr-ribcxr-masks`` beside the manifest. A rib whose outline is empty or missing has no mask. No model knows these
  structures by itself: a ControlNet has them if its configuration lists them.
* The published splits, train and val; every image is a study and a patient of its own. There are no labels.
* Images that are not there are left out with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, Split, place
from xgem.data.rows import one_line
from xgem.data.sources.drawings import MaskFiles, Shape, stored_size
from xgem.data.sources.rows import check_images, make_row, write_manifest
from xgem.types import DataError

SOURCE: Final = "vindr-ribcxr"
LICENCE: Final = "VinDr-RibCXR Data Use Agreement"
_SPLITS: Final[tuple[Split, ...]] = ("train", "val")
_RIBS: Final = {f"{side[0].upper()}{rib}": f"{side} rib {rib}" for side in ("right", "left") for rib in range(1, 11)}


class _Point(BaseModel):
    x: float
    y: float


_Outlines = dict[str, list[_Point] | None]
_OUTLINES: Final = TypeAdapter(_Outlines)
_NAMES: Final = TypeAdapter(dict[str, str])


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a VinDr-RibCXR folder to ``out``, with references to its images in place, and the masks.

    Raises:
        DataError: the folder has no outlines, they are not as above, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``, where masks are written; errors as :func:`prepare`."""
    files, masks = ImageFiles(source), MaskFiles(root, SOURCE)
    rows: list[Row] = []
    for split in _SPLITS:
        wanted = f"vindr_ribcxr_{split}_mask.json"
        for listed in sorted(path for path in source.rglob("*.json") if path.name.lower() == wanted):
            names, outlines = _read(listed)
            places = {key: path for key, name in names.items() if (path := _image(files, name)) is not None}
            check_images(f"{SOURCE}, {split}", listed, len(names), len(places))
            for key, image in places.items():
                drawn = {rib: points for rib, of_rib in outlines.items() if (points := of_rib.get(key))}
                rows.append(_row(listed, image, drawn, split, masks, root))
    if not rows:
        raise DataError(f"{source}: not a VinDr-RibCXR folder; expected Vindr_RibCXR_train_mask.json in it")
    masks.write()
    return rows


def _read(path: Path) -> tuple[dict[str, str], dict[str, _Outlines]]:
    """Images by number, and by rib the outlines by number."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())[:120]})") from None
    missing = next((key for key in ("img", *_RIBS) if not isinstance(values, dict) or key not in values), None)
    if missing is not None:
        raise DataError(f"{path}: has no {missing!r}; expected an object with img, {', '.join(_RIBS)}")
    try:
        return _NAMES.validate_python(values["img"]), {rib: _OUTLINES.validate_python(values[rib]) for rib in _RIBS}
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; expected img by number, and points with x and y") from None


def _image(files: ImageFiles, name: str) -> Path | None:
    return files.find("/".join(PurePosixPath(name).parts[-3:]))


def _row(
    listed: Path, image: Path, drawn: Mapping[str, list[_Point]], split: Split, masks: MaskFiles, root: Path
) -> Row:
    where = f"{listed}: image {image.name}"
    size = stored_size(image)
    outlined: dict[str, tuple[str, ...]] = {}
    for rib, points in drawn.items():
        if len(points) < 3:
            raise DataError(f"{where}: the outline of {rib} has {len(points)} corners; expected three or more")
        shape = Shape("polygon", [(point.x, point.y) for point in points])
        outlined[_RIBS[rib]] = masks.add(image, size, _RIBS[rib], [shape])
    name = f"{SOURCE}-{image.stem}"
    return make_row(
        where,
        study=name,
        subject=name,
        split=split,
        view="frontal",
        file=place(image, root),
        masks=outlined,
        source=SOURCE,
        licence=LICENCE,
    )
