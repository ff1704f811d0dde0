"""Images of NIH ChestX-ray14 with boxes of findings, and with labels that radiologists agreed on.

Boxes: Wang et al., "ChestX-ray8", CVPR 2017 (8 findings), and the RSNA Pneumonia Detection Challenge 2018 ("Lung
Opacity": Shih et al., Radiology: AI 2019). Adjudicated labels: Majkowska et al., Radiology 2020.

A folder with ``labels.csv`` (file, patient_id, age, sex, labels, rsna_class and four columns ``google_...``),
``boxes.csv`` (file, label, x, y, w, h in fractions of the image, source, and the patient's ``side``) and ``images/``.
With ``nih``, a folder of :mod:`xgem.data.sources.nih`, its images join them, with the boxes and labels that
``existing_boxes.csv`` and ``existing_labels.csv`` have for them. An image in both folders is taken from this one,
whose tables hold all that the others do.

Decisions:

* Studies, subjects and splits are those of ``nih``: every image is a study, the split is by patient.
* Labels are the mined ones, corrected by what radiologists state: their finding is added, and a mined label of a class
  that they deny is dropped and denied ("no Pneumothorax"). RSNA's "Lung Opacity" adds that finding; "No Lung Opacity /
  Not Normal" and "Normal" deny pneumonia, "Normal" opacities too.
* Boxes keep their class ("infiltrate" is the label "Infiltration"). A box on one side of the patient makes a finding
  with that side (``qualified``), boxes on either side one on both; a box over the midline has no side.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from xgem.data.annotations import Box
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources import nih as images_of_nih
from xgem.data.sources.rows import make_row, write_manifest
from xgem.data.tables import number_of, read_table, sex_of, years_of
from xgem.labels.spatial import plain_name
from xgem.labels.terms import DENIED, NO_FINDING
from xgem.labels.vocabulary import classes_of
from xgem.types import DataError, InputError

logger = logging.getLogger(__name__)

LICENCE = images_of_nih.LICENCE
LICENCE_RSNA = f"{LICENCE}; RSNA boxes and classes: non-commercial research with citation"
_ADJUDICATED: Final = {
    "google_fracture": "Fracture",
    "google_pneumothorax": "Pneumothorax",
    "google_airspace_opacity": "Lung Opacity",
    "google_nodule_or_mass": "Lung Lesion",
}
_RSNA: Final[dict[str, dict[str, bool]]] = {
    "": {},
    "Lung Opacity": {"Lung Opacity": True},
    "No Lung Opacity / Not Normal": {"Pneumonia": False},
    "Normal": {"Pneumonia": False, "Lung Opacity": False},
}
_QUALIFIED: Final = {"effusion": "Pleural Effusion", "lung opacity": "Opacity/lung"}
_SIDES: Final = ("left", "right", "both", "")

_Boxes = dict[str, list[tuple[Box, str]]]


def prepare(source_dir: Path, out: Path, *, nih: Path | None = None) -> Manifest:
    """Write the manifest of a folder of boxes to ``out``, with references to its images in place.

    Args:
        nih: folder of ChestX-ray14 whose images join them; None: those of this folder alone.

    Raises:
        DataError: the folder or a table is not as above, an image is missing, or a box, side or class cannot be.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root, nih=nih), root, out)


def rows_of(source: Path, root: Path, *, nih: Path | None = None) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; arguments and errors as :func:`prepare`."""
    table = source / "labels.csv"
    if not table.is_file() or not (source / "boxes.csv").is_file():
        raise DataError(f"{source}: not a folder of boxes; expected labels.csv, boxes.csv and images in it")
    records = read_table(table, "file", "patient_id", "age", "sex", "labels", "rsna_class", *_ADJUDICATED).rows
    places = ImageFiles(source).found(record["file"] for record in records)
    if missing := [record["file"] for record in records if record["file"] not in places]:
        raise DataError(f"{table}: {len(missing)} images are not in {source}, the first is {missing[0]}")
    boxes = _boxes(source / "boxes.csv", {record["file"] for record in records}, sides=True)
    rows = [_row(table, record, places[record["file"]], boxes.get(record["file"], []), root) for record in records]
    if nih is not None:
        own = {row.study for row in rows}
        rows += [row for row in _extended(images_of_nih.rows_of(Path(nih), root), source) if row.study not in own]
    return rows


def corrected(mined: Iterable[str], stated: Mapping[str, bool]) -> tuple[str, ...]:
    """Mined labels with what radiologists state of CheXpert's classes, present or absent, in their place."""
    absent = {name for name, present in stated.items() if not present}
    kept = [label for label in mined if not absent & {*classes_of(label)}]
    found = [name for name, present in stated.items() if present]
    if found:
        kept = [label for label in kept if label != NO_FINDING]
    known = {name for label in kept for name in classes_of(label)}
    added = [name for name in found if name not in known]
    return tuple(dict.fromkeys((*kept, *added, *(f"{DENIED}{name}" for name in stated if name in absent))))


def _row(table: Path, record: Mapping[str, str], image: Path, boxes: Sequence[tuple[Box, str]], root: Path) -> Row:
    where = f"{table}: image {record['file']}"
    subject = f"{images_of_nih.SOURCE}-{record['patient_id']}"
    mined = (label.replace("_", " ").strip() for label in record["labels"].split("|"))
    rsna = bool(record["rsna_class"]) or any(box.label == "lung opacity" for box, _ in boxes)
    return make_row(
        where,
        study=f"{images_of_nih.SOURCE}-{Path(record['file']).stem}",
        subject=subject,
        split=split_of(subject),
        view="frontal",
        file=place(image, root),
        labels=corrected(filter(None, mined), _stated(record, where)),
        age=years_of(record["age"]),
        sex=sex_of(record["sex"]),
        boxes=tuple(box for box, _ in boxes),
        qualified=_with_sides(boxes),
        source=images_of_nih.SOURCE,
        licence=LICENCE_RSNA if rsna else LICENCE,
    )


def _stated(record: Mapping[str, str], where: str) -> dict[str, bool]:
    """What radiologists state: class to present or absent; adjudication before RSNA's single class."""
    rsna = record["rsna_class"]
    if rsna not in _RSNA:
        raise DataError(f"{where}: rsna_class {rsna!r}; expected {', '.join(filter(None, _RSNA))} or nothing")
    stated = dict(_RSNA[rsna])
    for column, name in _ADJUDICATED.items():
        if answer := record[column]:
            if answer not in ("YES", "NO"):
                raise DataError(f"{where}: {column} {answer!r}; expected YES, NO or nothing")
            stated[name] = answer == "YES"
    return stated


def _boxes(table: Path, listed: Iterable[str], *, sides: bool) -> _Boxes:
    """Boxes and their sides by image."""
    known = {*listed}
    boxes: _Boxes = defaultdict(list)
    for record in read_table(table, "file", "label", *"xywh", *(("side",) if sides else ())).rows:
        name = record["file"]
        where = f"{table}: a box of {name}"
        if name not in known:
            raise DataError(f"{where}, which is not listed; add it to the table of labels or remove the box")
        if (side := record.get("side", "")) not in _SIDES:
            raise DataError(f"{where} has side {side!r}; expected left, right, both or nothing")
        try:
            box = Box(plain_name(record["label"]), *(number_of(record[key], where) for key in "xywh"))
        except InputError as error:
            raise DataError(f"{where}: {error}") from None
        boxes[name].append((box, side))
    return boxes


def _with_sides(boxes: Sequence[tuple[Box, str]]) -> tuple[str, ...]:
    """Findings of boxes with their side: ``"Atelectasis/right"``; those over the midline without."""
    found: dict[str, set[str]] = {}
    for box, side in boxes:
        found.setdefault(_QUALIFIED.get(box.label, box.label.capitalize()), set()).add(side)
    return tuple("/".join((name, *sorted(sides & {"left", "right"}))) for name, sides in found.items())


def _extended(rows: Sequence[Row], source: Path) -> list[Row]:
    """Rows of ChestX-ray14 with the boxes and labels that the tables ``existing_...`` have for them."""
    files = {Path(row.file).name: row for row in rows if row.file}
    boxes: _Boxes = {}
    stated: dict[str, dict[str, bool]] = {}
    if (table := source / "existing_boxes.csv").is_file():
        boxes = _boxes(table, files, sides=False)
    if (table := source / "existing_labels.csv").is_file():
        for record in read_table(table, "file", "rsna_class", *_ADJUDICATED).rows:
            stated[record["file"]] = _stated(record, f"{table}: image {record['file']}")
    if unknown := sorted(stated.keys() - files.keys()):
        logger.warning(
            "nih-boxes: %d images of %s are not in the folder of nih, %s for one", len(unknown), table, unknown[0]
        )
    extended: list[Row] = []
    for name, row in files.items():
        added = tuple(box for box, _ in boxes.get(name, ()))
        changes = {"labels": corrected(row.labels, stated.get(name, {})), "boxes": (*row.boxes, *added)}
        changed = name in stated or bool(added)
        extended.append(row.model_copy(update={**changes, "licence": LICENCE_RSNA}) if changed else row)
    return extended
