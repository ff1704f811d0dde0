"""Frontal radiographs of the COVID-19 image data collection with manual masks.

A folder with ``masks.csv`` (image, mask, structure, view, finding, sex, age, image_licence), ``images/`` and
``masks/``.

Decisions: every image is a separate study, PA or AP and so frontal. Lines, tubes and probes are one structure,
"device"; a structure with two masks keeps both. Findings become labels, without repeats; age and sex are unknown if the
table leaves them empty. Every row has the image's licence, "unknown" if none is published. Patients are not published:
they are inferred from the images' names (``xgem.data.sources.cases``); a fixed hash assigns 20 % of them to val.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xgem.data.annotation_files import read_masks
from xgem.data.image_files import ImageFiles, image_size
from xgem.data.manifest import Manifest, Row, place
from xgem.data.sources.cases import case_of
from xgem.data.sources.rows import make_case, write_manifest
from xgem.data.tables import read_table, sex_of, years_of
from xgem.labels.spatial import STRUCTURES
from xgem.types import DataError, InputError

SOURCE = "segmentations"
LICENCE = "masks CC BY 4.0, image {}"
_IMAGE_COLUMNS = ("view", "finding", "sex", "age", "image_licence")
_DEVICES = (
    "central venous line",
    "endotracheal tube",
    "nasogastric tube",
    "nosogastric tube",
    "monitoring probes",
    "tubings",
)


@dataclass(frozen=True)
class MaskSet:
    """What differs between sets of this layout: ``structures`` by the table's terms, ``subject`` from a file's stem.

    ``licence`` may contain ``{}`` for the licence of the image.
    """

    source: str
    licence: str
    structures: Mapping[str, str]
    subject: Callable[[str], str]


SET = MaskSet(
    SOURCE,
    LICENCE,
    {name: name for name in STRUCTURES}
    | {"ground glass opacities": "ground glass opacity"}
    | dict.fromkeys(_DEVICES, "device"),
    case_of,
)


def prepare(source_dir: Path, out: Path, masks_of: MaskSet = SET) -> Manifest:
    """Write the manifest of a folder of masks to ``out``, with references to its files in place.

    Raises:
        DataError: the folder or its table is not as above, a structure is unknown, an image or mask is missing, or a
            mask does not have the size of its image.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root, masks_of), root, out)


def rows_of(source: Path, root: Path, masks_of: MaskSet = SET) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = source / "masks.csv"
    if not table.is_file():
        raise DataError(f"{source}: not a folder of masks; expected masks.csv, images and masks in it")
    outlined: dict[str, list[Mapping[str, str]]] = {}
    for record in read_table(table, "image", "mask", "structure", *_IMAGE_COLUMNS).rows:
        outlined.setdefault(record["image"], []).append(record)
    if not outlined:
        raise DataError(f"{table}: lists no masks; expected one per row")
    images, masks = ImageFiles(source / "images"), ImageFiles(source / "masks")
    return [_row(masks_of, table, records, images, masks, root) for _, records in sorted(outlined.items())]


def _row(
    masks_of: MaskSet,
    table: Path,
    records: Sequence[Mapping[str, str]],
    images: ImageFiles,
    masks: ImageFiles,
    root: Path,
) -> Row:
    """The row of one image with all of its masks."""
    # What all records of an image must agree on
    first = records[0]
    name = first["image"]
    image = images.find(name)
    if image is None:
        raise DataError(f"{table}: image {name!r} is not in images; put it there or remove its rows")
    for column in _IMAGE_COLUMNS:
        if len(values := {record[column] for record in records}) > 1:
            raise DataError(f"{table}: image {name} has several values of {column}: {', '.join(sorted(values))}")
    if first["view"].upper() not in ("PA", "AP"):
        raise DataError(f"{table}: image {name} has view {first['view']!r}; expected PA or AP")
    # Masks by structure
    outlines: dict[str, list[str]] = {}
    for structure, mask in _outlines(table, records, masks_of.structures):
        file = masks.find(mask)
        if file is None:
            raise DataError(f"{table}: mask {mask!r} of {name} is not in masks; put it there or remove its row")
        try:
            height, width = read_masks({structure: file}, (structure,)).masks[structure].shape
        except InputError as error:
            raise DataError(f"{table}: mask {mask!r} of {name}: {error}") from None
        if (width, height) != (expected := image_size(image)):
            raise DataError(f"{file}: a mask of {(width, height)} pixels for an image of {expected}; make them equal")
        outlines.setdefault(structure, []).append(place(file, root))
    stem = Path(name).stem
    return make_case(
        f"{table}: image {name}",
        masks_of.source,
        stem,
        masks_of.subject(stem),
        file=place(image, root),
        labels=tuple(dict.fromkeys(label.strip() for label in first["finding"].split(",") if label.strip())),
        age=years_of(first["age"]),
        sex=sex_of(first["sex"]),
        masks=outlines,
        licence=masks_of.licence.format(first["image_licence"] or "unknown"),
    )


def _outlines(
    table: Path, records: Iterable[Mapping[str, str]], structures: Mapping[str, str]
) -> Iterable[tuple[str, str]]:
    """(structure, name of the mask) of each record."""
    for record in records:
        structure = structures.get(record["structure"].strip().lower())
        if structure is None:
            raise DataError(
                f"{table}: mask {record['mask']} outlines {record['structure']!r}; expected one of "
                f"{', '.join(structures)}"
            )
        yield structure, record["mask"]
