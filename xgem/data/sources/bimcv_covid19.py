"""BIMCV-COVID19: frontal and lateral radiographs of Valencian hospitals, with PadChest's findings and Spanish reports.

de la Iglesia Vayá et al., "BIMCV COVID-19+: a large annotated dataset of RX and CT images from COVID-19 patients",
arXiv 2006.01174; the sets of patients with and without COVID-19, iterations 1 to 3.

A folder into which the archives of one of the sets are unpacked, anywhere below:

* ``sub-S03068/ses-E07172/mod-rx/sub-S03068_ses-E07172_run-1_bp-chest_vp-ap_dx.png`` (16 bits) and beside it, with the
  ending ``.json``, the header of its DICOM file by the numbers of the tags;
* a tab-separated table of labels, one of ``labels_covid19_posi.tsv``, ``labels_covid_posi.tsv``,
  ``Labels_covid_123.tsv``, ``labels_SARS-cov-2_nega.tsv`` and ``Labels_covid_NEG_JAN21.tsv`` (ReportID, which is the
  session; Labels, a list as text; Report);
* ``participants.tsv`` (participant, age, gender), where it is there.

Decisions:

* An image whose name ends with ``cr`` or ``dx`` is a radiograph; other body parts than ``bp-chest`` and ``bp-thorax``
  are left out, and so is CT. The view is that of the name: ``vp-ap`` and ``vp-pa`` are frontal, ``vp-ll``, ``vp-rl``,
  ``vp-l`` and ``vp-lateral`` lateral; a series that its header describes as lateral alone is lateral, whatever the
  name says. Others are kept with view None.
* PNG files hold the pixels as stored. Those of MONOCHROME1 are read as negatives (``reading``), and are a study of
  their own where others of the session are not. Windows and LUTs of the header are not applied.
* A session is a study, a participant a subject. No split is published: a fixed hash of the subject gives 80 % train,
  10 % val, 10 % test.
* Labels are read as in ``xgem.data.sources.padchest``; "COVID 19" and "COVID 19 uncertain" are kept, and say nothing
  of what the image shows. A session that the table does not list has no labels.
* The report is Spanish, as published: the impression, unless headings divide it.
* Age and sex are those of the first image's header; else of the participant, for whom several ages may be published,
  without saying of which session: their mean.
* Laboratory tests and the outlines of ten images are not read.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sections import Sections, split_sections
from xgem.data.sources.rows import make_row, write_manifest
from xgem.data.tables import is_missing, read_table, sex_of, years_of
from xgem.labels.vocabulary import is_silent, plain
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE: Final = "bimcv-covid19"
LICENCE: Final = "BIMCV-COVID19 Dataset Research Use Agreement"
_LABELS: Final = (
    *("labels_covid19_posi.tsv", "labels_covid_posi.tsv", "Labels_covid_123.tsv", "labels_SARS-cov-2_nega.tsv"),
    "Labels_covid_NEG_JAN21.tsv",
)
_VIEWS: Final = {
    **dict.fromkeys(("ap", "pa"), "frontal"),
    **dict.fromkeys(("l", "ll", "rl", "lateral"), "lateral"),
}
_TYPES: Final = frozenset({"cr", "dx"})
_PARTS: Final = frozenset({"", "chest", "thorax"})
_KEPT: Final = frozenset({"covid 19", "covid 19 uncertain"})
_PHOTOMETRIC, _DESCRIPTION, _AGE, _SEX = "00280004", "0008103E", "00101010", "00100040"
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")


class _Image(NamedTuple):
    """A radiograph: where it is, what its name says, and its header."""

    path: Path
    subject: str
    session: str
    part: str
    view: str
    header: Mapping[str, str]

    @property
    def negative(self) -> bool:
        return self.header.get(_PHOTOMETRIC) == "MONOCHROME1"


class _Session(NamedTuple):
    labels: tuple[str, ...]
    report: Sections


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a BIMCV-COVID19 folder to ``out``, with references to its images in place.

    Raises:
        DataError: the folder has no table of labels, it lacks a column, labels are no list, a header is none, or no
            radiograph is there.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    tables = [path for name in _LABELS for path in sorted(source.rglob(name))]
    if not tables:
        raise DataError(f"{source}: not a BIMCV-COVID19 folder; expected one of {', '.join(_LABELS)} in it")
    found = [image for path in ImageFiles(source) if (image := _image(path)) is not None]
    images = [image for image in found if image.part in _PARTS]
    if not images:
        raise DataError(
            f"{source}: has no radiograph such as sub-S1_ses-E1_run-1_bp-chest_vp-ap_dx.png; unpack the archives there"
        )
    if len(images) < len(found):
        logger.warning("bimcv-covid19: %d images are of other body parts and are left out", len(found) - len(images))
    sessions, people = _sessions(tables), _people(source)
    first: dict[str, _Image] = {}
    rows: list[Row] = []
    for image in images:
        leading = first.setdefault(image.session, image)
        session = sessions.get(image.session, _Session((), Sections("", "", {})))
        subject, person = f"{SOURCE}-{image.subject}", people.get(image.subject, {})
        rows.append(
            make_row(
                str(image.path),
                study=_study(image, leading),
                subject=subject,
                split=split_of(subject),
                view=_view(image),
                file=place(image.path, root),
                findings=session.report.findings,
                impression=session.report.impression,
                labels=session.labels,
                age=years_of(leading.header.get(_AGE, "")) or _age(person.get("age", "")),
                sex=sex_of(leading.header.get(_SEX, "")) or sex_of(person.get("gender", "")),
                source=SOURCE,
                licence=LICENCE,
                reading=ReadOptions(invert=True) if image.negative else AS_STATED,
            )
        )
    if without := len(first.keys() - sessions.keys()):
        logger.warning("bimcv-covid19: %d of %d sessions have no labels in %s", without, len(first), tables[0])
    return rows


def _image(path: Path) -> _Image | None:
    """An image by the parts of its name; None for what is no radiograph."""
    *parts, kind = path.stem.split("_")
    named = {key: value for key, _, value in (part.partition("-") for part in parts)}
    if kind.lower().removesuffix("-corrected") not in _TYPES or not named.get("sub") or not named.get("ses"):
        return None
    part, view = (named.get(key, "").lower() for key in ("bp", "vp"))
    return _Image(path, f"sub-{named['sub']}", f"ses-{named['ses']}", part, view, _header(path.with_suffix(".json")))


def _header(path: Path) -> Mapping[str, str]:
    """The elements of a header that have a value, by their tags; empty where the file is not there."""
    if not path.is_file():
        return {}
    try:
        elements: Any = json.loads(path.read_text(encoding="utf-8"))
        values = {tag: element.get("Value") for tag, element in elements.items() if isinstance(element, dict)}
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise DataError(f"{path}: no DICOM header in JSON ({' '.join(str(error).split())[:120]})") from None
    return {tag: str(value[0]).strip() for tag, value in values.items() if isinstance(value, list) and value}


def _study(image: _Image, first: _Image) -> str:
    apart = image.negative != first.negative
    return f"{SOURCE}-{image.session}{'-monochrome' if apart else ''}"


def _view(image: _Image) -> str | None:
    words = set(re.findall(r"\w+", image.header.get(_DESCRIPTION, "").lower()))
    if words & {"lat", "lateral"} and not words & {"ap", "pa"}:
        return "lateral"
    return _VIEWS.get(image.view)


def _sessions(tables: Sequence[Path]) -> dict[str, _Session]:
    sessions: dict[str, _Session] = {}
    for table in tables:
        for record in read_table(table, "ReportID", "Labels", separator="\t").rows:
            name = record["ReportID"]
            labels = _findings(record["Labels"], f"{table}: {name}")
            sessions[name] = _Session(labels, split_sections(_report(record.get("Report", ""))))
    return sessions


def _people(source: Path) -> dict[str, Mapping[str, str]]:
    people: dict[str, Mapping[str, str]] = {}
    for table in sorted(source.rglob("participants.tsv")):
        for record in read_table(table, "participant", separator="\t").rows:
            people[record["participant"]] = record
    return people


def _findings(text: str, where: str) -> tuple[str, ...]:
    """Labels of a list as text, which tabs or commas divide."""
    if not text:
        return ()
    if not (text.startswith("[") and text.endswith("]")):
        raise DataError(f"{where}: Labels is {text!r:.80}; expected a list such as ['normal']")
    names = (" ".join(name.strip(" '\"").split()) for name in re.split(r"[\t,]", text[1:-1]))
    kept = (name for name in names if not is_missing(name) and (plain(name) in _KEPT or not is_silent(name)))
    return tuple(dict.fromkeys(kept))


def _report(text: str) -> str:
    """A report, which may be a list of texts."""
    if not text.startswith("["):
        return text
    try:
        return "\n".join(map(str, ast.literal_eval(text)))
    except (ValueError, SyntaxError):
        return text.strip("[]'\"")


def _age(text: str) -> float | None:
    years = [years for number in _NUMBER.findall(text) if (years := years_of(number)) is not None]
    return sum(years) / len(years) if years else None
