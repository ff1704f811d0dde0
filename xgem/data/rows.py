"""The manifest's schema: what one row holds, checked value by value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.annotations import MAX_SEVERITY, Box
from xgem.labels.spatial import plain_name
from xgem.labels.views import VIEWS
from xgem.types import ManifestError

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
ANNOTATIONS = ("race", "severity", "masks", "boxes")
LATER = ("reading", "view_guessed")
"""Fields of version 3, of which only those are written that say something."""
LATEST = ("qualified",)
"""Fields of version 4, of which only those are written that say something."""
# What all rows of one study must agree on, because it belongs to the study and not to the image.
STUDY_FIELDS = (
    *("subject", "split", "findings", "impression", "labels", "age", "sex"),
    *ANNOTATIONS,
    *("source", "licence", "reading", "qualified"),
)
# How far a box may reach out of its image, as a share: one pixel of 1024, or rounding to three places.
_TOLERANCE = 1e-3


class Row(BaseModel):
    """One image of a study, or the report of a study without images (``view`` and ``file`` None).

    ``file`` is absolute, or relative to the manifest's folder. ``view`` is one of :data:`xgem.labels.views.VIEWS`, or
    None with a file where the source does not tell; such an image is kept in the manifest and used by nothing.
    ``findings`` and ``impression`` are cleaned text, empty when missing; an absent impression is never filled from the
    findings. ``labels`` carry the source's own names; ``source`` says whose they are, and so what is absent where they
    do not name it (:data:`xgem.labels.vocabulary.SOURCES`; ``chexpert`` where they list every finding by CheXpert's
    names). ``age`` is in years, ``sex`` is ``"F"`` or ``"M"``; None is unknown. ``qualified`` are findings with side,
    place and size, ``"Pleural Effusion/left/small"`` (:mod:`xgem.labels.qualified`), where annotators give them.

    Annotations belong to the study and are of its frontal. ``masks`` maps a structure to PNG files, named as ``file``
    is, that outline it; several are united. ``boxes`` hold findings; ``severity`` is a Brixia score, or another on its
    scale. Structures and classes are any names in lower case words: which of them a model knows is said in its preset.
    Empty and None are unknown, not absent.

    ``reading`` says how the study's images are read, where their files or headers do not tell: every command that reads
    a manifest does so. Its ``pixel_aspect`` is of the row's own image. ``view_guessed``: the view was told from the
    pixels, not by the source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    subject: str
    split: Split
    view: str | None = None
    file: str | None = None
    findings: str = ""
    impression: str = ""
    labels: tuple[str, ...] = ()
    age: float | None = None
    sex: Literal["F", "M"] | None = None
    race: str | None = None
    severity: float | None = None
    masks: dict[str, tuple[str, ...]] = {}
    boxes: tuple[Box, ...] = ()
    source: str = ""
    licence: str = ""
    reading: ReadOptions = AS_STATED
    view_guessed: bool = False
    qualified: tuple[str, ...] = ()

    def of_study(self, name: str) -> object:
        """The part of field ``name`` in which the rows of a study must agree."""
        return self.reading.of_study if name == "reading" else getattr(self, name)

    @field_validator("study", "subject")
    @classmethod
    def _is_named(cls, value: str) -> str:
        if not value.strip() or value != value.strip():
            raise ValueError("must be a name without surrounding blanks")
        return value

    @field_validator("view")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in VIEWS:
            raise ValueError(f"expected {', '.join(VIEWS)} or null, where the view is unknown")
        return value

    @field_validator("file")
    @classmethod
    def _is_path(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must be a path or null, not empty")
        return value

    @field_validator("labels")
    @classmethod
    def _are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not label.strip() for label in value):
            raise ValueError("must not hold empty names")
        return value

    @field_validator("qualified")
    @classmethod
    def _have_headings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not term.split("/")[0].strip() for term in value):
            raise ValueError("must be findings with their qualifiers, like 'Pleural Effusion/left/small'")
        return value

    @field_validator("age")
    @classmethod
    def _is_age(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and 0 <= value <= 120):
            raise ValueError("must be between 0 and 120 years or null")
        return value

    @field_validator("race")
    @classmethod
    def _is_race(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must be a name or null, not empty")
        return value

    @field_validator("severity")
    @classmethod
    def _is_score(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value <= MAX_SEVERITY:
            raise ValueError(f"must be between 0 and {MAX_SEVERITY:g} or null")
        return value

    @field_validator("masks")
    @classmethod
    def _outline(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for structure, files in value.items():
            if not structure or structure != plain_name(structure):
                raise ValueError(f"structure {structure!r}: expected a name in lower case words, like 'left lung'")
            if not files or any(not file.strip() for file in files):
                raise ValueError(f"{structure}: must be paths; leave out a structure without masks")
        return value

    @field_validator("boxes")
    @classmethod
    def _lie_inside(cls, value: tuple[Box, ...]) -> tuple[Box, ...]:
        for box in value:
            for start, length in ((box.x, box.w), (box.y, box.h)):
                # Written so that NaN fails.
                if not (length > 0 and start >= -_TOLERANCE and start + length <= 1 + _TOLERANCE):
                    raise ValueError(
                        "a box must have a size and lie inside the image; x, y, w, h are shares of width and height"
                    )
        return value

    @model_validator(mode="after")
    def _has_file(self) -> Row:
        if self.view is not None and self.file is None:
            raise ValueError("a row with a view needs a file")
        if self.view_guessed and self.view is None:
            raise ValueError("view_guessed without a view")
        if (self.masks or self.boxes) and self.file is None:
            raise ValueError("a row with masks or boxes needs the file that they are of")
        return self


def one_line(error: ValidationError) -> str:
    """The first thing that is wrong with a row."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "row"
    return f"{where}: {first['msg']} (got {first['input']!r:.80})"


def checked_row(record: Mapping[str, Any], where: str) -> Row:
    """A row of what a manifest's file holds; ManifestError says ``where`` it breaks the schema."""
    try:
        return Row.model_validate(record)
    except ValidationError as error:
        raise ManifestError(f"{where}: {one_line(error)}") from error
