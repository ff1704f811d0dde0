"""CheXpert: frontal and lateral radiographs with labels mined from reports, age and sex. Reports are not read.

Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison", AAAI 2019.

A folder of ``train.csv`` and ``valid.csv`` (Path, Sex, Age, Frontal/Lateral, AP/PA, 14 classes), and, where it was
added, ``test.csv`` of that form; the images in ``train/``, ``valid/`` and ``test/`` as
``patient00001/study1/view1_frontal.jpg``, of the full size or the small release, unpacked in batches or not.

Decisions:

* A class is 1, 0, -1 (uncertain) or blank (not mentioned). 1 is its name, 0 "no ...", -1 "possible ..."; a blank says
  nothing, so that the class is unknown and never absent. A 0 of "No Finding" is "Abnormal".
* ``valid.csv``, read by radiologists, is val, and ``test.csv`` test; without one a fixed hash of the patient gives 10 %
  of ``train.csv`` to test. The rest is train.
* Sex "Unknown" is unknown, and so is age 0, which stands there for an adult.
* Images are found by patient, study and name. Those that are not there are left out with a warning; a study needs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, Split, place, split_of
from xgem.data.sources.rows import check_images, make_row, stated_labels, table_of, tables_of, write_manifest
from xgem.data.tables import read_table, sex_of, years_of
from xgem.types import DataError

SOURCE = "chexpert-v1"
LICENCE = "Stanford University Dataset Research Use Agreement"
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral")
_TABLES: dict[str, Split] = {"train.csv": "train", "valid.csv": "val", "test.csv": "test"}
_ENDING = 3  # patient, study and image: what of a path every release has


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Make the manifest of a CheXpert folder, refer to its images where they are, write it to ``out``.

    Raises:
        DataError: the folder is not as above, a table lacks a column, a value is none, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    tables_of(source, train="train.csv")
    places = {path.parts[-_ENDING:]: path for path in ImageFiles(source)}
    tested = table_of(source, "test.csv") is not None
    rows: list[Row] = []
    for name, split in _TABLES.items():
        table = table_of(source, name)
        if table is None:
            continue
        records = read_table(table, *_COLUMNS).rows
        images = [(record, places.get(PurePosixPath(record["Path"]).parts[-_ENDING:])) for record in records]
        found = [(record, image) for record, image in images if image is not None]
        check_images(f"chexpert, {name}", table, len(images), len(found))
        by_hash = split == "train" and not tested
        rows += [_row(f"{table}: {record['Path']}", record, image, root, split, by_hash) for record, image in found]
    return rows


def _row(where: str, record: Mapping[str, str], image: Path, root: Path, split: Split, by_hash: bool) -> Row:
    patient, study = image.parts[-3:-1]
    view = record["Frontal/Lateral"].lower()
    if view not in ("frontal", "lateral"):
        raise DataError(f"{where}: Frontal/Lateral is {view!r}; expected Frontal or Lateral")
    subject = f"{SOURCE}-{patient}"
    return make_row(
        where,
        study=f"{subject}-{study}",
        subject=subject,
        split=split_of(subject, val=0) if by_hash else split,
        view=view,
        file=place(image, root),
        labels=stated_labels(record, where),
        age=years_of(record["Age"]) or None,
        sex=sex_of(record["Sex"]),
        source=SOURCE,
        licence=LICENCE,
    )
