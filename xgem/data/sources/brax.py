"""BRAX: frontal and lateral radiographs of a Brazilian hospital, with labels mined from Portuguese reports.

Reis et al., "BRAX, Brazilian labeled chest x-ray dataset", Scientific Data 2022; PhysioNet, version 1.1.0, credentialed
access.

A folder of ``master_spreadsheet_update.csv`` or ``master_spreadsheet.csv`` (PatientID, PatientSex, PatientAge,
AccessionNumber, ViewPosition, DicomPath, PngPath, CheXpert's 14 classes), and the files that it names, below
``images/`` (PNG) and ``Anonymized_DICOMs/``.

Decisions:

* The PNG file is taken; the DICOM file where that is not there. Images without either are left out with a warning.
* A class is 1, 0, -1 (uncertain) or blank: as in ``xgem.data.sources.chexpert``. Labels, age and sex of a study are
  those of its first image.
* AP and PA are frontal, LL, RL and L lateral; decubitus and oblique views are kept with view None.
* Ages are published in steps of five years, "85 or more" is 85. Sex "O" is unknown. Dates are made up and not read.
* No split is published: a fixed hash of the patient gives 80 % train, 10 % val, 10 % test. There are no reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources.rows import check_images, make_row, stated_labels, table_of, write_manifest
from xgem.data.tables import read_table, sex_of, years_of
from xgem.labels.views import view_of
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import DataError

SOURCE: Final = "brax"
LICENCE: Final = "PhysioNet Credentialed Health Data License 1.5.0"
_COLUMNS: Final = ("PatientID", "PatientSex", "PatientAge", "AccessionNumber", "ViewPosition")
_FILES: Final = ("PngPath", "DicomPath")
_ENDING: Final = 4  # patient, study, series and image: what of a path tells images apart
_OLDEST: Final = " or more"


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a BRAX folder to ``out``, with references to its images in place.

    Raises:
        DataError: the folder has no table, it lacks a column, a value is none, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = table_of(source, "master_spreadsheet_update.csv") or table_of(source, "master_spreadsheet.csv")
    if table is None:
        raise DataError(f"{source}: not a BRAX folder; expected master_spreadsheet_update.csv in it")
    read = read_table(table, *_COLUMNS, *CHEXPERT_CLASSES)
    if not set(_FILES) & set(read.header):
        read.require(*_FILES)
    places = {path.parts[-_ENDING:]: path for path in ImageFiles(source)}
    images = [(record, _image(places, record)) for record in read.rows]
    found = [(record, image) for record, image in images if image is not None]
    check_images(SOURCE, table, len(images), len(found))
    first: dict[str, Mapping[str, str]] = {}
    rows: list[Row] = []
    for record, image in found:
        where = f"{table}: image {image.name}"
        study = first.setdefault(record["AccessionNumber"], record)
        subject = f"{SOURCE}-{study['PatientID']}"
        rows.append(
            make_row(
                where,
                study=f"{SOURCE}-{record['AccessionNumber']}",
                subject=subject,
                split=split_of(subject),
                view="lateral" if record["ViewPosition"] == "L" else view_of(record["ViewPosition"].upper()),
                file=place(image, root),
                labels=stated_labels(study, where),
                age=years_of(study["PatientAge"].removesuffix(_OLDEST)),
                sex=sex_of(study["PatientSex"]),
                source=SOURCE,
                licence=LICENCE,
            )
        )
    return rows


def _image(places: Mapping[tuple[str, ...], Path], record: Mapping[str, str]) -> Path | None:
    named = (places.get(PurePosixPath(record.get(column, "")).parts[-_ENDING:]) for column in _FILES)
    return next((path for path in named if path is not None), None)
