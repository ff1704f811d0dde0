"""Any folder of DICOM radiographs, with reports beside them: a hospital's own export.

Every file below the folder is looked at; names and endings do not matter. Studies are told by StudyInstanceUID,
subjects by PatientID (and IssuerOfPatientID), views by ViewPosition or ViewCodeSequence, age and sex by the patient's
elements.

Reports come from Structured Reports in the folder, and from ``reports``: a folder of text files or one table (columns
as in :data:`xgem.data.own_table.FIELDS`), each named by the study's UID, its accession number or the stem of an image's
file.

Decisions:

* Private data stay behind: of the headers the manifest keeps view, age and sex, and hashes of the ids of patient and
  study. Who knows an id can compute its hash, unless a secret ``salt`` goes into it. The images are referred to where
  they are, headers and names as they were; the spacing of pixels is read from them when they are used.
* The patient's names and ids are blotted out in reports ("___"). Other private data in a text remain: read what you
  share.
* An image whose view is not stated is kept with view None, which nothing uses, and listed as left out. Where asked for,
  a classifier tells frontals from laterals by their pixels; what it tells is marked as ``view_guessed``, and what it is
  not sure of stays unknown.
* A study without a PatientID is a subject of its own, with a warning: its patient may be in two splits.
* Findings and impression are found by headings (``xgem.data.sections``). There are no labels.
* A fixed hash of the subject gives 80 % train, 10 % val, 10 % test (``xgem data split`` changes that).
* What cannot be used is listed with its reason in ``OUT.left-out.csv``: files that are no DICOM or no single chest
  radiograph, copies, images without a study's UID, reports without a study.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xgem.configs.reading import ReadOptions
from xgem.data.dicom_header import check_header
from xgem.data.headers import age_in, read_header, sex_in, text_of, view_in
from xgem.data.image_files import is_data
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.own_table import FIELDS
from xgem.data.pixels import Reading
from xgem.data.sections import split_sections
from xgem.data.sources.rows import make_row, write_manifest
from xgem.data.tables import read_table
from xgem.types import DataError, ImageError
from xgem.utils.files import replacing
from xgem.utils.progress import track
from xgem.utils.tables import csv_text

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

SOURCE = "dicom"
_KEYS = ("StudyInstanceUID", "PatientID", "IssuerOfPatientID", "AccessionNumber", "PatientName")
_HEX = 16
_WORD = 3  # letters of a name from which on it is blotted out: shorter ones are parts of words


class Guess(NamedTuple):
    """The view that an image shows, or None and the ``reason`` why it is not told."""

    view: str | None
    reason: str = ""


GuessView = Callable[[Sequence[Path]], Sequence[Guess]]
"""Tells the views of files from their pixels."""


@dataclass
class _Study:
    """What the files of one study say; ``ids`` by the names of :data:`_KEYS`."""

    ids: Mapping[str, str]
    age: float | None
    sex: str | None
    images: list[tuple[Path, str | None]] = field(default_factory=list[tuple[Path, str | None]])
    texts: list[str] = field(default_factory=list[str])
    guessed: set[Path] = field(default_factory=set[Path])

    @property
    def patient(self) -> str:
        return f"{self.ids['IssuerOfPatientID']}:{self.ids['PatientID']}"


def prepare(
    source_dir: Path,
    out: Path,
    *,
    reports: Path | None = None,
    salt: str = "",
    allow_any: bool = False,
    guess: GuessView | None = None,
) -> Manifest:
    """Make the manifest of a folder of DICOM files, refer to them where they are, write it to ``out``.

    ``allow_any`` accepts other modalities and body parts, and has the manifest say so; ``guess`` tells the views that
    headers do not state.

    Raises:
        DataError: no file can be used (names the first and its reason), or no report is of a study in the folder.
    """
    source, root = Path(source_dir), Path(out).resolve().parent
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; expected one with DICOM files")
    left_out: list[tuple[str, str]] = []
    studies = _read(source, reports, left_out, allow_any)
    if not studies:
        first = f"; {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DataError(f"{source}: none of its {len(left_out)} files is a chest radiograph in DICOM{first}")
    if reports is not None:
        _add_reports(studies, reports, left_out)
    _settle_views(studies.values(), guess, left_out)
    _warn(source, studies.values())
    rows = [row for uid in sorted(studies) for row in _rows(uid, studies[uid], root, salt)]
    if allow_any:
        rows = [row.model_copy(update={"reading": ReadOptions(allow_any=True)}) for row in rows]
    manifest = write_manifest(rows, root, out)
    listed = out.with_name(f"{out.stem}.left-out.csv")
    listed.unlink(missing_ok=True)
    if left_out:
        with replacing(listed) as partial:
            partial.write_text(csv_text(["file", "reason"], left_out), encoding="utf-8")
        logger.warning("dicom: %d files are left out or not used, with their reasons in %s", len(left_out), listed)
    return manifest


def _read(source: Path, reports: Path | None, left_out: list[tuple[str, str]], allow_any: bool) -> dict[str, _Study]:
    studies: dict[str, _Study] = {}
    seen: dict[str, Path] = {}
    for path in track(sorted(source.rglob("*")), "reading headers"):
        apart = reports is not None and path.resolve().is_relative_to(reports.resolve())
        if not path.is_file() or apart or not is_data(path.relative_to(source)):
            continue
        try:
            _take(path, studies, seen, allow_any)
        except (ImageError, ValueError, TypeError) as error:
            left_out.append((str(path), " ".join(str(error).removeprefix(f"{path}: ").split())))
    return studies


def _take(path: Path, studies: dict[str, _Study], seen: dict[str, Path], allow_any: bool) -> None:
    """Put a file into its study; ImageError says why it cannot be used."""
    header = read_header(path)
    report = text_of(header, "Modality").upper() == "SR"
    if not report:
        check_header(header, Reading(str(path)), allow_any=allow_any, view=None)
    ids = {name: text_of(header, name) for name in _KEYS}
    uid, instance = ids["StudyInstanceUID"], text_of(header, "SOPInstanceUID")
    if not uid:
        raise ImageError(f"{path}: no StudyInstanceUID, so its study is unknown")
    if instance and seen.setdefault(instance, path) != path:
        raise ImageError(f"{path}: the same SOPInstanceUID as {seen[instance]}")
    text = "\n".join(_lines(header)) if report else ""
    if report and not text.strip():
        raise ImageError(f"{path}: a Structured Report without text")
    study = studies.setdefault(uid, _Study(ids, None, None))
    if ids["PatientID"] != study.ids["PatientID"]:
        raise ImageError(f"{path}: another PatientID than the first file of its study")
    study.age = age_in(header) if study.age is None else study.age
    study.sex = study.sex or sex_in(header)
    if report:
        study.texts.append(text)
    else:
        study.images.append((path, view_in(header)))


def _settle_views(studies: Iterable[_Study], guess: GuessView | None, left_out: list[tuple[str, str]]) -> None:
    """Guess the views that headers do not state, as far as the classifier is sure, and list the others."""
    unknown = [(study, at) for study in studies for at, (_, view) in enumerate(study.images) if view is None]
    files = [study.images[at][0] for study, at in unknown]
    guesses = guess(files) if guess is not None and files else [None] * len(files)
    noted = "cannot be used: no view; `--guess-views` tells it from the pixels"
    for (study, at), file, found in zip(unknown, files, guesses, strict=True):
        if found is not None and found.view is not None:
            study.images[at] = (file, found.view)
            study.guessed.add(file)
        else:
            left_out.append((str(file), noted if found is None else f"cannot be used: no view ({found.reason})"))


def _lines(container: Dataset) -> Iterator[str]:
    """The texts of a Structured Report, each below the names of what holds it, in capitals, as headings."""
    items: Any = container.get("ContentSequence") or ()
    for item in items:
        named: Any = item.get("ConceptNameCodeSequence")
        name, kind = text_of(named[0], "CodeMeaning").upper() if named else "", text_of(item, "ValueType")
        if name and kind in ("CONTAINER", "TEXT"):
            yield f"{name}:"
        if kind == "TEXT":
            yield text_of(item, "TextValue")
        yield from _lines(item)


def _add_reports(studies: Mapping[str, _Study], reports: Path, left_out: list[tuple[str, str]]) -> None:
    """Give each study its reports.

    Raises:
        DataError: they cannot be read, or none is of a study.
    """
    keys: dict[str, set[str]] = {}
    for uid, study in studies.items():
        for key in (uid, study.ids["AccessionNumber"], *(path.stem for path, _ in study.images)):
            keys.setdefault(key, set()).add(uid)
    listed = list(_listed(reports))
    matched = 0
    for key, name, text in listed:
        found = keys.get(key, set[str]()) if key else set[str]()
        if len(found) == 1:
            studies[next(iter(found))].texts.append(text)
            matched += 1
        else:
            left_out.append((name, f"report of {len(found)} studies" if found else "report of no study in the folder"))
    if not matched:
        raise DataError(
            f"{reports}: none of its {len(listed)} reports is of a study; expected the name of each to be a "
            "StudyInstanceUID, an accession number, or an image's file without its ending"
        )


def _listed(reports: Path) -> Iterator[tuple[str, str, str]]:
    """(key, where it stands, text) of each report."""
    if reports.is_dir():
        for path in sorted(reports.rglob("*.txt")):
            try:
                yield path.stem, str(path), path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
        return
    table = read_table(reports)
    columns = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(table.header)}

    def column(field_name: str) -> str | None:
        return next((columns[name] for name in FIELDS[field_name].split() if name in columns), None)

    key = column("study") or column("file")
    texts = [name for name in map(column, ("findings", "impression", "report")) if name is not None]
    if key is None or not texts:
        raise DataError(
            f"{reports}: columns {', '.join(table.header)}; expected one of studies or files (study, accession, file) "
            "and report, or findings and impression"
        )
    by_file = key == column("file")
    for line, record in zip(table.lines, table.rows, strict=True):
        parts = [(name, record[name]) for name in texts if record[name]]
        headed = [text if name == column("report") else f"{_heading(name)}: {text}" for name, text in parts]
        name = Path(record[key]).stem if by_file else record[key]
        yield name, f"{reports}: line {line}", "\n\n".join(headed)


def _heading(column: str) -> str:
    return "FINDINGS" if "finding" in column.lower() else "IMPRESSION"


def _rows(uid: str, study: _Study, root: Path, salt: str) -> list[Row]:
    known = study.patient if study.ids["PatientID"] else uid
    subject = f"{SOURCE}-{_hashed(known, salt)}"
    found = split_sections(_blotted("\n\n".join(study.texts), study.ids))
    common: dict[str, Any] = {
        "study": f"{SOURCE}-{_hashed(uid, salt)}",
        "subject": subject,
        "split": split_of(subject),
        "findings": found.findings,
        "impression": found.impression,
        "age": study.age,
        "sex": study.sex,
        "source": SOURCE,
    }
    images: list[dict[str, Any]] = [
        {"file": place(path, root), "view": view, "view_guessed": path in study.guessed} for path, view in study.images
    ]
    return [make_row(f"study {uid}", **common, **image) for image in images or [{}]]


def _hashed(text: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()[:_HEX]


def _words(ids: Mapping[str, str]) -> list[str]:
    """The patient's ids, and the words of the name."""
    names = re.findall(rf"[^\W\d_]{{{_WORD},}}", ids["PatientName"])
    return [word for word in (ids["PatientID"], ids["AccessionNumber"], *names) if len(word) >= _WORD]


def _blotted(text: str, ids: Mapping[str, str]) -> str:
    words = "|".join(map(re.escape, sorted(_words(ids), key=len, reverse=True)))
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", "___", text, flags=re.IGNORECASE) if words else text


def _warn(source: Path, studies: Iterable[_Study]) -> None:
    known: Sequence[_Study] = list(studies)
    images = [(study, *image) for study in known for image in study.images]
    counts = {
        "studies have no PatientID; each is a subject of its own": sum(not one.ids["PatientID"] for one in known),
        "images state no known view and are used by nothing": sum(view is None for _, _, view in images),
        "views are guessed from the pixels": sum(len(one.guessed) for one in known),
        "images have the patient's name or id in their path; rename them before you share the manifest": sum(
            _blotted(re.sub(r"[_\W]", " ", str(path.relative_to(source))), study.ids).find("___") >= 0
            for study, path, _ in images
        ),
    }
    for text, count in counts.items():
        if count:
            logger.warning("dicom: %d %s", count, text)
