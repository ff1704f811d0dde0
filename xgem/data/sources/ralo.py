"""RALO: portable frontal radiographs (AP) of patients with COVID-19, whose lung opacity two radiologists scored.

Cohen et al., "Radiographic assessment of lung opacity score dataset" (Stony Brook), Zenodo 2021, record 4634000.

A folder of ``ralo-dataset-metadata.csv`` and ``CXR_images_scored/0.jpg``, ``1.jpg`` and so on: the number is that of
the table's row. The table has a line of the radiologists' names above its header; the header has Subject_ID, and "Total
GEOGRAPHIC" and "Total OPACITY" once for either radiologist.

Decisions:

* The severity is the mean of both radiologists' opacity (0 to 8, both lungs together), as ChexGen takes it, times 18 /
  8: manifests hold severity on the scale of Brixia, 0 to 18. Divide by 2.25 for the published scale. The scores grade
  other things; do not compare them one by one with Brixia's. A score that one of both left out is the other's. The
  geographic extent is not read.
* The label is "Lung Opacity" where both radiologists see one, "no Lung Opacity" where neither does, and "possible Lung
  Opacity" where they differ; other findings are not annotated.
* Every image is a separate study, and frontal; the subject is the patient. No split is published: a fixed hash of the
  patient gives 80 % train, 10 % val, 10 % test.
* Images that are not there are left out with a warning.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from xgem.data.annotations import MAX_SEVERITY
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources.rows import check_images, make_row, tables_of, write_manifest
from xgem.data.tables import is_missing, number_of
from xgem.labels.terms import DENIED, DOUBTED
from xgem.types import DataError

SOURCE: Final = "ralo"
LICENCE: Final = "as stated by Zenodo record 4634000"
_SUBJECT, _SCORE = "Subject_ID", "Total OPACITY"
_MOST: Final = 8.0
_READERS: Final = 2


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a RALO folder to ``out``, with references to its images in place.

    Raises:
        DataError: the folder or its table is not as above, a score is none, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = tables_of(source, scores="ralo-dataset-metadata.csv")["scores"]
    scored = _read(table)
    files = ImageFiles(source)
    places = {number: path for number in range(len(scored)) if (path := _image(files, number)) is not None}
    check_images(SOURCE, table, len(scored), len(places))
    rows: list[Row] = []
    for number, image in places.items():
        patient, scores = scored[number]
        subject = f"{SOURCE}-{patient or number}"
        rows.append(
            make_row(
                f"{table}: image {number}",
                study=f"{SOURCE}-{number}",
                subject=subject,
                split=split_of(subject),
                view="frontal",
                file=place(image, root),
                labels=_labels(scores),
                severity=sum(scores) / len(scores) * MAX_SEVERITY / _MOST if scores else None,
                source=SOURCE,
                licence=LICENCE,
            )
        )
    return rows


def _image(files: ImageFiles, number: int) -> Path | None:
    return files.find(f"CXR_images_scored/{number}.jpg") or files.find(f"CXR_images_scored/{number}.png")


def _labels(scores: Sequence[float]) -> tuple[str, ...]:
    if not scores:
        return ()
    seen = [score > 0 for score in scores]
    return ("Lung Opacity" if all(seen) else f"{DOUBTED if any(seen) else DENIED}Lung Opacity",)


def _read(table: Path) -> list[tuple[str, list[float]]]:
    """Patient and scores of each row: columns that are there twice need a reader of their own."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            lines = [[cell.strip() for cell in line] for line in csv.reader(stream, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not readable as a CSV table ({error})") from None
    head = next((number for number, line in enumerate(lines[:2]) if _SUBJECT in line), None)
    columns = [] if head is None else [place for place, name in enumerate(lines[head]) if name == _SCORE]
    if head is None or len(columns) != _READERS:
        raise DataError(
            f"{table}: no column {_SUBJECT}, or not {_READERS} of {_SCORE}, in its first two lines; expected the "
            "published table, with the radiologists' names above the header"
        )
    patient = lines[head].index(_SUBJECT)
    scored: list[tuple[str, list[float]]] = []
    for number, line in enumerate(lines[head + 1 :]):
        if not any(line):
            continue
        where = f"{table}: image {number}"
        if len(line) <= max(*columns, patient):
            raise DataError(f"{where} has {len(line)} cells; expected {len(lines[head])}")
        scores = [number_of(line[place], f"{where}: {_SCORE}") for place in columns if not is_missing(line[place])]
        if not all(0 <= score <= _MOST for score in scores):
            raise DataError(f"{where} has {_SCORE} {scores}; expected 0 to {_MOST:g}")
        scored.append((line[patient], scores))
    return scored
