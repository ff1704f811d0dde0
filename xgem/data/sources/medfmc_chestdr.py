"""MedFMC ChestDR: frontal radiographs of two Chinese hospitals with labels of 19 diseases, and few-shot lists.

Wang et al., "A real-world dataset and benchmark for foundation model adaptation in medical image classification",
Scientific Data 2023.

A folder of ``trainval.txt`` and ``test_WithLabel.txt`` (a line an image: its name, a blank, and 19 of 0 and 1 divided
by commas), or of ``chestdr_published_19d.csv`` (img_id, a column of 0 and 1 for each disease), with the images below.
For few-shot learning, ``chest_<shots>-shot_train_exp<n>.txt`` and ``..._val_exp<n>.txt`` of the same form, for 1, 5 and
10 patients a disease, in five drawings.

Decisions:

* Labels are the names of the columns with blanks for underscores ("fracture old"); an image without any is "No
  Finding", as the diseases cover what is common. Support devices are not annotated.
* ``test_WithLabel.txt`` is test; a fixed hash of the image gives 10 % of the others to val and, where there is no list
  of the test, 10 % to test.
* With ``shots``, train and val are those of the lists of one ``drawing``, and the rest of ``trainval.txt`` is left out.
* Patients are not published: every image is a study and a subject of its own. Age and sex are not published.
* Images that are not there are left out with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, Split, place, split_of
from xgem.data.sources.rows import check_images, flagged, make_row, write_manifest
from xgem.data.tables import read_table
from xgem.labels.terms import CHESTDR, NO_FINDING
from xgem.types import DataError, InputError

SOURCE: Final = "medfmc-chestdr"
LICENCE: Final = "as stated with MedFMC on figshare"
_TABLE, _REST, _TEST = "chestdr_published_19d.csv", "trainval.txt", "test_WithLabel.txt"
_COLUMNS: Final = {name.replace(" ", "_"): name for name in CHESTDR if name != NO_FINDING}


def prepare(source_dir: Path, out: Path, *, shots: int | None = None, drawing: int | None = None) -> Manifest:
    """Write the manifest of a ChestDR folder to ``out``, with references to its images in place.

    Args:
        shots: patients a disease in train and val (1, 5 or 10); None: all images.
        drawing: which of the five lists of ``shots``; None: the first.

    Raises:
        InputError: a drawing without shots.
        DataError: the folder has none of the lists, or a line is not as above, or no image is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root, shots=shots, drawing=drawing), root, out)


def rows_of(source: Path, root: Path, *, shots: int | None = None, drawing: int | None = None) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; arguments and errors as :func:`prepare`."""
    if shots is None and drawing is not None:
        raise InputError(f"drawing: {drawing} is one of the lists for few-shot learning; give shots too")
    tested = _listed(source, _TEST)
    if shots is None:
        listed: dict[str, tuple[Path, tuple[str, ...], Split | None]] = {
            name: (path, labels, None) for name, (path, labels) in (_listed(source, _REST) or _tabled(source)).items()
        }
    else:
        listed = {}
        for split in ("train", "val"):
            wanted = f"chest_{shots}-shot_{split}_exp{1 if drawing is None else drawing}.txt"
            few = _listed(source, wanted)
            if not few:
                raise DataError(
                    f"{source}: has no {wanted}; expected MedFMC's lists for 1, 5 or 10 shots, drawings 1 to 5"
                )
            listed |= {name: (path, labels, split) for name, (path, labels) in few.items()}
    listed |= {name: (path, labels, "test") for name, (path, labels) in tested.items()}
    if not listed:
        raise DataError(f"{source}: not a ChestDR folder; expected {_REST} and {_TEST}, or {_TABLE}, in it")
    files = ImageFiles(source)
    places = files.found(listed, any_ending=False)
    check_images(SOURCE, next(iter(listed.values()))[0], len(listed), len(places))
    rows: list[Row] = []
    for name, image in places.items():
        path, labels, split = listed[name]
        study = f"{SOURCE}-{image.stem}"
        rows.append(
            make_row(
                f"{path}: image {name}",
                study=study,
                subject=study,
                split=split or split_of(study, test=0 if tested else 0.1),
                view="frontal",
                file=place(image, root),
                labels=labels or (NO_FINDING,),
                source=SOURCE,
                licence=LICENCE,
            )
        )
    return rows


def _listed(source: Path, name: str) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Images of a list, with the list and their labels; none where it is not there."""
    path = next(iter(sorted(source.rglob(name))), None)
    if path is None:
        return {}
    images: dict[str, tuple[Path, tuple[str, ...]]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, _, text = line.strip().rpartition(" ")
        values = text.split(",")
        if not image or len(values) != len(_COLUMNS):
            raise DataError(
                f"{path}: line {number} is {line!r:.60}; expected an image's name, a blank, {len(_COLUMNS)} of 0 and 1"
            )
        record = dict(zip(_COLUMNS, values, strict=True))
        images[image] = (path, _labels(record, f"{path}: line {number}"))
    return images


def _tabled(source: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    table = next(iter(sorted(source.rglob(_TABLE))), None)
    if table is None:
        return {}
    records = read_table(table, "img_id", *_COLUMNS).rows
    return {record["img_id"]: (table, _labels(record, f"{table}: image {record['img_id']}")) for record in records}


def _labels(record: Mapping[str, str], where: str) -> tuple[str, ...]:
    return tuple(_COLUMNS[name] for name in flagged(record, _COLUMNS, where))
