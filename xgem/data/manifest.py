"""The manifest: one row an image, the only form in which xgem takes a data set.

A manifest is a ``.parquet`` or ``.jsonl`` file. It refers to images where they are and copies none. Every
subject belongs to one split; a subject in two is an error, because it would leak into the measures.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgem.configs.reading import ReadOptions
from xgem.data.manifest_files import records, writer
from xgem.data.rows import SPLITS, STUDY_FIELDS, Row, Split, checked_row
from xgem.data.study import Study
from xgem.labels.spatial import STRUCTURES, in_order
from xgem.types import ManifestError, OutputError

ImageFiles = Sequence[tuple[str, ReadOptions]]
"""Absolute names of image files, and how each is read."""


def split_of(subject: str, *, val: float = 0.1, test: float = 0.1, salt: str = "xgem") -> Split:
    """Split of a subject where the source has none: fixed shares of the subjects' hashes, on every machine alike."""
    share = int.from_bytes(hashlib.sha256(f"{salt}:{subject}".encode()).digest()[:8], "big") / 2**64
    return "test" if share < test else "val" if share < test + val else "train"


@dataclass(frozen=True)
class Manifest:
    """The rows of a data set and the folder that their relative files start from."""

    rows: tuple[Row, ...]
    root: Path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a ``.parquet`` or ``.jsonl`` manifest. The schema is checked row by row.

        Raises:
            ManifestError: the file is missing, empty, of another kind, or a row breaks the schema (named by number).
        """
        path = Path(path)
        rows = [checked_row(record, f"{path}: row {number}") for number, record in enumerate(records(path), start=1)]
        if not rows:
            raise ManifestError(f"{path}: the manifest has no rows; expected one row an image")
        return cls(tuple(rows), path.resolve().parent)

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write as ``.parquet`` or ``.jsonl``, by the ending; in one piece, never half of it.

        Relative files are kept when ``path`` lies in the manifest's root and made absolute otherwise.

        Raises:
            ManifestError: the ending is neither.
            OutputError: the place cannot be written, or the file exists and ``overwrite`` is false.
        """
        path = Path(path)
        write = writer(path)
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; choose another name or pass --overwrite")
        rows = self._seen_from(path.resolve().parent)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(rows, partial)
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
        finally:
            if partial.exists():
                partial.unlink()

    def file(self, row: Row) -> Path | None:
        """Absolute path of a row's image, None for a report without one."""
        return None if row.file is None else Path(name_in(self.root, row.file))

    def masks(self, row: Row) -> dict[str, tuple[Path, ...]]:
        """Absolute paths of a row's masks by structure."""
        return {
            structure: tuple(_absolute(self.root / file) for file in files) for structure, files in row.masks.items()
        }

    def _seen_from(self, root: Path) -> list[Row]:
        """The rows as a manifest in ``root`` writes them: as they are in this one's root, absolute files elsewhere."""
        if root.resolve() == self.root.resolve():
            return list(self.rows)
        return [
            row.model_copy(
                update={
                    "file": None if (file := self.file(row)) is None else str(file),
                    "masks": {name: tuple(map(str, files)) for name, files in self.masks(row).items()},
                }
            )
            for row in self.rows
        ]

    def read_as(self, reading: ReadOptions) -> Manifest:
        """The same rows, whose images are read with ``reading``, as far as it says, by all that read the manifest."""
        rows = (row.model_copy(update={"reading": reading.over(row.reading)}) for row in self.rows)
        return Manifest(tuple(rows), self.root)

    def studies(self, split: str | None = None) -> list[Study]:
        """The studies of a split (all of them by default), sorted by id; images in the order of the rows.

        Raises:
            ManifestError: the split is unknown, or a study's rows contradict each other.
        """
        if split is not None and split not in SPLITS:
            raise ManifestError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if split is None or row.split == split:
                groups.setdefault(row.study, []).append(row)
        return [self._study(groups[study]) for study in sorted(groups)]

    def image_files(self, split: str) -> Iterator[ImageFiles]:
        """The images with a known view of each of :meth:`studies`, view by view; of some studies none."""
        for study in self.studies(split):
            yield [(str(file), study.reading_of(file)) for files in study.images.values() for file in files]

    def _study(self, rows: Sequence[Row]) -> Study:
        first = rows[0]
        for row in rows[1:]:
            for name in STUDY_FIELDS:
                if row.of_study(name) != first.of_study(name):
                    raise ManifestError(f"study {first.study!r}: two rows differ in {name}; make them equal")
        images: dict[str, list[Path]] = {}
        aspects: dict[Path, float] = {}
        for row in rows:
            path = self.file(row)
            if row.view is not None and path is not None:
                images.setdefault(row.view, []).append(path)
                if row.reading.pixel_aspect is not None:
                    aspects[path] = row.reading.pixel_aspect
        return Study(
            id=first.study,
            subject=first.subject,
            split=first.split,
            images={view: tuple(images[view]) for view in sorted(images)},
            findings=first.findings,
            impression=first.impression,
            labels=first.labels,
            age=first.age,
            sex=first.sex,
            race=first.race,
            severity=first.severity,
            masks=self.masks(first),
            boxes=first.boxes,
            source=first.source,
            licence=first.licence,
            reading=first.reading.of_study,
            qualified=first.qualified,
            aspects=aspects,
        )

    def check(self, files: bool = True) -> None:
        """Check what no single row shows: duplicates, contradictions, leaks between splits, missing files.

        Args:
            files: also look for every image and mask on the disk.

        Raises:
            ManifestError: names the first row (counted from 1) that breaks a rule.
        """
        splits: dict[str, tuple[str, int]] = {}
        studies: dict[str, tuple[Row, int]] = {}
        seen: dict[tuple[str, str | None], int] = {}
        owners: dict[str, tuple[str, int]] = {}
        for number, row in enumerate(self.rows, start=1):
            split, where = splits.setdefault(row.subject, (row.split, number))
            if split != row.split:
                raise ManifestError(
                    f"row {number}: subject {row.subject!r} is in split {row.split!r} but in {split!r} at row {where}; "
                    "split by subject"
                )
            first, where = studies.setdefault(row.study, (row, number))
            for name in STUDY_FIELDS if first is not row else ():
                if first.of_study(name) != row.of_study(name):
                    raise ManifestError(
                        f"row {number}: study {row.study!r} differs in {name} from row {where}; "
                        "a study has one subject, one split and one report"
                    )
            path = None if row.file is None else name_in(self.root, row.file)
            if (where := seen.setdefault((row.study, path), number)) != number:
                what = row.file or "its report without an image"
                raise ManifestError(f"row {number}: study {row.study!r} holds {what} twice, first at row {where}")
            if path is None:
                continue
            study, where = owners.setdefault(path, (row.study, number))
            if study != row.study:
                raise ManifestError(f"row {number}: {row.file} belongs to study {study!r} already, at row {where}")
            for needed in (Path(path), *itertools.chain(*self.masks(row).values())) if files else ():
                if not needed.is_file():
                    raise ManifestError(
                        f"row {number}: study {row.study!r}: no such file {needed}; correct it or drop the row"
                    )

    def summary(self, studies: Sequence[Study] | None = None) -> dict[str, Any]:
        """Counts for people: rows, studies, subjects, images by split and view, reports; annotations if any.

        ``studies``: those of :meth:`studies`, where they are at hand.
        """
        studies = self.studies() if studies is None else studies
        masks = Counter(name for study in studies for name, files in study.masks.items() for _ in files)
        annotations = {
            "masks": {name: masks[name] for name in in_order(masks, STRUCTURES)},
            "boxes": dict(sorted(Counter(box.label for study in studies for box in study.boxes).items())),
            "severity": sum(study.severity is not None for study in studies),
        }
        guessed = sum(row.view_guessed for row in self.rows)
        return {
            "rows": len(self.rows),
            "studies": len(studies),
            "subjects": len({study.subject for study in studies}),
            "splits": dict(sorted(Counter(study.split for study in studies).items())),
            "images": {
                f"{split}/{view}": count
                for (split, view), count in sorted(
                    Counter((row.split, row.view or "unknown view") for row in self.rows if row.file).items()
                )
            },
            "impressions": sum(bool(study.impression) for study in studies),
            "findings": sum(bool(study.findings) for study in studies),
            **{name: count for name, count in annotations.items() if count},
            **({"guessed views": guessed} if guessed else {}),
        }


def merge(manifests: Sequence[Manifest], root: str | os.PathLike[str], *, keep_first: bool = False) -> Manifest:
    """One manifest of several, to be written in ``root``; files are absolute where a manifest comes from elsewhere.

    ``keep_first`` takes a study that is in several from the first of them.

    Raises:
        ManifestError: a study or an image is in two of them, or a subject is in two splits; names it and the
            manifests, counted from 1.
    """
    root = Path(root).resolve()
    studies: dict[str, int] = {}
    images: dict[Path, int] = {}
    splits: dict[str, tuple[str, int]] = {}
    rows: list[Row] = []
    for number, manifest in enumerate(manifests, start=1):
        if keep_first:
            manifest = Manifest(tuple(row for row in manifest.rows if row.study not in studies), manifest.root)
        for row in manifest.rows:
            if (other := studies.setdefault(row.study, number)) != number:
                raise ManifestError(f"study {row.study!r} is in manifests {other} and {number}; drop it from one")
            path = manifest.file(row)
            if path is not None and (other := images.setdefault(path, number)) != number:
                raise ManifestError(f"{path} is in manifests {other} and {number}; drop it from one")
            split, other = splits.setdefault(row.subject, (row.split, number))
            if split != row.split:
                raise ManifestError(
                    f"subject {row.subject!r} is in split {split!r} of manifest {other} and in {row.split!r} of "
                    f"manifest {number}; split by subject"
                )
        rows += manifest._seen_from(root)
    return Manifest(tuple(rows), root)


def place(file: Path, root: Path) -> str:
    """How a manifest in ``root`` names ``file``: relative where it lies below, absolute otherwise."""
    file, root = _absolute(file), _absolute(root)
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def name_in(root: Path, file: str) -> str:
    """The absolute name of a row's file in a manifest in ``root``: as text, since a million paths take long."""
    return os.path.abspath(os.path.join(root, file))  # noqa: PTH100, PTH118 -- not resolved, as in _absolute


def _absolute(path: Path) -> Path:
    # Not Path.resolve: an image that is a symbolic link keeps the name that the manifest gives it.
    return Path(os.path.abspath(path))  # noqa: PTH100
