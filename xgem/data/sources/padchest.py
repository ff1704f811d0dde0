"""PadChest: frontal and lateral radiographs with 174 findings, Spanish reports, age and sex.

Bustos et al., "PadChest: A large chest x-ray image dataset with multi-label annotated reports", Medical Image Analysis
2020.

A folder of ``PADCHEST_chest_x_ray_images_labels_*.csv`` (ImageID, StudyID, PatientID, PatientBirth, PatientSex_DICOM,
StudyDate_DICOM, Projection, MethodProjection, Labels, Report), packed (``.gz``) or not, and the images (16-bit PNG), in
the numbered folders of the archives or in any others below.

Decisions:

* Projections PA, AP and AP_horizontal (lying) are frontal, L is lateral; others (COSTAL, EXCLUDE, ...) are kept with
  view None. A projection that a network predicted (MethodProjection) is taken as it stands; a warning counts them.
* Labels is a list as text; its findings are labels, those of a study's rows together. "unchanged", "exclude" and
  "suboptimal study" say nothing and are left out. 27 % of the reports were labelled by physicians, the rest by a
  network (MethodLabel). They name every finding of the report, so that a class with a term is absent if not named.
* The report is Spanish, lower case and without stop words, as published: the impression, unless headings divide it.
* Age is the year of the study less the year of birth.
* No split is published: a fixed hash of the patient gives 80 % train, 10 % val, 10 % test.
* Images that are not there are left out with a warning.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping
from pathlib import Path

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sections import split_sections
from xgem.data.sources.rows import check_images, make_row, tables_of, write_manifest
from xgem.data.tables import is_missing, read_table, sex_of, years_of
from xgem.labels.vocabulary import is_silent
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE = "padchest"
LICENCE = "PadChest Dataset Research Use Agreement"
_COLUMNS = (
    *("ImageID", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "StudyDate_DICOM", "Projection"),
    *("MethodProjection", "Labels", "Report"),
)
_VIEWS = {"PA": "frontal", "AP": "frontal", "AP_horizontal": "frontal", "L": "lateral"}


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Make the manifest of a PadChest folder, refer to its images where they are, write it to ``out``.

    Raises:
        DataError: the folder has no table, it lacks a column, labels are no list, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = tables_of(source, labels="PADCHEST_chest_x_ray_images_labels_*.csv")["labels"]
    files = ImageFiles(source)
    records = read_table(table, *_COLUMNS).rows
    images = [(record, files.find(record["ImageID"])) for record in records]
    found = [(record, image) for record, image in images if image is not None]
    check_images(SOURCE, table, len(images), len(found))
    labels: dict[str, dict[str, None]] = {}
    reports: dict[str, str] = {}
    first: dict[str, Mapping[str, str]] = {}
    for record, _ in found:
        study = record["StudyID"]
        first.setdefault(study, record)
        labels.setdefault(study, {}).update(dict.fromkeys(_labels(record, f"{table}: image {record['ImageID']}")))
        reports[study] = reports.get(study) or record["Report"]
    sections = {study: split_sections(report) for study, report in reports.items()}
    rows: list[Row] = []
    for record, image in found:
        study = record["StudyID"]
        subject = f"{SOURCE}-{first[study]['PatientID']}"
        rows.append(
            make_row(
                f"{table}: image {record['ImageID']}",
                study=f"{SOURCE}-{study}",
                subject=subject,
                split=split_of(subject),
                view=_VIEWS.get(record["Projection"]),
                file=place(image, root),
                findings=sections[study].findings,
                impression=sections[study].impression,
                labels=tuple(labels[study]),
                age=_age(first[study]),
                sex=sex_of(first[study]["PatientSex_DICOM"]),
                source=SOURCE,
                licence=LICENCE,
            )
        )
    if guessed := sum("manual" not in record["MethodProjection"].lower() for record, _ in found):
        logger.warning("padchest: the projection of %d of %d images is a network's prediction", guessed, len(found))
    return rows


def _labels(record: Mapping[str, str], where: str) -> list[str]:
    text = record["Labels"]
    if not text:
        return []
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        listed = None
    if not isinstance(listed, list):
        raise DataError(f"{where}: Labels is {text!r:.80}; expected a list such as ['normal']")
    names = [" ".join(str(name).split()) for name in listed]
    return [name for name in names if not is_missing(name) and not is_silent(name)]


def _age(record: Mapping[str, str]) -> float | None:
    born, taken = record["PatientBirth"].removesuffix(".0"), record["StudyDate_DICOM"][:4]
    return years_of(str(int(taken) - int(born))) if born.isdigit() and taken.isdigit() else None
