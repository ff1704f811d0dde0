"""CANDID-PTX: frontal radiographs with reports, and with masks of pneumothorax, acute rib fractures and chest tubes.

Feng et al., "Curation of the CANDID-PTX dataset with free-text reports", Radiology: Artificial Intelligence 2021.

A folder of ``Pneumothorax_reports.csv`` (filename, SOPInstanceUID, EncodedPixels, Report), where they are there
``chest_tube.csv`` and ``acute_rib_fracture.csv`` or ``Rib_fracture_mask_rle.csv`` (anon_SOPUID, mask_rle), and the
images anywhere below, named by their SOPInstanceUID, with or without an ending (``.dcm``, or ``.jpg`` and ``.png`` of
copies).

Decisions:

* Run lengths are those of ``xgem.data.sources.siim_acr``, on 1024 x 1024 pixels; -1 is none. Rows of an image are
  united. Masks are written to ``candid-ptx-masks`` beside the manifest: "pneumothorax", "rib fracture", and a chest
  tube as "device".
* Labels are "Pneumothorax", "Rib Fracture" and "Chest Tube"; "no ..." where the tables say -1. An image that the tables
  of fractures and tubes do not list is unknown there; other fractures and devices were not annotated.
* Every image is a separate study with the report of its examination, divided by its headings. The subject is the
  patient, whom ``filename`` begins with (``P0001_...``); a fixed hash gives 80 % train, 10 % val, 10 % test.
* Age and sex are the DICOM header's; of copies in other formats they are unknown. All images are frontal.
* An EncodedPixels that is empty says nothing. Images that are not there are left out with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from xgem.data.headers import age_in, is_dicom, read_header, sex_in
from xgem.data.image_files import IMAGE_ENDINGS, is_data
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sections import split_sections
from xgem.data.sources.drawings import MaskFiles, Runs, check_scale, stored_size
from xgem.data.sources.rows import check_images, make_row, table_of, tables_of, write_manifest
from xgem.data.tables import read_table
from xgem.labels.terms import DENIED
from xgem.types import DataError
from xgem.utils.progress import track

SOURCE: Final = "candid-ptx"
LICENCE: Final = "CANDID-PTX data use agreement"
_REPORTS: Final = "Pneumothorax_reports.csv"
_FINDINGS: Final[dict[str, tuple[str, ...]]] = {
    "Rib Fracture": ("acute_rib_fracture.csv", "Rib_fracture_mask_rle.csv"),
    "Chest Tube": ("chest_tube.csv",),
}
_STRUCTURES: Final = {"Pneumothorax": "pneumothorax", "Rib Fracture": "rib fracture", "Chest Tube": "device"}
_SIZE: Final = (1024, 1024)
_NONE: Final = "-1"


@dataclass
class _Image:
    """What the tables say of an image; run lengths by finding, none of which are in it if they are empty."""

    patient: str
    report: str
    runs: dict[str, list[Runs]] = field(default_factory=dict[str, list[Runs]])


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a CANDID-PTX folder to ``out``, with references to its images in place, and the masks.

    Raises:
        DataError: the folder has no table, it lacks a column, run lengths are none or lie beyond the image, no image is
            there, or one has another shape. ImageError: a damaged DICOM file.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``, where masks are written; errors as :func:`prepare`."""
    table = tables_of(source, reports=_REPORTS)["reports"]
    images: dict[str, _Image] = {}
    for record in read_table(table, "filename", "SOPInstanceUID", "EncodedPixels", "Report").rows:
        name = record["SOPInstanceUID"]
        image = images.setdefault(name, _Image(record["filename"].split("_")[0], record["Report"]))
        _add(image, "Pneumothorax", record["EncodedPixels"], f"{table}: image {name}")
    for finding, names in _FINDINGS.items():
        listed = next((path for name in names if (path := table_of(source, name)) is not None), None)
        for record in read_table(listed, "anon_SOPUID", "mask_rle").rows if listed else ():
            if (image := images.get(record["anon_SOPUID"])) is not None:
                _add(image, finding, record["mask_rle"], f"{listed}: image {record['anon_SOPUID']}")
    places = _places(source)
    found = {name: path for name in images if (path := places.get(name)) is not None}
    check_images(SOURCE, table, len(images), len(found))
    masks = MaskFiles(root, SOURCE)
    rows = [
        _row(f"{table}: image {name}", name, images[name], path, masks, root)
        for name, path in track(list(found.items()), "reading headers")
    ]
    masks.write()
    return rows


def _add(image: _Image, finding: str, text: str, where: str) -> None:
    if not text:
        return
    runs = image.runs.setdefault(finding, [])
    if text != _NONE:
        runs.append(Runs.relative(text, _SIZE, f"{where}, {finding}"))


def _places(source: Path) -> dict[str, Path]:
    """Images by their UID: the names of DICOM files have no ending."""
    places: dict[str, Path] = {}
    for path in sorted(source.rglob("*")):
        if path.is_file() and is_data(path.relative_to(source)):
            name = path.stem if path.suffix.lower() in IMAGE_ENDINGS else path.name
            if (other := places.setdefault(name, path)) != path:
                raise DataError(f"{source}: image {name} is in {other} and {path}; keep one of them")
    return places


def _row(where: str, name: str, image: _Image, path: Path, masks: MaskFiles, root: Path) -> Row:
    subject = f"{SOURCE}-{image.patient or name}"
    report = split_sections(image.report)
    person: Mapping[str, Any] = {}
    if is_dicom(path):
        header = read_header(path)
        person = {"age": age_in(header), "sex": sex_in(header)}
    drawn = {finding: runs for finding, runs in image.runs.items() if runs}
    outlined: dict[str, tuple[str, ...]] = {}
    if drawn:
        size = stored_size(path)
        check_scale(path, size, _SIZE)
        # The file's name may have no ending, but its stem is cut at a point
        named = path if path.stem == name else path.with_name(f"{name}.dcm")
        outlined = {_STRUCTURES[one]: masks.add(named, size, _STRUCTURES[one], runs) for one, runs in drawn.items()}
    return make_row(
        where,
        study=f"{SOURCE}-{name}",
        subject=subject,
        split=split_of(subject),
        view="frontal",
        file=place(path, root),
        findings=report.findings,
        impression=report.impression,
        labels=tuple(finding if runs else f"{DENIED}{finding}" for finding, runs in image.runs.items()),
        masks=outlined,
        **person,
        source=SOURCE,
        licence=LICENCE,
    )
