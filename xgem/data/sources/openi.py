"""Indiana University chest radiographs (Open-i): frontal, lateral and report.

Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and retrieval", JAMIA 2016.

Three layouts are supported, distinguished by the files in the folder:

* ``images.csv`` (uid, view, file, split) + ``reports.csv`` + ``images/``: views and splits as listed there;
* ``indiana_projections.csv`` (uid, filename, projection) + ``indiana_reports.csv`` + a folder of PNG;
* the original ``NLMCXR_png/*.png`` + ``ecgen-radiology/*.xml``. The reports there do not give the view of each image:
  views are taken from ``indiana_projections.csv`` if the folder has it. Without it a view is known only if the image's
  caption names a single view ("PA", "AP", "frontal", or "lateral"); an image whose caption names both or none is kept
  with view None, which nothing uses, and a warning counts them.

Decisions:

* No patient ids are published, so the subject is the study (``uid``). Two studies of one patient cannot be recognised.
* If no split is published, a fixed hash of the subject gives 80 % train, 10 % val, 10 % test.
* Labels are the annotators' ``Problems`` (the headings of the MeSH terms), without repeats and without "No Indexing"
  and "Technical Quality of Image Unsatisfactory"; "normal" stays "normal".
* MeSH terms with side, place and size are kept as ``qualified`` findings, where the table has the column ``MeSH``.
* Report text is cleaned (``xgem.data.cleaning``). A missing impression stays empty, even if there are findings.
* With ``extra``, a folder with ``images.csv`` (file, age, source_width, source_height, r2gen_split) of what the DICOM
  headers and R2Gen's annotation file tell of the same images: the age, and the shape of the images before they were
  squashed to squares, which becomes the ``pixel_aspect`` of their reading. Images that it does not list keep theirs.
* With ``r2gen_split``, the split is R2Gen's (Chen et al., EMNLP 2020), on which most published scores of Open-i reports
  stand; studies in none of its splits are left out, with their number in a warning.
* Reports without images become rows without a file; studies with neither text nor image are left out.
"""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from xgem.configs.reading import ReadOptions
from xgem.data.cleaning import clean_report
from xgem.data.image_files import ImageFiles, image_size
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.rows import SPLITS
from xgem.data.sources.rows import make_row, write_manifest
from xgem.data.tables import number_of, read_table, split_of_name, years_of
from xgem.labels.qualified import qualified_terms
from xgem.labels.vocabulary import is_silent
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE = "openi"
LICENCE = "CC BY-NC-ND 4.0"
_FRONTAL = re.compile(r"\b(?:frontal|pa|ap|portable|posteroanterior|anteroposterior)\b", re.IGNORECASE)
_LATERAL = re.compile(r"\blat(?:eral)?\b", re.IGNORECASE)
_BOTH = re.compile(r"\b(?:2|two) views?\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Report:
    problems: Sequence[str] = ()
    terms: Sequence[str] = ()
    findings: str = ""
    impression: str = ""


@dataclass(frozen=True)
class _Image:
    uid: str
    view: str | None
    file: Path
    split: str | None = None


@dataclass(frozen=True)
class _Extra:
    """What the table of headers tells: by study, or by the name of the image's file."""

    ages: Mapping[str, float]
    splits: Mapping[str, str]
    sizes: Mapping[str, tuple[float, float]]

    def aspect(self, file: Path) -> float | None:
        """Height of a stored pixel divided by its width; None where the source's size is unknown."""
        if file.name not in self.sizes:
            return None
        width, height = self.sizes[file.name]
        stored_width, stored_height = image_size(file)
        return round((height / stored_height) / (width / stored_width), 6)


_NOTHING = _Extra({}, {}, {})


def prepare(source_dir: Path, out: Path, *, extra: Path | None = None, r2gen_split: bool = False) -> Manifest:
    """Write the manifest of an Open-i folder to ``out``, with references to its images in place.

    Args:
        extra: folder with the table of headers; None leaves ages unknown and images in their stored shape.
        r2gen_split: take the split from that table.

    Raises:
        DataError: the folder has none of the layouts above, or a column or a listed image is missing, or the table of
            headers is missing, has none of the images, or a value that cannot be.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root, extra=extra, r2gen_split=r2gen_split), root, out)


def rows_of(source: Path, root: Path, *, extra: Path | None = None, r2gen_split: bool = False) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; arguments and errors as :func:`prepare`."""
    if r2gen_split and extra is None:
        raise DataError("r2gen_split without extra: give the folder whose images.csv has the column r2gen_split")
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; expected the unpacked Open-i data set")
    if (source / "images.csv").is_file() and (source / "reports.csv").is_file():
        images, reports = _listed(source, source / "images.csv"), _read_reports(source / "reports.csv")
    elif (source / "indiana_reports.csv").is_file() and (source / "indiana_projections.csv").is_file():
        images = _listed(source, source / "indiana_projections.csv")
        reports = _read_reports(source / "indiana_reports.csv")
    elif (source / "ecgen-radiology").is_dir():
        images, reports = _read_xml(source)
    else:
        raise DataError(
            f"{source}: not an Open-i folder; expected images.csv + reports.csv, indiana_projections.csv + "
            "indiana_reports.csv, or NLMCXR_png + ecgen-radiology"
        )
    _check_join(source, {image.uid for image in images}, reports.keys())
    told = _NOTHING if extra is None else _read_extra(Path(extra), {image.file.name for image in images})
    rows = list(_rows(images, reports, root, told))
    if r2gen_split:
        rows = list(_in_r2gen(rows, told.splits))
    if not rows:
        raise DataError(f"{source}: no images and no reports found")
    return rows


def labels_from_problems(problems: Iterable[str]) -> tuple[str, ...]:
    """The annotators' problems as labels: with uniform blanks and capitals, without repeats and non-findings."""
    labels: dict[str, None] = {}
    for problem in problems:
        name = " ".join(problem.split())
        if not name or is_silent(name):
            continue
        if name.lower() == "normal":
            labels["normal"] = None
            continue
        # "Lymph nodes" and "Lymph Nodes" are the same heading
        words = [word if word.lower() in ("of", "and") else word[0].upper() + word[1:] for word in name.split(" ")]
        labels[" ".join(words)] = None
    return tuple(labels)


def _read_extra(folder: Path, files: Set[str]) -> _Extra:
    """The table of headers, of which at least one image is among ``files``."""
    path = folder / "images.csv"
    if not path.is_file():
        raise DataError(f"{folder}: has no images.csv; expected the table of file, age, source_width, source_height")
    ages: dict[str, float] = {}
    splits: dict[str, str] = {}
    sizes: dict[str, tuple[float, float]] = {}
    records = read_table(path, "uid", "file", "age", "source_width", "source_height", "r2gen_split").rows
    for row in records:
        where = f"{path}: image {row['file']}"
        if (age := years_of(row["age"])) is not None and ages.setdefault(row["uid"], age) != age:
            raise DataError(f"{where}: age {age:g}, but {ages[row['uid']]:g} in another row of study {row['uid']}")
        if split := row["r2gen_split"]:
            if split not in SPLITS:
                raise DataError(f"{where}: r2gen_split {split!r}; expected {', '.join(SPLITS)} or nothing")
            if splits.setdefault(row["uid"], split) != split:
                raise DataError(f"{where}: two values of r2gen_split in study {row['uid']}; a study has one split")
        if row["source_width"] and row["source_height"]:
            size = tuple(number_of(row[name], f"{where}: {name}") for name in ("source_width", "source_height"))
            if min(size) < 1:
                raise DataError(f"{where}: source of {size[0]:g} x {size[1]:g} pixels; expected 1 or more")
            sizes[row["file"]] = (size[0], size[1])
    if files and not files & {row["file"] for row in records}:
        raise DataError(f"{path}: lists none of the {len(files)} images, {min(files)} for one; is it of another copy?")
    return _Extra(ages, splits, sizes)


def _in_r2gen(rows: Iterable[Row], splits: Mapping[str, str]) -> Iterable[Row]:
    """The rows of studies that R2Gen's split has, in that split."""
    left_out: set[str] = set()
    for row in rows:
        split = splits.get(row.study.removeprefix(f"{SOURCE}-"))
        if split is None:
            left_out.add(row.study)
        else:
            yield row.model_copy(update={"split": split})
    if left_out:
        logger.warning("openi: %d studies are in none of R2Gen's splits and are left out", len(left_out))


def _rows(images: Sequence[_Image], reports: Mapping[str, _Report], root: Path, extra: _Extra) -> Iterable[Row]:
    """One row per image, or one without a file for a report without images."""
    by_uid: dict[str, list[_Image]] = {}
    for image in images:
        by_uid.setdefault(image.uid, []).append(image)
    unknown = sum(image.view is None for image in images)
    if unknown:
        logger.warning(
            "openi: the view of %d of %d images is not published in this layout; put indiana_projections.csv into "
            "the folder to use them",
            unknown,
            len(images),
        )
    # Study by study, in the order of their numbers
    empty = _Report()
    for uid in sorted(by_uid.keys() | reports.keys(), key=lambda name: (len(name), name)):
        report = reports.get(uid, empty)
        study = f"{SOURCE}-{uid}"
        findings, impression = clean_report(report.findings), clean_report(report.impression)
        study_images = by_uid.get(uid, [])
        if not study_images and not findings and not impression:
            continue
        splits = {image.split for image in study_images if image.split is not None}
        if len(splits) > 1:
            raise DataError(f"study {uid}: its images are in splits {sorted(splits)}; correct the table")
        common = {
            "study": study,
            "subject": study,
            "split": splits.pop() if splits else split_of(study),
            "findings": findings,
            "impression": impression,
            "labels": labels_from_problems(report.problems),
            "qualified": qualified_terms(report.terms),
            "age": extra.ages.get(uid),
            "source": SOURCE,
            "licence": LICENCE,
        }
        if not study_images:
            yield make_row(f"study {uid}", **common)
        for image in study_images:
            aspect = extra.aspect(image.file)
            reading = {} if aspect in (None, 1) else {"reading": ReadOptions(pixel_aspect=aspect)}
            yield make_row(f"study {uid}", **common, **reading, view=image.view, file=place(image.file, root))


def _check_join(source: Path, images: Set[str], reports: Set[str]) -> None:
    """Refuse images and reports whose study ids have nothing in common: "1" in one table is "1.0" in the other."""
    if images and reports and not images & reports:
        raise DataError(
            f"{source}: no study id of the images is among those of the reports, {min(images)!r} for one against "
            f"{min(reports)!r}; write them alike in both tables"
        )
    if alone := images - reports:
        logger.warning("openi: %d of %d studies with images have no report", len(alone), len(images))


def _read_reports(path: Path) -> dict[str, _Report]:
    reports: dict[str, _Report] = {}
    for row in read_table(path, "uid", "Problems", "findings", "impression").rows:
        if row["uid"] in reports:
            raise DataError(f"{path}: duplicate study {row['uid']}")
        reports[row["uid"]] = _Report(
            row["Problems"].split(";"), row.get("MeSH", "").split(";"), row["findings"], row["impression"]
        )
    return reports


def _listed(source: Path, path: Path) -> list[_Image]:
    """Images listed in either kind of CSV, with columns (uid, view, file, split) or (uid, filename, projection)."""
    first_layout = path.name == "images.csv"
    file, view = ("file", "view") if first_layout else ("filename", "projection")
    files = ImageFiles(source)
    images: list[_Image] = []
    for row in read_table(path, "uid", file, view).rows:
        name = row[file]
        found = files.find(name) if name else None
        if found is None:
            raise DataError(f"{path}: image {name} of study {row['uid']} is not in {source}")
        if row[view].lower() not in ("frontal", "lateral"):
            raise DataError(f"{path}: image {name} has view {row[view]!r}; expected frontal or lateral")
        split = row.get("split") or None
        if split is not None and split_of_name(split) is None:
            raise DataError(f"{path}: image {name} is in split {split!r}; expected train, val or test")
        images.append(_Image(row["uid"], row[view].lower(), found, split_of_name(split or "")))
    return images


def _read_xml(source: Path) -> tuple[list[_Image], dict[str, _Report]]:
    """Images and reports of the original layout."""
    files = ImageFiles(source)
    # Views, if they are listed
    projections = source / "indiana_projections.csv"
    views: dict[str, str] = {}
    if projections.is_file():
        for row in read_table(projections, "uid", "filename", "projection").rows:
            stem = row["filename"].removesuffix(".png").removesuffix(".dcm")
            # "1_IM-0001-4001.dcm.png" there is "CXR1_1_IM-0001-4001.png" in the original
            views[f"CXR{row['uid']}_{stem}"] = row["projection"].lower()
    # One XML file per study
    images: list[_Image] = []
    reports: dict[str, _Report] = {}
    for path in sorted((source / "ecgen-radiology").glob("*.xml")):
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError) as error:
            raise DataError(f"{path}: not a readable report ({error})") from error
        uid_node = root.find(".//uId")
        uid = (uid_node.get("id") or "").removeprefix("CXR") if uid_node is not None else ""
        if not uid or uid in reports:
            raise DataError(f"{path}: {f'duplicate study {uid}' if uid else 'no uId element'}")
        texts = {node.get("Label", "").upper(): "".join(node.itertext()) for node in root.iter("AbstractText")}
        # MeSH terms are "Heading/qualifier/...": the heading is the problem, as in the CSV of reports
        terms = [node.text or "" for node in root.findall(".//MeSH/major")]
        problems = [term.split("/")[0] for term in terms]
        reports[uid] = _Report(problems, terms, texts.get("FINDINGS", ""), texts.get("IMPRESSION", ""))
        for node in root.iter("parentImage"):
            stem = node.get("id") or ""
            found = files.find(f"{stem}.png", any_ending=True)
            if found is None:
                raise DataError(f"{path}: image {stem} is not in {source}; unpack NLMCXR_png there")
            view = views.get(stem) or _view_from_caption(node.findtext("caption") or "")
            images.append(_Image(uid, view, found))
    return images, reports


def _view_from_caption(caption: str) -> str | None:
    """The view that a caption names; None if it names both or neither."""
    frontal, lateral = bool(_FRONTAL.search(caption)), bool(_LATERAL.search(caption))
    if frontal == lateral or _BOTH.search(caption):
        return None
    return "frontal" if frontal else "lateral"
