"""A study: its images, its report, what is known of the patient, and its annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.annotation_files import read_masks
from xgem.data.annotations import Annotation
from xgem.data.headers import uneven_grid
from xgem.data.sections import join_sections
from xgem.data.transforms import SquashedFile, read_with
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.configs.components import TransformConfig
    from xgem.data.annotations import Box, Mask


ANNOTATED_VIEW: Final = "frontal"
"""The view that a manifest's masks, boxes and scores are of."""


@dataclass(frozen=True)
class Study:
    """One imaging study: its images by view, its report, and what is known of the patient.

    ``images`` maps a view (the name of an image modality) to the files of that view; a view that
    the study lacks is absent. ``findings`` and ``impression`` are cleaned text, empty when missing.
    ``age`` is in years, ``sex`` is ``"F"``, ``"M"`` or ``None``; ``severity`` is a Brixia score, 0 to 18.
    ``masks`` maps a structure to the files that outline it, several of which are united; ``boxes`` hold findings. Both
    are of the first image of :data:`ANNOTATED_VIEW`. ``reading``: how its images are read. ``qualified``: findings with
    side, place and size, in the form of :mod:`xgem.labels.qualified`. ``aspects``: height of a pixel divided by its
    width, of images whose files lost it.
    """

    id: str
    subject: str
    split: str
    images: Mapping[str, tuple[Path, ...]] = field(default_factory=dict[str, tuple[Path, ...]])
    findings: str = ""
    impression: str = ""
    labels: tuple[str, ...] = ()
    age: float | None = None
    sex: str | None = None
    race: str | None = None
    severity: float | None = None
    masks: Mapping[str, tuple[Path, ...]] = field(default_factory=dict[str, tuple[Path, ...]])
    boxes: tuple[Box, ...] = ()
    source: str = ""
    licence: str = ""
    reading: ReadOptions = AS_STATED
    qualified: tuple[str, ...] = ()
    aspects: Mapping[Path, float] = field(default_factory=dict[Path, float])

    def reading_of(self, file: Path) -> ReadOptions:
        """How one of its images is read: ``reading``, and its pixels' aspect where that is known."""
        aspect = self.aspects.get(file)
        return self.reading if aspect is None else self.reading.model_copy(update={"pixel_aspect": aspect})

    def source_of(self, file: Path) -> Path | SquashedFile:
        """One of its images as a prompt: its path, which tells the pixels' aspect where that is known."""
        aspect = self.aspects.get(file)
        return file if aspect is None else SquashedFile(str(file), aspect)

    @property
    def annotated(self) -> bool:
        """Whether it has masks, boxes or a severity score."""
        return bool(self.masks or self.boxes) or self.severity is not None


def report_of(study: Study, sections: Sequence[str]) -> str:
    """The report that a generator learns to write; empty where the named sections are missing.

    One section stands for itself, both have their headings (:func:`xgem.data.sections.join_sections`).
    """
    findings, impression = (
        getattr(study, name).strip() if name in sections else "" for name in ("findings", "impression")
    )
    return join_sections(findings, impression) if len(sections) > 1 else findings or impression


def read_study(study: Study, config: TransformConfig) -> Annotation:
    """The annotation of the study's first image of the annotated view, on the grid that ``config`` makes; maybe empty.

    Raises:
        InputError: a mask cannot be read, is empty, or another size than the others.
    """
    masks = _read_masks(study)
    size = None
    if study.boxes and not masks:
        first = study.images[ANNOTATED_VIEW][0]
        height, width = read_with(first, config, study.reading_of(first)).pixels.shape
        size = (height, width)
    files = study.images.get(ANNOTATED_VIEW, ())
    grid = uneven_grid(files[0]) if files and (study.masks or study.boxes) else None
    aspect = grid.aspect if grid else study.aspects.get(files[0], 1.0) if files else 1.0
    return Annotation(masks, study.boxes, study.severity, size, aspect=aspect).squared(config)


def _read_masks(study: Study) -> dict[str, Mask]:
    """Masks by structure, those of several files united; one of both lungs ("lungs") as the left and the right one."""
    parts: dict[str, list[tuple[Path, Mask]]] = {}
    for structure, files in study.masks.items():
        for file in files:
            for name, mask in read_masks({structure: file}, (structure,)).masks.items():
                parts.setdefault(name, []).append((file, mask))
    return {name: _united(name, found) for name, found in parts.items()}


def _united(structure: str, found: Sequence[tuple[Path, Mask]]) -> Mask:
    masks = [mask for _, mask in found]
    if len({mask.shape for mask in masks}) != 1:
        shapes = [mask.shape for mask in masks]
        raise InputError(f"{found[0][0]}: masks of {structure!r} are of {shapes}, not of one size")
    return np.logical_or.reduce(masks)
