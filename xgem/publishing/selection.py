"""Which images of a synthetic set are kept: scores of judges, conditions on them, and the best of what is left."""

from __future__ import annotations

import logging
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from xgem._version import __version__
from xgem.data.manifest import Manifest
from xgem.publishing.judging import Judged, Picture, PictureJudge, pictures_of
from xgem.types import DataError, ImageError, InputError
from xgem.utils.files import check_output_folder, file_sha256, replacing, write_json
from xgem.utils.hashing import in_threads

logger = logging.getLogger(__name__)

MANIFEST: Final = "manifest.parquet"
SCORES: Final = "scores.parquet"
RECORD: Final = "filter.json"
_HOLDS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq,
}  # fmt: skip
_CONDITION: Final = re.compile(r"\s*(\w+)\s*(>=|<=|==|>|<)\s*(-?\d+(?:\.\d+)?)\s*")
_SCHEMA: Final = pa.schema(
    [(name, pa.string()) for name in ("id", "file", "view", "judge", "version", "measure")]
    + [("value", pa.float64()), ("reason", pa.string()), ("kept", pa.bool_())]
)


@dataclass(frozen=True)
class Condition:
    """A measure that has to reach a number; a score that is missing meets nothing."""

    measure: str
    sign: str
    number: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """``quality>=2`` and the like.

        Raises:
            InputError: anything else.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise InputError(f"{text!r}: expected a condition like 'quality>=2' or 'malformed<1'")
        return cls(found[1], found[2], float(found[3]))

    def __str__(self) -> str:
        return f"{self.measure}{self.sign}{self.number:g}"

    def holds(self, value: float | None) -> bool:
        """Whether a score meets it."""
        return value is not None and math.isfinite(value) and _HOLDS[self.sign](value, self.number)


def select(
    source: Path,
    manifest: Manifest,
    judges: Sequence[PictureJudge],
    conditions: Sequence[Condition],
    out: Path,
    *,
    top: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Judge the images of ``manifest``, keep those that meet all conditions, and of these the ``top`` ones.

    ``out`` receives ``scores.parquet`` (a row an image and judge), ``manifest.parquet`` (what is kept, in place) and
    ``filter.json`` (judges, conditions, counts), which is written last. ``top`` goes by the first judge's measure, ties
    by the id of the study. ``source``: the manifest's file, for the record.

    Returns:
        counts: ``images``, ``kept``; where ``top`` cuts between images of one score, ``tied``: the ``images`` that have
        it and the ``kept`` ones of them; and by judge the images without a score, if any.

    Raises:
        InputError: no judge, two of one measure, or a condition on a measure that none has. OutputError: ``out`` holds
            something. DataError: nothing is kept; the scores are written. EndpointError: an endpoint fails as a whole.
    """
    _check(judges, conditions, top)
    check_output_folder(out, overwrite=overwrite)
    pictures = pictures_of(manifest)
    faults = in_threads(_fault, pictures, "reading images")
    readable = [picture for picture, fault in zip(pictures, faults, strict=True) if not fault]
    judged: dict[str, list[Judged]] = {}
    for judge in judges:
        scores = iter(judge.judge(readable))
        judged[judge.measure] = [
            Judged(None, f"cannot be used: {fault}") if fault else next(scores) for fault in faults
        ]
    kept = [all(one.holds(judged[one.measure][k].value) for one in conditions) for k in range(len(pictures))]
    tied: dict[str, int] = {}
    if top is not None:
        kept, tied = _best(judges[0], pictures, judged[judges[0].measure], kept, top)
    with replacing(out / SCORES) as partial:
        pq.write_table(pa.Table.from_pylist(_rows(pictures, judges, judged, kept), schema=_SCHEMA), partial)
    failed = {judge.name: sum(one.value is None for one in judged[judge.measure]) for judge in judges}
    failed = {name: count for name, count in failed.items() if count}
    for judge in judges:
        first = next((one.reason for one in judged[judge.measure] if one.value is None), None)
        if first is not None:
            logger.warning("%s: no score for %d of %d images, first: %s", judge.name, failed[judge.name], len(pictures),
                           first)  # fmt: skip
    if not any(kept):
        raise DataError(f"none of {len(pictures)} images is kept; {out / SCORES} has their scores")
    rows = tuple(picture.row for picture, keep in zip(pictures, kept, strict=True) if keep)
    Manifest(rows, manifest.root).write(out / MANIFEST)
    counts: dict[str, Any] = {"images": len(pictures), "kept": len(rows)}
    if tied:
        counts["tied"] = tied
    if failed:
        counts["without score"] = failed
    record = {
        "xgem": __version__,
        "manifest": {"name": source.name, "sha256": file_sha256(source)},
        "judges": [{"name": one.name, "version": one.version, "measure": one.measure} for one in judges],
        "keep": [str(one) for one in conditions],
        "top": top,
        "counts": counts,
    }
    with replacing(out / RECORD) as partial:
        write_json(partial, record)
    return counts


def _fault(picture: Picture) -> str:
    """Why an image cannot be judged: unreadable, or of one grey level; empty if it can."""
    try:
        picture.pixels()
    except ImageError as error:
        return str(error)
    return ""


def _check(judges: Sequence[PictureJudge], conditions: Sequence[Condition], top: int | None) -> None:
    measures = [judge.measure for judge in judges]
    twice = sorted({name for name in measures if measures.count(name) > 1})
    if not judges or twice:
        raise InputError(f"judges of {', '.join(twice) or 'nothing'}: expected one judge for each measure")
    unknown = [one for one in conditions if one.measure not in measures]
    if unknown:
        raise InputError(f"{unknown[0]}: no judge gives {unknown[0].measure}; they give {', '.join(measures)}")
    if not conditions and top is None:
        raise InputError("nothing says what is kept; give a condition (--keep) or a number (--top)")


def _best(
    judge: PictureJudge, pictures: Sequence[Picture], scores: Sequence[Judged], kept: Sequence[bool], top: int
) -> tuple[list[bool], dict[str, int]]:
    """Which of the kept images that have a score are the best; and how many share the last score, if some are cut."""
    sign = -1 if judge.upwards else 1
    ranked = sorted(
        (sign * one.value, pictures[number].row.study, number)
        for number, one in enumerate(scores)
        if kept[number] and one.value is not None
    )
    best, rest = ranked[:top], ranked[top:]
    chosen = {number for *_, number in best}
    tied: dict[str, int] = {}
    if rest and rest[0][0] == best[-1][0]:
        last = [number for value, _, number in ranked if value == best[-1][0]]
        tied = {"images": len(last), "kept": sum(number in chosen for number in last)}
        said = "the best %d: %d images have the last %s, of which the first %d by id are kept"
        logger.warning(said, top, tied["images"], judge.measure, tied["kept"])
    return [number in chosen for number in range(len(pictures))], tied


def _rows(
    pictures: Sequence[Picture],
    judges: Sequence[PictureJudge],
    judged: dict[str, list[Judged]],
    kept: Sequence[bool],
) -> list[dict[str, Any]]:
    return [
        {
            "id": picture.row.study,
            "file": str(picture.file),
            "view": picture.row.view,
            "judge": judge.name,
            "version": judge.version,
            "measure": judge.measure,
            "value": judged[judge.measure][number].value,
            "reason": judged[judge.measure][number].reason,
            "kept": kept[number],
        }
        for number, picture in enumerate(pictures)
        for judge in judges
    ]
