"""A synthetic set as a folder for others: images, tables, card, provenance and checksums."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from xgem._version import __version__
from xgem.configs.reading import AS_STATED
from xgem.data.export import write_parts
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.pipeline.generation import read_metadata
from xgem.publishing.card import Facts, card_text
from xgem.publishing.closeness import Check, Distance
from xgem.publishing.judging import Picture, pictures_of
from xgem.publishing.selection import MANIFEST, RECORD, SCORES
from xgem.types import DataError, InputError, PrivacyError
from xgem.utils.files import check_output_folder, file_sha256, new_folder, write_json
from xgem.utils.progress import track

logger = logging.getLogger(__name__)

CARD: Final = "README.md"
PROVENANCE: Final = "provenance.json"
SUMS: Final = "SHA256SUMS"
_MASKS: Final = "masks"


@dataclass(frozen=True)
class Published:
    """Counts of a published set: ``images``, by split, and how many were ``dropped`` as close to training images."""

    images: int
    splits: Mapping[str, int]
    dropped: int


def publish(
    source: str | Path,
    check: Check,
    out: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    drop_close: bool = False,
) -> Published:
    """Write the images of a manifest (a cohort, a filtered set) as a data set folder that ``datasets`` reads.

    ``out`` receives a folder for each split with the images and ``metadata.csv``, ``masks``, ``manifest.parquet``
    (:func:`xgem.data.load_dataset`), ``README.md`` (the card), ``provenance.json`` (what each image was generated with,
    how close it is to training images) and ``SHA256SUMS``. It appears in one piece. Scores of ``xgem data filter`` and
    distances are columns of ``metadata.csv``.

    Args:
        source: the manifest, or a folder with ``manifest.parquet``.
        name: of the set; by default that of the folder ``out``.
        licence: of the set and of each row; by default that of the rows, if all have the same.
        drop_close: leave out images that are close to a training image, which otherwise end publishing.

    Raises:
        InputError: an image is not marked as synthetic by xgem, no licence, or training images that cannot be used.
        PrivacyError: images are close to training images. OutputError: ``out`` holds something or cannot be written.
        DataError: no image is left. ManifestError, ImageError: the manifest or an image cannot be read.
    """
    check_output_folder(out)
    place = Path(source)
    file = place / MANIFEST if place.is_dir() else place
    manifest = Manifest.read(file)
    manifest.check()
    pictures = pictures_of(manifest)
    licence = _licence(pictures, licence)
    made = _made(pictures)
    distances, compared = check.compare(pictures)
    close = [number for number, distance in enumerate(distances) if distance.close]
    if close and not drop_close:
        first = distances[close[0]]
        raise PrivacyError(
            f"{len(close)} of {len(pictures)} images are close to a training image, first {pictures[close[0]].file} "
            f"(latent distance {first.latent:.4g}, pixel distance {first.pixel:.4g}); look at them, or leave them out "
            "(--drop-close)"
        )
    kept = [number for number in range(len(pictures)) if not distances[number].close]
    if not kept:
        raise DataError(f"all {len(pictures)} images are close to a training image: nothing is left to publish")
    scores = _scores(file.parent, pictures)
    more = [
        {
            "model": made[number]["checkpoint"]["name"],
            "seed": made[number]["seed"],
            **distances[number].columns,
            **scores[number],
        }
        for number in kept
    ]
    facts = Facts(
        name or out.name,
        licence,
        [pictures[number].row.model_copy(update={"licence": licence}) for number in kept],
        [made[number] for number in kept],
        _filtered(file.parent),
        compared | {"dropped": len(close)},
        more,
    )
    _warn(facts)
    with new_folder(out) as folder:
        _write(folder, manifest, facts, [distances[number] for number in kept])
        _sum(folder)
    return Published(len(kept), dict(Counter(row.split for row in facts.rows)), len(close))


def _warn(facts: Facts) -> None:
    logger.warning(
        "compared with %d images of %s: who publishes states that these are all that was trained on (%s), which xgem "
        "does not check",
        facts.training_images,
        facts.closeness["training"],
        ", ".join(sorted({one["checkpoint"]["name"] for one in facts.made})),
    )
    if facts.texts_of:
        logger.warning(
            "texts or labels come from real studies (%s): their terms apply to the set, and its card says so",
            ", ".join(facts.texts_of),
        )


def _licence(pictures: Sequence[Picture], given: str | None) -> str:
    known = sorted({picture.row.licence for picture in pictures})
    if given is None and (len(known) > 1 or not known[0]):
        raise InputError(f"licences of the rows: {', '.join(map(repr, known[:5]))}; say that of the set (--licence)")
    return given or known[0]


def _made(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """What each image was generated with, by its own metadata; InputError if one is not synthetic."""
    made: list[dict[str, Any]] = []
    refused: list[str] = []
    for picture in track(pictures, "reading metadata"):
        try:
            values = read_metadata(picture.file)
            if values.get("synthetic") is not True or "checkpoint" not in values:
                raise InputError(f"{picture.file}: its metadata do not say that it is synthetic")
            made.append(values)
        except InputError as error:
            refused.append(str(error))
    if refused:
        raise InputError(
            f"{len(refused)} of {len(pictures)} images are not marked as synthetic, so that none is published; first "
            f"{refused[0]}"
        )
    return made


def _filtered(folder: Path) -> dict[str, Any] | None:
    """What ``xgem data filter`` recorded beside the manifest."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / RECORD}: cannot be read ({error}); run xgem data filter again") from error


def _scores(folder: Path, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """The scores of each image by measure; empty where the set was not judged."""
    if not (folder / SCORES).is_file():
        return [{} for _ in pictures]
    table = pq.read_table(folder / SCORES).to_pylist()
    found = {(row["file"], row["measure"]): row["value"] for row in table}
    measures = list(dict.fromkeys(row["measure"] for row in table))
    return [{name: found.get((str(picture.file), name)) for name in measures} for picture in pictures]


def _write(folder: Path, manifest: Manifest, facts: Facts, distances: Sequence[Distance]) -> None:
    names = write_parts(manifest, facts.rows, folder, copy=True, more=facts.more)
    rows: list[Row] = []
    copied: dict[Path, str] = {}
    for row, file in zip(facts.rows, names, strict=True):
        own = {"file": file, "reading": AS_STATED}
        rows.append(row.model_copy(update={**own, "masks": _masks(manifest, row, folder, copied)}))
    written = Manifest(tuple(rows), folder)
    written.check()
    written.write(folder / MANIFEST)
    images = {
        file: {"generated": one, "closeness": distance.columns}
        for file, one, distance in zip(names, facts.made, distances, strict=True)
    }
    about = {"xgem": __version__, "closeness": facts.closeness, "filter": facts.filtered, "images": images}
    write_json(folder / PROVENANCE, about)
    (folder / CARD).write_text(card_text(facts), encoding="utf-8")


def _masks(manifest: Manifest, row: Row, folder: Path, copied: dict[Path, str]) -> dict[str, tuple[str, ...]]:
    """Copy those of a row's masks that no other row has; their names in the folder."""
    names: dict[str, tuple[str, ...]] = {}
    for structure, files in manifest.masks(row).items():
        for file in files:
            if file not in copied:
                copied[file] = f"{_MASKS}/{len(copied):08}-{structure.replace(' ', '-')}.png"
                (folder / _MASKS).mkdir(exist_ok=True)
                shutil.copyfile(file, folder / copied[file])
        names[structure] = tuple(copied[file] for file in files)
    return names


def _sum(folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_sha256(folder / file)}  {file}\n" for file in track(files, "checksums")]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
