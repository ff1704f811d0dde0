"""Frontal radiographs of the COVID-19 image data collection with Brixia severity scores by two readers.

Borghesi and Maroldi, "COVID-19 outbreak in Italy: experimental chest X-ray scoring system", Radiologia Medica 2020; the
scores of this collection: Signoroni et al., "BS-Net", Medical Image Analysis 2021.

A folder with ``brixia.csv`` (filename, S-Global, J-Global, the zones of each reader) and ``images/``.

Decisions: every image is a separate study, and frontal; names are matched without their extensions. The severity is
the mean of both readers' global scores, 0 to 18. Scores without an image are left out with a warning. Patients are not
published: they are inferred from the images' names (``xgem.data.sources.cases``); a fixed hash assigns 20 % of them to
val.
"""

from __future__ import annotations

import logging
from pathlib import Path

from xgem.data.annotations import MAX_SEVERITY
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place
from xgem.data.sources.cases import case_of
from xgem.data.sources.rows import make_case, write_manifest
from xgem.data.tables import number_of, read_table
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE = "severity"
LICENCE = "scores CC BY-NC-SA, image unknown"
_READERS = ("S-Global", "J-Global")


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a folder of Brixia scores to ``out``, with references to its images in place.

    Raises:
        DataError: the folder or its table is not as above, a score is invalid, or no score has an image.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = source / "brixia.csv"
    if not table.is_file():
        raise DataError(f"{source}: not a folder of Brixia scores; expected brixia.csv and images in it")
    records = read_table(table, "filename", *_READERS).rows
    images = ImageFiles(source / "images")
    rows: list[Row] = []
    for record in records:
        name = record["filename"]
        stem = Path(name).stem
        image = images.find(name, any_ending=True)
        if image is None:
            continue
        scores = [number_of(record[reader], f"{table}: {reader} of {name}") for reader in _READERS]
        # Each by itself: their mean could hide an invalid score
        if not all(0 <= score <= MAX_SEVERITY for score in scores):
            raise DataError(f"{table}: {name} has scores {scores}; expected 0 to {MAX_SEVERITY:g}")
        rows.append(
            make_case(
                f"{table}: image {name}",
                SOURCE,
                stem,
                case_of(stem),
                file=place(image, root),
                severity=sum(scores) / len(scores),
                licence=LICENCE,
            )
        )
    if not rows:
        raise DataError(f"{table}: none of its {len(records)} images is in {source / 'images'}; put them there")
    if len(rows) < len(records):
        logger.warning(
            "severity: %d of %d scored images are missing and are left out", len(records) - len(rows), len(records)
        )
    return rows
