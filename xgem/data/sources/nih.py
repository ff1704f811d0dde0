"""NIH ChestX-ray14: frontal radiographs with 14 automatically mined labels, age, sex and patient.

Wang et al., "ChestX-ray8: Hospital-scale chest X-ray database and benchmarks", CVPR 2017.

Two layouts are read:

* ``labels.csv`` (file, patient_id, age, sex, view, labels) + ``images/``;
* the original ``Data_Entry_2017*.csv`` + folders of PNG; ``test_list.txt`` there gives the test split.

Decisions: every picture is a study of its own, all of them frontal (PA and AP); the subject is the patient. Splits are
by patient: the published test list where it lies in the folder, otherwise (and for train and val) a fixed hash of the
patient. Labels keep the source's names with blanks for underscores ("Pleural Thickening"); "No Finding" stays. There
are no reports. Ages that cannot be ("414") are unknown. Listed pictures that are not there are an error in the first
layout and are skipped with a warning in the original, whose archives are mostly unpacked in part.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from xgem.data.manifest import Manifest, Row, Split, place, split_of
from xgem.data.sources.tables import picture_files, read_table
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE = "nih"
LICENCE = "free use, cite the NIH Clinical Center"


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Make the manifest of an NIH ChestX-ray14 folder, refer to its pictures where they are, write it to ``out``.

    Raises:
        DataError: the folder holds neither layout, a table lacks a column, or pictures are missing.
    """
    source = Path(source_dir)
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; expected the unpacked ChestX-ray14 data set")
    original = sorted(source.glob("Data_Entry_2017*.csv"))
    if (source / "labels.csv").is_file():
        table, columns = source / "labels.csv", ("file", "patient_id", "age", "sex", "labels")
    elif original:
        table = original[0]
        columns = ("Image Index", "Patient ID", "Patient Age", "Patient Gender", "Finding Labels")
    else:
        raise DataError(f"{source}: not a ChestX-ray14 folder; expected labels.csv or Data_Entry_2017.csv")
    records = read_table(table, *columns)
    places = picture_files(source)
    missing = [record[columns[0]] for record in records if record[columns[0]] not in places]
    if missing and (not original or len(missing) == len(records)):
        raise DataError(f"{table}: {len(missing)} pictures are not in {source}, the first is {missing[0]}")
    if missing:
        logger.warning("nih: %d of %d listed pictures are not there and are left out", len(missing), len(records))
    tested = _test_patients(source, {record[columns[0]]: record[columns[1]] for record in records})
    root = Path(out).resolve().parent
    rows: list[Row] = []
    for record in records:
        name, patient, age, sex, labels = (record[column] for column in columns)
        if name in places:
            rows.append(_row(place(places[name], root), name, patient, age, sex, labels, tested))
    manifest = Manifest(tuple(rows), root)
    manifest.check()
    manifest.write(out)
    return manifest


def _row(file: str, name: str, patient: str, age: str, sex: str, labels: str, tested: frozenset[str] | None) -> Row:
    subject = f"{SOURCE}-{patient}"
    return Row.model_validate(
        {
            "study": f"{SOURCE}-{Path(name).stem}",
            "subject": subject,
            "split": _split(patient, subject, tested),
            "view": "frontal",
            "file": file,
            "labels": tuple(
                dict.fromkeys(label.replace("_", " ").strip() for label in labels.split("|") if label.strip())
            ),
            "age": _years(age),
            "sex": sex.upper() if sex.upper() in ("F", "M") else None,
            "source": SOURCE,
            "licence": LICENCE,
        }
    )


def _split(patient: str, subject: str, tested: frozenset[str] | None) -> Split:
    if tested is None:
        return split_of(subject)
    return "test" if patient in tested else split_of(subject, test=0)


def _test_patients(source: Path, patients: Mapping[str, str]) -> frozenset[str] | None:
    listed = source / "test_list.txt"
    if not listed.is_file():
        return None
    return frozenset(patients[name] for name in listed.read_text(encoding="utf-8").split() if name in patients)


def _years(text: str) -> float | None:
    """Age in years: "61", and the older table's "061Y", "011M", "006D"; None where it cannot be."""
    text = text.strip().upper()
    unit = {"Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}.get(text[-1:], 1.0)
    try:
        years = float(text.rstrip("YMD")) * unit
    except ValueError:
        return None
    return years if 0 <= years <= 120 else None
