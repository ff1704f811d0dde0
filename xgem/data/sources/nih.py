"""NIH ChestX-ray14: frontal radiographs with 14 labels mined from reports, age, sex and patient.

Wang et al., "ChestX-ray8: Hospital-scale chest X-ray database and benchmarks", CVPR 2017.

Two layouts are supported:

* ``labels.csv`` (file, patient_id, age, sex, view, labels) + ``images/``, optionally with ``boxes.csv`` (file, label,
  x, y, w, h in fractions of width and height);
* the original ``Data_Entry_2017*.csv`` (with "Patient Gender" or, since 2020, "Patient Sex") + folders of PNG,
  optionally with ``test_list.txt`` for the test split and ``BBox_List_2017*.csv`` for boxes (in pixels of 1024 x 1024).

Decisions: every image is a separate study, all of them frontal (PA and AP); the subject is the patient. Splits are by
patient: the published test list if it is in the folder, otherwise (and for train and val) a fixed hash of the patient.
Names in the test list and among the boxes may have folders and other extensions; a list or a table of boxes that names
no listed image is an error. Labels keep the source's names with blanks for underscores ("Pleural Thickening"),
including "No Finding". There are no reports. Impossible ages ("414") are unknown. Missing images are an error in the
first layout, and are skipped with a warning in the original one, whose archives are often unpacked only in part. Boxes
of images that are not listed are an error in the first layout, and are skipped in the original one.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Set
from pathlib import Path, PurePosixPath

from xgem.data.annotations import Box
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, Split, place, split_of
from xgem.data.sources.rows import make_row, write_manifest
from xgem.data.tables import number_of, read_table, sex_of, years_of
from xgem.types import DataError, InputError

logger = logging.getLogger(__name__)

SOURCE = "nih"
LICENCE = "free use, cite the NIH Clinical Center"
_PIXELS = 1024


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of an NIH ChestX-ray14 folder to ``out``, with references to its images in place.

    Raises:
        DataError: the folder has neither layout, a column or images are missing, or a box is invalid.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; DataError as :func:`prepare`."""
    # The table and its images
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; expected the unpacked ChestX-ray14 data set")
    original = sorted(source.glob("Data_Entry_2017*.csv"))
    if (source / "labels.csv").is_file():
        table, columns = source / "labels.csv", ("file", "patient_id", "age", "sex", "labels")
    elif original:
        table = original[0]
        sex = "Patient Sex" if "Patient Sex" in read_table(table).header else "Patient Gender"
        columns = ("Image Index", "Patient ID", "Patient Age", sex, "Finding Labels")
    else:
        raise DataError(f"{source}: not a ChestX-ray14 folder; expected labels.csv or Data_Entry_2017.csv")
    records = read_table(table, *columns).rows
    places = ImageFiles(source).found((record[columns[0]] for record in records), any_ending=True)
    missing = [record[columns[0]] for record in records if record[columns[0]] not in places]
    if missing and (not original or len(missing) == len(records)):
        raise DataError(f"{table}: {len(missing)} images are not in {source}, the first is {missing[0]}")
    if missing:
        logger.warning("nih: %d of %d listed images are missing and are left out", len(missing), len(records))
    # One row per image
    test_patients = _test_patients(source, {record[columns[0]]: record[columns[1]] for record in records})
    boxes = _boxes(source, {record[columns[0]] for record in records})
    rows: list[Row] = []
    for record in records:
        name, patient, age, sex, labels = (record[column] for column in columns)
        if name in places:
            subject = f"{SOURCE}-{patient}"
            rows.append(
                make_row(
                    f"{table}: image {name}",
                    study=f"{SOURCE}-{Path(name).stem}",
                    subject=subject,
                    split=_split(patient, subject, test_patients),
                    view="frontal",
                    file=place(places[name], root),
                    labels=tuple(
                        dict.fromkeys(label.replace("_", " ").strip() for label in labels.split("|") if label.strip())
                    ),
                    age=years_of(age),
                    sex=sex_of(sex),
                    boxes=boxes.get(name, ()),
                    source=SOURCE,
                    licence=LICENCE,
                )
            )
    return rows


def _split(patient: str, subject: str, test_patients: frozenset[str] | None) -> Split:
    if test_patients is None:
        return split_of(subject)
    return "test" if patient in test_patients else split_of(subject, test=0)


def _test_patients(source: Path, patients: Mapping[str, str]) -> frozenset[str] | None:
    """The patients of the published test list; None if the folder does not have it."""
    test_list = source / "test_list.txt"
    if not test_list.is_file():
        return None
    of_stem = {_stem(name): patient for name, patient in patients.items()}
    names = test_list.read_text(encoding="utf-8-sig").split()
    tested = frozenset(of_stem[_stem(name)] for name in names if _stem(name) in of_stem)
    if not tested:
        raise DataError(f"{test_list}: none of its {len(names)} images is in the table of labels; correct or remove it")
    return tested


def _stem(name: str) -> str:
    """An image's name without folders and ending."""
    return PurePosixPath(name.replace("\\", "/")).stem


def _boxes(source: Path, listed: Set[str]) -> dict[str, list[Box]]:
    """Boxes by image, from either layout's table; none where it has none."""
    original = not (source / "labels.csv").is_file()
    # The original's header "Bbox [x,y,w,h]" is four cells
    columns = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]") if original else ("file", "label", *"xywh")
    table = next(iter(sorted(source.glob("BBox_List_2017*.csv" if original else "boxes.csv"))), None)
    if table is None:
        return {}
    of_stem = {_stem(name): name for name in listed}
    boxes: dict[str, list[Box]] = defaultdict(list)
    for record in read_table(table, *columns).rows:
        name, label, *sides = (record[column] for column in columns)
        image = of_stem.get(_stem(name))
        if image is None:
            if not original:
                raise DataError(
                    f"{table}: a box of {name}, which labels.csv does not list; add it there or remove the box"
                )
            continue
        x, y, w, h = (number_of(side, f"{table}: a box of {name}") / (_PIXELS if original else 1) for side in sides)
        try:
            boxes[image].append(Box(label.strip().lower(), x, y, w, h))
        except InputError as error:
            raise DataError(f"{table}: image {name}: {error}") from None
    if not boxes:
        raise DataError(f"{table}: none of its boxes is of an image in the table of labels; correct or remove it")
    return boxes
