"""What is known of a study, as facts for a writer and a checker, and the structured description that it makes.

Nothing is invented: a finding is named as annotators named it, with a side only where a qualifier or a box has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from xgem.data.captions import caption_from_labels
from xgem.data.rows import Row
from xgem.data.wordings import wordings
from xgem.labels.qualified import QualifiedFinding
from xgem.labels.sides import BOTH, Side, boxed_sides
from xgem.labels.vocabulary import NORMAL_TERMS, annotated_labels, classes_of, is_affirmation, is_silent, plain

_SEXES: Final = {"F": "female", "M": "male"}


@dataclass(frozen=True)
class Facts:
    """Of one study. ``findings`` are sentences; ``known`` are CheXpert's classes, 1 present and 0 absent; ``terms`` are
    what annotators affirm; ``sides`` those of classes that have some."""

    views: tuple[str, ...]
    age: int | None
    sex: str | None
    race: str | None
    severity: float | None
    normal: bool
    findings: tuple[str, ...]
    terms: tuple[str, ...]
    known: dict[str, float]
    sides: dict[str, frozenset[Side]]
    words: frozenset[str]

    def record(self) -> dict[str, Any]:
        """As JSON for a writer; what is unknown is left out."""
        values = {
            "view": " and ".join(self.views),
            "age in years": self.age,
            "sex": None if self.sex is None else _SEXES[self.sex],
            "race": self.race,
            "findings": [text.rstrip(".") for text in self.findings],
            "no abnormality": self.normal or None,
            "Brixia score, 0 to 18": self.severity,
        }
        return {name: value for name, value in values.items() if value not in (None, "", [])}

    @property
    def says_something(self) -> bool:
        """Whether anything but the patient is known."""
        return self.normal or bool(self.findings) or self.severity is not None

    @property
    def patient(self) -> str:
        """``"Frontal chest radiograph of a 65-year-old female patient."``"""
        parts = [] if self.age is None else [f"{self.age}-year-old"]
        parts += [*([self.race] if self.race else []), *([_SEXES[self.sex]] if self.sex else [])]
        views = " and ".join(self.views)
        head = f"{views} chest radiograph{'s' if len(self.views) > 1 else ''}".strip()
        if parts:
            vowel = parts[0][0].lower() in "aeiou" or parts[0].startswith(("8", "11-", "18-"))
            article = "an" if vowel else "a"
            head += f" of {article} {' '.join(parts)} patient"
        return head[0].upper() + head[1:] + "."

    @property
    def summary(self) -> str:
        """The findings alone."""
        score = [] if self.severity is None else [f"Brixia score {self.severity:g}."]
        return " ".join([*self.findings, *score])


def facts_of(rows: Sequence[Row], views: Sequence[str | None]) -> Facts:
    """The facts of a study's rows, with the views that its images show."""
    row = rows[0]
    terms = tuple(label for label in row.labels if is_affirmation(label) and not is_silent(label))
    abnormal = tuple(term for term in terms if plain(term) not in NORMAL_TERMS)
    boxed = boxed_sides(row.boxes)
    qualified = row.qualified or tuple(_with_side(term, row) for term in abnormal)
    parsed = [QualifiedFinding.parse(term) for term in qualified]
    findings = tuple(dict.fromkeys(wordings(one)[0] for one in parsed))
    normal = bool(terms) and not abnormal and not findings
    if normal:
        findings = (caption_from_labels(terms),)
    sides: dict[str, frozenset[Side]] = dict(boxed)
    for one in parsed:
        if one.side is not None:
            named: frozenset[Side] = BOTH if one.side == "bilateral" else frozenset({one.side})  # pyright: ignore[reportAssignmentType]
            for name in classes_of(one.name):
                sides[name] = sides.get(name, frozenset()) | named
    return Facts(
        views=tuple(sorted({view for view in views if view})),
        age=None if row.age is None else int(row.age),
        sex=row.sex,
        race=row.race,
        severity=row.severity,
        normal=normal,
        findings=findings,
        terms=abnormal,
        known=annotated_labels(row.labels, row.source),
        sides=sides,
        words=frozenset(word.strip(".,") for text in findings for word in text.lower().split()),
    )


def _with_side(term: str, row: Row) -> str:
    """A term with the sides of its boxes, if it has any."""
    classes = {*classes_of(term)}
    boxes = [box for box in row.boxes if plain(box.label) == plain(term) or classes & {*classes_of(box.label)}]
    named = frozenset[Side]().union(*boxed_sides(boxes).values())
    return "/".join([term.replace("_", " ").replace("/", " "), *sorted(named)])
