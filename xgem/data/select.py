"""Parts of a manifest: split by patient, sampled, filtered, and counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgem.data.manifest import Manifest, split_of
from xgem.data.rows import SPLITS, Row
from xgem.data.study import Study
from xgem.labels.views import VIEWS
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels, plain
from xgem.types import InputError


def split(manifest: Manifest, *, val: float = 0.1, test: float = 0.1, salt: str = "xgem") -> Manifest:
    """The same rows, split anew by subject: shares of the subjects' hashes (:func:`xgem.data.manifest.split_of`).

    Raises:
        InputError: shares that are none, or that leave nothing to train.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise InputError(f"shares val {val:g} and test {test:g}: expected 0 or more, and less than 1 together")
    return _resplit(
        manifest, {row.subject: split_of(row.subject, val=val, test=test, salt=salt) for row in manifest.rows}
    )


def split_by_lists(manifest: Manifest, lists: Mapping[str, Collection[str]], rest: str | None = None) -> Manifest:
    """The same rows, split by lists of subjects or studies; ``rest`` is the split of those in no list.

    A study's split is its subject's: where one study of a subject is listed, all of them are in that split.

    Raises:
        InputError: a name that is no subject and no study, a subject in two lists, or one in none without ``rest``.
    """
    of_study = {row.study: row.subject for row in manifest.rows}
    subjects = set(of_study.values())
    placed: dict[str, str] = {}
    for name, listed in lists.items():
        for entry in listed:
            subject = entry if entry in subjects else of_study.get(entry)
            if subject is None:
                raise InputError(f"list {name}: {entry!r} is no subject and no study of the manifest; correct it")
            if placed.setdefault(subject, name) != name:
                raise InputError(f"subject {subject!r} is in lists {placed[subject]} and {name}; keep it in one")
    alone = subjects - placed.keys()
    if alone and rest is None:
        raise InputError(
            f"{len(alone)} subjects are in no list, {min(alone)!r} for one; list them or give the rest a split"
        )
    return _resplit(manifest, placed | dict.fromkeys(alone, rest or ""))


def _resplit(manifest: Manifest, splits: Mapping[str, str]) -> Manifest:
    rows = tuple(row.model_copy(update={"split": splits[row.subject]}) for row in manifest.rows)
    return Manifest(rows, manifest.root)


def sample(manifest: Manifest, count: int, *, seed: int = 0) -> Manifest:
    """``count`` studies drawn at random, with all of their rows, in the order of the manifest.

    Raises:
        InputError: it has fewer studies, or none is wanted.
    """
    names = sorted({row.study for row in manifest.rows})
    if not 0 < count <= len(names):
        raise InputError(f"a sample of {count} studies: expected 1 to {len(names)}, what the manifest has")
    drawn = set(random.Random(seed).sample(names, count))
    return Manifest(tuple(row for row in manifest.rows if row.study in drawn), manifest.root)


@dataclass(frozen=True)
class Criteria:
    """What rows must meet, all of it; None and empty ask for nothing.

    ``labels`` are CheXpert's classes that must be present, ``without`` those that must be absent: neither is met by a
    class that is unknown. ``ages`` is the first and the last year; an unknown age or sex does not meet one asked for.
    ``report`` and ``annotated`` ask for a report (findings or impression) and for masks, boxes or a severity score, or,
    False, for none.
    """

    views: Sequence[str] = ()
    labels: Sequence[str] = ()
    without: Sequence[str] = ()
    sexes: Sequence[str] = ()
    ages: tuple[float, float] | None = None
    splits: Sequence[str] = ()
    sources: Sequence[str] = ()
    report: bool | None = None
    annotated: bool | None = None

    def __post_init__(self) -> None:
        known = {
            "view": (self.views, tuple(VIEWS)),
            "class": ((*self.labels, *self.without), CHEXPERT_CLASSES),
            "sex": (self.sexes, ("F", "M")),
            "split": (self.splits, SPLITS),
        }
        for what, (asked, allowed) in known.items():
            stranger = next((one for one in asked if plain(one) not in map(plain, allowed)), None)
            if stranger is not None:
                raise InputError(f"{what} {stranger!r}: expected one of {', '.join(allowed)}")
        if self.ages is not None and not 0 <= self.ages[0] <= self.ages[1]:
            raise InputError(f"ages {self.ages[0]:g} to {self.ages[1]:g}: expected a range such as 18 to 40")

    def met_by(self, row: Row) -> bool:
        """Whether a row meets them."""
        labels = {plain(name): value for name, value in annotated_labels(row.labels, row.source).items()}
        return (
            (not self.views or (row.view or "") in self.views)
            and (not self.splits or row.split in self.splits)
            and (not self.sources or row.source in self.sources)
            and (not self.sexes or row.sex in {sex.upper() for sex in self.sexes})
            and (self.ages is None or (row.age is not None and self.ages[0] <= row.age <= self.ages[1]))
            and (self.report is None or bool(row.findings or row.impression) == self.report)
            and (self.annotated is None or self.annotated == bool(row.masks or row.boxes or row.severity is not None))
            and all(labels.get(plain(name)) == 1 for name in self.labels)
            and all(labels.get(plain(name)) == 0 for name in self.without)
        )


def filtered(manifest: Manifest, criteria: Criteria) -> Manifest:
    """The rows that meet the criteria.

    Raises:
        InputError: none does.
    """
    rows = tuple(row for row in manifest.rows if criteria.met_by(row))
    if not rows:
        raise InputError(f"none of the {len(manifest.rows)} rows meets all of it; ask for less")
    return Manifest(rows, manifest.root)


def counts(studies: Sequence[Study]) -> dict[str, Any]:
    """Studies by split and sex, and the ages by split: ``{"sexes": {"train/F": 3}, "ages": {"train": "19 to 88"}}``."""
    sexes = Counter((study.split, study.sex or "unknown") for study in studies)
    by_split = {name: [study for study in studies if study.split == name] for name in SPLITS}
    return {
        "sexes": {f"{name}/{sex}": count for (name, sex), count in sorted(sexes.items())},
        "ages": {name: _ages(members) for name, members in by_split.items() if members},
    }


def _ages(studies: Sequence[Study]) -> str:
    known = [study.age for study in studies if study.age is not None]
    unknown = f", unknown {len(studies) - len(known)}" if len(known) < len(studies) else ""
    return (f"{min(known):g} to {max(known):g}" if known else "none known") + unknown


def names_in(path: Path) -> list[str]:
    """The names in a text file, one a line; empty lines and those that start with ``#`` are left out.

    Raises:
        InputError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of names ({error})") from None
    return [name for line in lines if (name := line.strip()) and not name.startswith("#")]
