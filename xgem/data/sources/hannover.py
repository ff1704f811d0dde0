"""Portable frontals of patients with COVID-19, many in intensive care, with lines and tubes.

Winther et al., "COVID-19 Image Repository", Hannover Medical School 2020. A folder with ``labels.csv`` (file, patient,
sex, view) and ``images/``.

Decisions: every image is a separate study, PA or AP and so frontal; the subject is the patient, and a fixed hash gives
20 % of them to val. The table does not say which lines and tubes an image shows, so there are no labels; days of
admission and outcome are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place
from xgem.data.sources.rows import check_images, make_case, write_manifest
from xgem.data.tables import read_table, sex_of
from xgem.types import DataError

SOURCE: Final = "hannover"
LICENCE: Final = "CC BY 3.0"


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a folder of the repository to ``out``, with references to its images in place.

    Raises:
        DataError: the folder or its table is not as above, a patient is missing, a view is not frontal, or no image is
            there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = source / "labels.csv"
    if not table.is_file():
        raise DataError(f"{source}: not a folder of the Hannover repository; expected labels.csv and images in it")
    records = read_table(table, "file", "patient", "sex", "view").rows
    places = ImageFiles(source / "images").found(record["file"] for record in records)
    check_images(SOURCE, table, len(records), len(places))
    rows: list[Row] = []
    for record in records:
        where = f"{table}: image {record['file']}"
        if record["view"] not in ("PA", "AP"):
            raise DataError(f"{where} has view {record['view']!r}; expected PA or AP")
        if not record["patient"]:
            raise DataError(f"{where} has no patient; images of one patient must be in one split")
        if (image := places.get(record["file"])) is not None:
            subject, file = f"{SOURCE}-{record['patient']}", place(image, root)
            sex = sex_of(record["sex"])
            rows.append(make_case(where, SOURCE, image.stem, subject, file=file, sex=sex, licence=LICENCE))
    return rows
