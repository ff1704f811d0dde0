"""Radiographs of COVID-19 and other pneumonias, frontal and lateral, some with a mask of the lungs.

Cohen et al., "COVID-19 Image Data Collection: Prospective Predictions Are the Future", MELBA 2020. A folder with
``labels.csv`` (file, in_shared, patient, sex, age, view, finding, lung_mask, licence), ``images/`` and ``masks/``.

Decisions:

* Images that :mod:`xgem.data.sources.severity` or :mod:`xgem.data.sources.segmentations` hold (``in_shared``) are left
  out, so that the three can be merged.
* Every image is a separate study: "L" is lateral; "PA", "AP" and "AP Supine" are frontal.
* The two other sets tell patients by the images' names (``xgem.data.sources.cases``). A patient of this table with an
  image there is the subject of that image; of the others, the first image's name is. 20 % of subjects are in val.
* The mask of both lungs is kept as "lungs", which is read as the patient's left and right lung. A mask that has not one
  lung in each half of the image is left out with a warning. Laterals have none: annotations are of frontals.
* Findings become labels. Cohen's scores (geographic extent 0-8, opacity 0-6) are not Brixia's and are not taken for it;
  notes, intubation and outcome are not read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from xgem.data.annotation_files import read_masks
from xgem.data.image_files import ImageFiles, image_size
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources.cases import case_of
from xgem.data.sources.rows import check_images, make_row, write_manifest
from xgem.data.tables import read_table, sex_of, years_of
from xgem.types import DataError, InputError

logger = logging.getLogger(__name__)

SOURCE: Final = "covid"
LICENCE: Final = "masks CC BY 4.0, image {}"
_VIEWS: Final = {"PA": "frontal", "AP": "frontal", "AP Supine": "frontal", "L": "lateral"}
_COLUMNS: Final = ("file", "in_shared", "patient", "sex", "age", "view", "finding", "lung_mask", "licence")


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a folder of the collection to ``out``, with references to its files in place.

    Raises:
        DataError: the folder or its table is not as above, a view is unknown, no image is there, a mask is missing or
            does not have the size of its image.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = source / "labels.csv"
    if not table.is_file():
        raise DataError(f"{source}: not a folder of the COVID-19 collection; expected labels.csv and images in it")
    records = read_table(table, *_COLUMNS).rows
    subjects = _subjects(records)
    own = {record["file"]: record for record in reversed(records) if not record["in_shared"]}
    listed = sum(not record["in_shared"] for record in records)
    if listed > len(own):
        logger.warning("covid: %d images are listed again; the first row of each counts", listed - len(own))
    images, masks = ImageFiles(source / "images"), ImageFiles(source / "masks")
    places = images.found(own)
    check_images(SOURCE, table, len(own), len(places))
    return [
        _row(table, own[name], subjects[own[name]["patient"] or name], places[name], masks, root)
        for name in sorted(places)
    ]


def _subjects(records: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Subjects by patient (by file, where the table has no patient), as the sets that share images call them."""
    subjects: dict[str, str] = {}
    for record in sorted(records, key=lambda one: (not one["in_shared"], one["file"])):
        subjects.setdefault(record["patient"] or record["file"], case_of(Path(record["file"]).stem))
    return subjects


def _row(table: Path, record: Mapping[str, str], subject: str, image: Path, masks: ImageFiles, root: Path) -> Row:
    where = f"{table}: image {record['file']}"
    view = _VIEWS.get(record["view"])
    if view is None:
        raise DataError(f"{where} has view {record['view']!r}; expected one of {', '.join(_VIEWS)}")
    drawn = record["lung_mask"] if view == "frontal" else ""
    mask = _mask(where, drawn, image, masks) if drawn else None
    return make_row(
        where,
        study=f"{SOURCE}-{image.stem}",
        subject=subject,
        split=split_of(subject, val=0.2, test=0),
        view=view,
        file=place(image, root),
        labels=tuple(dict.fromkeys(label.strip() for label in record["finding"].split(",") if label.strip())),
        age=years_of(record["age"]),
        sex=sex_of(record["sex"]),
        masks={} if mask is None else {"lungs": (place(mask, root),)},
        source=SOURCE,
        licence=LICENCE.format(record["licence"] or "unknown"),
    )


def _mask(where: str, name: str, image: Path, masks: ImageFiles) -> Path | None:
    """The file of a mask that has the size of its image; None if the lungs in it cannot be told apart."""
    file = masks.find(name)
    if file is None:
        raise DataError(f"{where}: its mask {name!r} is not in masks; put it there or clear the cell")
    if (size := image_size(file)) != (expected := image_size(image)):
        raise DataError(f"{file}: a mask of {size} pixels for an image of {expected}; make them equal")
    try:
        read_masks({"lungs": file})
    except InputError as error:
        logger.warning("covid: %s: its mask is left out (%s)", image.name, error)
        return None
    return file
