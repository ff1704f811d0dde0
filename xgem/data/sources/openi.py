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
* Reports without images become rows without a file; studies with neither text nor image are left out.
"""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from xgem.data.cleaning import clean_report
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, Row, place, split_of
from xgem.data.sources.rows import make_row, write_manifest
from xgem.data.tables import read_table, split_of_name
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


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of an Open-i folder to ``out``, with references to its images in place.

    Raises:
        DataError: the folder has none of the layouts above, or a column or a listed image is missing.
    """
    source = Path(source_dir)
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
    root = Path(out).resolve().parent
    _check_join(source, {image.uid for image in images}, reports.keys())
    rows = list(_rows(images, reports, root))
    if not rows:
        raise DataError(f"{source}: no images and no reports found")
    return write_manifest(rows, root, out)


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


def _rows(images: Sequence[_Image], reports: Mapping[str, _Report], root: Path) -> Iterable[Row]:
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
            "source": SOURCE,
            "licence": LICENCE,
        }
        if not study_images:
            yield make_row(f"study {uid}", **common)
        for image in study_images:
            yield make_row(f"study {uid}", **common, view=image.view, file=place(image.file, root))


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
