"""RANZCR CLiP: frontal radiographs with labels of endotracheal and nasogastric tubes, and of central venous catheters.

Tang et al., "CLiP, catheter and line position dataset", Scientific Data 2021, on images of NIH ChestX-ray14; the Kaggle
competition "RANZCR CLiP - Catheter and Line Position Challenge" 2021.

A folder of ``train.csv`` (StudyInstanceUID, 11 columns of 0 and 1, PatientID) and ``train/<StudyInstanceUID>.jpg``.

Decisions:

* A label is the name of a column that is 1: "CVC - Borderline" says that there is a catheter and how it lies. An image
  without any has no labels: other devices and findings are not annotated.
* All images are frontal, each a study of its own; the subject is the patient. A fixed hash of the patient gives 80 %
  train, 10 % val, 10 % test: the labels of the competition's ``test/`` are not published, and its images are not read.
* The lines in ``train_annotations.csv`` are not read: they have no width, which a mask would need. Age and sex are not
  published.
* Images that are not there are left out with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources.rows import check_images, flagged, make_row, tables_of, write_manifest
from xgem.data.tables import read_table
from xgem.labels.terms import CATHETERS

SOURCE: Final = "ranzcr-clip"
LICENCE: Final = "rules of the Kaggle competition RANZCR CLiP; images of NIH ChestX-ray14"


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a RANZCR CLiP folder to ``out``, with references to its images in place.

    Raises:
        DataError: the folder has no table, it lacks a column, a value is neither 0 nor 1, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = tables_of(source, labels="train.csv")["labels"]
    records = read_table(table, "StudyInstanceUID", *CATHETERS, "PatientID").rows
    files = ImageFiles(source)
    images = [(record, files.find(f"train/{record['StudyInstanceUID']}.jpg", any_ending=True)) for record in records]
    found = [(record, image) for record, image in images if image is not None]
    check_images(SOURCE, table, len(images), len(found))
    return [_row(f"{table}: image {image.name}", record, image, root) for record, image in found]


def _row(where: str, record: Mapping[str, str], image: Path, root: Path) -> Row:
    subject = f"{SOURCE}-{record['PatientID']}"
    return make_row(
        where,
        study=f"{SOURCE}-{record['StudyInstanceUID']}",
        subject=subject,
        split=split_of(subject),
        view="frontal",
        file=place(image, root),
        labels=flagged(record, CATHETERS, where),
        source=SOURCE,
        licence=LICENCE,
    )
