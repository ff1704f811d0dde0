"""MIMIC-CXR: frontal and lateral radiographs with free-text reports, as JPEG or DICOM.

Johnson et al., "MIMIC-CXR, a de-identified publicly available database of chest radiographs with free-text reports",
Scientific Data 2019; the JPEG release: "MIMIC-CXR-JPG", arXiv 1901.07042.

One folder, into which either release or both are unpacked, each table packed (``.gz``) or not:

* ``mimic-cxr-2.0.0-metadata.csv`` (dicom_id, subject_id, study_id, ViewPosition, StudyDate, ...) of the JPEG release,
  or ``cxr-record-list.csv`` (subject_id, study_id, dicom_id, path) of the DICOM one;
* ``mimic-cxr-2.0.0-split.csv``, ``mimic-cxr-2.0.0-chexpert.csv`` and, from MIMIC-IV, ``patients.csv`` (subject_id,
  gender, anchor_age, anchor_year), where they are there;
* ``files/p10/p10000032/s50414267/<dicom_id>.jpg`` or ``.dcm``, and reports ``files/p10/p10000032/s50414267.txt``, both
  anywhere below.

Decisions:

* Views are those of ViewPosition or, where it is empty, of the view's code; without the table of metadata, those of the
  DICOM headers. Others ("LAO", "AP LLD") are kept with view None.
* Findings and impression are found by headings (``xgem.data.sections``), then cleaned. A report without headings is the
  impression. Images of a study without a report have none.
* Labels are those of CheXpert's labeller: 1 is a class's name, 0 "no ...", -1 "possible ..."; a blank says nothing.
* The published split; without its table a fixed hash of the patient gives 80 % train, 10 % val, 10 % test.
* Age and sex come from ``patients.csv``: the anchor's age, and the years from the anchor to the study. Without it both
  are unknown.
* Images that are not there are left out with a warning; so are studies without any.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xgem.data.headers import read_header, view_in
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sections import split_sections
from xgem.data.sources.rows import check_images, make_row, stated_labels, table_of, write_manifest
from xgem.data.tables import read_table, sex_of, split_of_name, years_of
from xgem.labels.views import view_of, view_of_words
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE = "mimic-cxr"
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
_IDS = ("subject_id", "study_id", "dicom_id")


@dataclass(frozen=True)
class _Tables:
    """What the tables beside the list of images say, by image (splits), study (labels, reports) or subject."""

    splits: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]
    reports: Mapping[str, Path]
    patients: Mapping[str, Mapping[str, str]]


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Make the manifest of a MIMIC-CXR folder, refer to its images where they are, write it to ``out``.

    Raises:
        DataError: the folder has no list of images, a table lacks a column, a value is none, or no image is there.
        ImageError: a DICOM file whose header tells the view cannot be read.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    listed = table_of(source, "mimic-cxr-*-metadata.csv") or table_of(source, "cxr-record-list.csv")
    if listed is None:
        raise DataError(
            f"{source}: not a MIMIC-CXR folder; expected mimic-cxr-2.0.0-metadata.csv[.gz] or cxr-record-list.csv[.gz]"
        )
    table = read_table(listed, *_IDS)
    files = ImageFiles(source)
    images = [(record, files.find(f"{record['dicom_id']}.jpg", any_ending=True)) for record in table.rows]
    found = [(record, image) for record, image in images if image is not None]
    check_images(SOURCE, listed, len(images), len(found))
    tables = _Tables(_splits(source), _labels(source), _reports(source), _patients(source))
    texts: dict[str, tuple[str, str]] = {}
    rows: list[Row] = []
    for record, image in found:
        subject, study, name = (record[column] for column in _IDS)
        if study not in texts:
            texts[study] = _sections(tables.reports.get(study))
        patient = tables.patients.get(subject, {})
        person = f"{SOURCE}-{subject}"
        rows.append(
            make_row(
                f"{listed}: image {name}",
                study=f"{SOURCE}-{study}",
                subject=person,
                split=tables.splits.get(name) or split_of(person),
                view=_view(record, image),
                file=place(image, root),
                findings=texts[study][0],
                impression=texts[study][1],
                labels=tables.labels.get(study, ()),
                age=_age(patient, record.get("StudyDate", "")),
                sex=sex_of(patient.get("gender", "")),
                source=SOURCE,
                licence=LICENCE,
            )
        )
    if without := sum(not any(text) for text in texts.values()):
        logger.warning("mimic-cxr: %d of %d studies have no report in %s", without, len(texts), source)
    return rows


def _view(record: Mapping[str, str], image: Path) -> str | None:
    if "ViewPosition" not in record:
        return view_in(read_header(image)) if image.suffix.lower() != ".jpg" else None
    if record["ViewPosition"]:
        return view_of(record["ViewPosition"].upper())
    return view_of_words(record.get("ViewCodeSequence_CodeMeaning", ""))


def _splits(source: Path) -> dict[str, str]:
    table = table_of(source, "mimic-cxr-*-split.csv")
    splits: dict[str, str] = {}
    for record in read_table(table, "dicom_id", "split").rows if table else ():
        split = split_of_name(record["split"])
        if split is None:
            raise DataError(
                f"{table}: image {record['dicom_id']} is in split {record['split']!r}; expected train, validate or test"
            )
        splits[record["dicom_id"]] = split
    return splits


def _labels(source: Path) -> dict[str, tuple[str, ...]]:
    table = table_of(source, "mimic-cxr-*-chexpert.csv")
    records = read_table(table, "study_id").rows if table else ()
    return {record["study_id"]: stated_labels(record, f"{table}: study {record['study_id']}") for record in records}


def _reports(source: Path) -> dict[str, Path]:
    return {path.stem.removeprefix("s"): path for path in sorted(source.rglob("s[0-9]*.txt"))}


def _sections(report: Path | None) -> tuple[str, str]:
    if report is None:
        return "", ""
    try:
        found = split_sections(report.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{report}: cannot be read as UTF-8 text ({error})") from None
    return found.findings, found.impression


def _patients(source: Path) -> dict[str, Mapping[str, str]]:
    table = table_of(source, "patients.csv")
    records = read_table(table, "subject_id", "gender", "anchor_age", "anchor_year").rows if table else ()
    return {record["subject_id"]: record for record in records}


def _age(patient: Mapping[str, str], date: str) -> float | None:
    age, anchor, year = years_of(patient.get("anchor_age", "")), patient.get("anchor_year", ""), date[:4]
    if age is None or not (anchor.isdigit() and year.isdigit()):
        return None
    return years_of(str(age + int(year) - int(anchor)))
