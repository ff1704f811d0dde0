"""SIIM-ACR Pneumothorax: frontal radiographs with masks of the pneumothorax, and such as have none.

The Kaggle competition "SIIM-ACR Pneumothorax Segmentation" 2019, with masks by radiologists on images of NIH
ChestX-ray14 (Filice et al., "Crowdsourcing pneumothorax annotations using machine learning annotations on the NIH chest
X-ray dataset", Journal of Digital Imaging 2020).

A folder of ``train-rle.csv`` or ``stage_2_train.csv`` (ImageId, EncodedPixels), and images named by ``ImageId``: DICOM
in folders of the study and series, below ``dicom-images-train/`` and ``dicom-images-test/``, or PNG or JPEG in any
folder.

Decisions:

* EncodedPixels are run lengths on 1024 x 1024 pixels, down the columns, each counted from the end of the one before; -1
  is no pneumothorax. The rows of an image are united to one mask, which is written to ``siim-acr-masks`` beside the
  manifest, on the grid of the image; copies of another size are fine, cropped ones are refused.
* Labels are "Pneumothorax" or "no Pneumothorax"; nothing else was annotated.
* Every image is a separate study. Of DICOM files, patient, age, sex and view are the header's; others are frontal, and
  their patients unknown, so that the subject is the image.
* Images below ``dicom-images-test/``, whose masks are in ``stage_2_train.csv``, are test, and so are other images of
  their patients; a fixed hash of the patient gives 10 % of the rest to val and, without that folder, 10 % to test.
* Listed images that are not there are left out with a warning. The same images are in ChestX-ray14 under other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from xgem.data.headers import age_in, is_dicom, read_header, sex_in, text_of, view_in
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources.drawings import MaskFiles, Runs, check_scale, stored_size
from xgem.data.sources.rows import check_images, make_row, table_of, write_manifest
from xgem.data.tables import read_table
from xgem.labels.terms import DENIED
from xgem.types import DataError
from xgem.utils.progress import track

SOURCE: Final = "siim-acr"
LICENCE: Final = "rules of the Kaggle competition SIIM-ACR Pneumothorax Segmentation; images of NIH ChestX-ray14"
_TABLES: Final = ("stage_2_train.csv", "train-rle.csv")
_TESTED: Final = "dicom-images-test"
_SIZE: Final = (1024, 1024)
_NONE: Final = "-1"


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a SIIM-ACR folder to ``out``, with references to its images in place, and the masks.

    Raises:
        DataError: the folder has no table, it lacks a column, run lengths are none or lie beyond the image, no image is
            there, or one has another shape. ImageError: a damaged DICOM file.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``, where masks are written; errors as :func:`prepare`."""
    table = next((path for name in _TABLES if (path := table_of(source, name)) is not None), None)
    if table is None:
        raise DataError(f"{source}: not a SIIM-ACR folder; expected {' or '.join(reversed(_TABLES))} in it")
    encoded: dict[str, list[str]] = {}
    for record in read_table(table, "ImageId", "EncodedPixels").rows:
        encoded.setdefault(record["ImageId"], []).append(record["EncodedPixels"])
    files = ImageFiles(source)
    places = {name: path for name in encoded if (path := files.find(f"{name}.dcm", any_ending=True)) is not None}
    check_images(SOURCE, table, len(encoded), len(places))
    people = {name: _person(places[name]) for name in track(list(places), "reading headers")}
    subjects = {name: f"{SOURCE}-{person.patient or name}" for name, person in people.items()}
    tested = {subjects[name] for name, path in places.items() if _is_tested(path, source)}
    masks = MaskFiles(root, SOURCE)
    rows = [
        make_row(
            f"{table}: image {name}",
            study=f"{SOURCE}-{name}",
            subject=subjects[name],
            split="test" if subjects[name] in tested else split_of(subjects[name], test=0 if tested else 0.1),
            view=people[name].view,
            file=place(image, root),
            **_shown(f"{table}: image {name}", image, encoded[name], masks),
            age=people[name].age,
            sex=people[name].sex,
            source=SOURCE,
            licence=LICENCE,
        )
        for name, image in places.items()
    ]
    masks.write()
    return rows


class _Person(NamedTuple):
    """What the header of an image says."""

    patient: str = ""
    view: str = "frontal"
    age: float | None = None
    sex: str | None = None


def _person(image: Path) -> _Person:
    if not is_dicom(image):
        return _Person()
    header = read_header(image)
    return _Person(text_of(header, "PatientID"), view_in(header) or "frontal", age_in(header), sex_in(header))


def _is_tested(path: Path, source: Path) -> bool:
    return any(part.startswith(_TESTED) for part in path.relative_to(source).parts)


def _shown(where: str, image: Path, encoded: Sequence[str], masks: MaskFiles) -> Mapping[str, Any]:
    """The label of an image, and its mask."""
    if set(encoded) == {_NONE}:
        return {"labels": (f"{DENIED}Pneumothorax",)}
    if _NONE in encoded:
        raise DataError(f"{where} has run lengths, and {_NONE} for none; keep one of the two")
    runs = [Runs.relative(text, _SIZE, where) for text in encoded]
    size = stored_size(image)
    check_scale(image, size, _SIZE)
    return {"labels": ("Pneumothorax",), "masks": {"pneumothorax": masks.add(image, size, "pneumothorax", runs)}}
