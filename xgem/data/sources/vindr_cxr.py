"""VinDr-CXR: frontal radiographs (PA) in DICOM with boxes and labels of several radiologists, age and sex.

Nguyen et al., "VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations", Scientific Data 2022.

A folder of ``annotations/annotations_{train,test}.csv`` (image_id, class_name, x_min, y_min, x_max, y_max; rad_id in
train), ``annotations/image_labels_{train,test}.csv`` (image_id, a column of 0 and 1 for each finding and diagnosis;
rad_ID in train), and ``train/`` and ``test/`` with ``<image_id>.dicom``. The tables may lie beside the images too.

Decisions:

* A label is a finding that more than half of an image's readers see; one that fewer see is "possible ...", which leaves
  it unknown; test is labelled by consensus. Names are the columns' own.
* Boxes are pixels of the original, hence of the DICOM file: converted copies are not read. Boxes of one class by
  several readers that overlap by 0.4 of their union or more are one, their mean; it is kept if more than half of the
  readers drew it. A box a little over the edge is cut there, with a warning that counts them.
* The published test is test; a fixed hash of the image gives 10 % of train to val. Patients are not published, so the
  subject is the image.
* Age (0 is unknown: there are adults alone) and sex come from the DICOM header. There are no reports.
* Listed images that are not there are left out with a warning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xgem.data.annotations import Box
from xgem.data.headers import age_in, read_header, sex_in, text_of
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources.drawings import Corners, Cutter, Size
from xgem.data.sources.rows import check_images, make_row, table_of, write_manifest
from xgem.data.tables import number_of, read_table
from xgem.labels.terms import DOUBTED, NO_FINDING
from xgem.labels.vocabulary import classes_of
from xgem.types import DataError
from xgem.utils.progress import track

SOURCE = "vindr-cxr"
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
_SIDES = ("x_min", "y_min", "x_max", "y_max")
_READERS = ("rad_id", "rad_ID")
_OVERLAP = 0.4


@dataclass(frozen=True)
class VindrSet:
    """What differs between the sets of this layout.

    ``found_in_boxes``: findings are classes of boxes alone, and no columns of labels. ``newborns``: an age of 0 is one.
    """

    name: str
    source: str
    licence: str
    found_in_boxes: bool = False
    newborns: bool = False


SET = VindrSet("VinDr-CXR", SOURCE, LICENCE)


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Make the manifest of a VinDr-CXR folder, refer to its images where they are, write it to ``out``.

    Raises:
        DataError: the folder has no labels, a table lacks a column, a value or box is none, or no image is there.
        ImageError: a DICOM file cannot be read.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path, of: VindrSet = SET) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    files = ImageFiles(source)
    rows: list[Row] = []
    cutter = Cutter()
    for split in ("train", "test"):
        listed = _table(source, f"image_labels_{split}.csv")
        if listed is None:
            continue
        votes = _votes(listed)
        boxes = _boxes(_table(source, f"annotations_{split}.csv"))
        places = {name: path for name in votes if (path := _dicom(files, name)) is not None}
        check_images(f"{of.source}, {split}", listed, len(votes), len(places))
        for name, image in track(list(places.items()), f"reading headers of {split}"):
            readers = votes[name]
            header = read_header(image)
            width, height = (int(text_of(header, side) or 0) for side in ("Columns", "Rows"))
            kept = _agreed(boxes.get(name, ()), len(readers))
            drawn = tuple(_box(cutter, f"{image}", label, corners, (height, width)) for label, corners in kept)
            found = dict.fromkeys(label for label, _ in kept) if of.found_in_boxes else ()
            subject, age = f"{of.source}-{name}", age_in(header)
            rows.append(
                make_row(
                    f"{listed}: image {name}",
                    study=subject,
                    subject=subject,
                    split=split_of(subject, test=0) if split == "train" else "test",
                    view="frontal",
                    file=place(image, root),
                    labels=tuple(dict.fromkeys((*_labels(readers), *found))),
                    boxes=drawn,
                    age=age if of.newborns else age or None,
                    sex=sex_in(header),
                    source=of.source,
                    licence=of.licence,
                )
            )
    if not rows:
        raise DataError(
            f"{source}: not a {of.name} folder; expected image_labels_train.csv or image_labels_test.csv, in it or in "
            "annotations"
        )
    cutter.warn(of.source)
    return rows


def _table(source: Path, name: str) -> Path | None:
    return table_of(source / "annotations", name) or table_of(source, name)


def _dicom(files: ImageFiles, name: str) -> Path | None:
    return files.find(f"{name}.dicom") or files.find(f"{name}.dcm")


def _votes(table: Path) -> dict[str, list[Mapping[str, bool]]]:
    """By image what each of its readers sees, by finding."""
    read = read_table(table, "image_id")
    findings = [column for column in read.header if column not in ("image_id", *_READERS)]
    votes: dict[str, list[Mapping[str, bool]]] = defaultdict(list)
    for record in read.rows:
        where = f"{table}: image {record['image_id']}"
        votes[record["image_id"]].append({name: number_of(record[name], f"{where}: {name}") > 0 for name in findings})
    return votes


def _labels(readers: Sequence[Mapping[str, bool]]) -> tuple[str, ...]:
    seen = {name: sum(reader[name] for reader in readers) for name in readers[0]}
    half = len(readers) / 2
    findings = (name for name, count in seen.items() if 0 < count <= half and NO_FINDING not in classes_of(name))
    return (*(name for name, count in seen.items() if count > half), *(DOUBTED + name for name in findings))


def _boxes(table: Path | None) -> dict[str, list[tuple[str, str, Corners]]]:
    """By image its boxes: reader, class, corners in pixels."""
    boxes: dict[str, list[tuple[str, str, Corners]]] = defaultdict(list)
    for record in read_table(table, "image_id", "class_name", *_SIDES).rows if table else ():
        if not record["x_min"]:  # "No finding" has no box
            continue
        where = f"{table}: a box of {record['image_id']}"
        left, top, right, bottom = (number_of(record[side], f"{where}: {side}") for side in _SIDES)
        reader = next((record[column] for column in _READERS if column in record), "")
        boxes[record["image_id"]].append((reader, record["class_name"], (left, top, right, bottom)))
    return boxes


def _agreed(boxes: Iterable[tuple[str, str, Corners]], readers: int) -> list[tuple[str, Corners]]:
    """Boxes of one class that overlap as one, their mean, if more than half of the readers drew it."""
    groups: list[tuple[str, list[tuple[str, Corners]]]] = []
    for reader, label, corners in boxes:
        near = (
            members
            for name, members in groups
            if name == label
            and all(one != reader for one, _ in members)
            and _overlap(corners, members[0][1]) >= _OVERLAP
        )
        members = next(near, None)
        if members is None:
            groups.append((label, [(reader, corners)]))
        else:
            members.append((reader, corners))
    agreed = [(label, [corners for _, corners in members]) for label, members in groups if len(members) > readers / 2]
    return [(label, _mean(drawn)) for label, drawn in agreed]


def _mean(drawn: Sequence[Corners]) -> Corners:
    left, top, right, bottom = (sum(side) / len(drawn) for side in zip(*drawn, strict=True))
    return left, top, right, bottom


def _overlap(a: Corners, b: Corners) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared
    return shared / union if union > 0 else 0.0


def _box(cutter: Cutter, where: str, label: str, corners: Corners, size: Size) -> Box:
    box = cutter.box(label, corners, size)
    if box is None:
        raise DataError(
            f"{where}: a box of {label.lower()} at {corners} in {size[1]} x {size[0]} pixels; correct or remove it"
        )
    return box
