"""The plan of a cohort: the fields of ``plan.yaml``, checked before anything is generated.

::

    name: effusions                     # prefix of every study's id
    outputs: [frontal, lateral]
    split: train
    seed: 7
    balanced:                           # every finding with every sex, age, race, severity and view
      findings: [No Finding, Pleural Effusion, [Cardiomegaly, Edema]]
      sexes: [F, M]                     # these three where the model takes demographics
      ages: [[19, 40], [41, 65]]
      races: [Asian, White]
      views: [frontal, [frontal, lateral]]
      count: 50                         # studies per cell
    # or, instead of `balanced`:
    matched:                            # the studies of a manifest's split, with their prompts and labels
      manifest: data/manifest.parquet
      split: test
      inputs: [report]                  # or images, annotations, demographics
      count: 2                          # studies for each of them
      findings: [Pleural Effusion]      # of those alone that show one of these, and of these sexes and ages
      sexes: [F]
      ages: [[41, 65]]
      limit: 100                        # and of them no more than these, drawn by the seed
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from xgem.configs.base import first_wrong
from xgem.configs.yaml_text import read_yaml
from xgem.data.captions import NORMAL_CAPTION
from xgem.data.demographics import MAX_AGE
from xgem.data.rows import Split
from xgem.labels.views import VIEWS
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING
from xgem.modalities import MODALITIES
from xgem.pipeline.limits import MAX_SEED
from xgem.pipeline.options import RENAMED, SamplingOptions, renamed
from xgem.types import InputError

logger = logging.getLogger(__name__)


_FIRST_OPTIONS = {
    "num_inference_steps",
    "guidance_scale",
    "sampler",
    "joint",
    "controlnet_conditioning_scale",
    "control_guidance_end",
    "greedy",
    "batch_size",
}
"""Options of plans in 0.1.0. This set stays as it is: a plan's hash is made with it."""


_FILTERS = ("findings", "sexes", "ages")
"""What chooses among the studies of a matched plan; as 0.1.0 had none of it, the hash counts it where it is given."""


_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _range(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value, value]


def _one_of(name: str, known: Iterable[str]) -> str:
    names = list(known)
    if name not in names:
        raise ValueError(f"unknown {name!r}: expected one of {', '.join(names)}")
    return name


def _in_one_order(views: tuple[str, ...]) -> tuple[str, ...]:
    _once("views", views)
    return tuple(sorted(views))


Ages = Annotated[tuple[int, int], BeforeValidator(_range)]
"""Whole years from, to; both may be drawn."""


Input = Annotated[str, AfterValidator(lambda name: _one_of(name, MODALITIES))]


Output = Annotated[
    str,
    AfterValidator(lambda name: _one_of(name, (other for other, made in MODALITIES.items() if made.is_output))),
]


View = Annotated[str, AfterValidator(lambda name: _one_of(name, VIEWS))]


Views = Annotated[tuple[View, ...], BeforeValidator(_listed), AfterValidator(_in_one_order), Field(min_length=1)]


class Finding(_Part):
    """A finding, or several at once: ``Edema``; ``[Edema, Cardiomegaly]``; or a mapping with its own prompts.

    ``labels`` are CheXpert's classes, empty where the prompts describe something else. The ``texts`` are used in turn.
    """

    name: str = Field(min_length=1)
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return {"name": " + ".join(map(str, value)), "labels": value}
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        known = {name.lower(): name for name in CHEXPERT_CLASSES}
        labels: list[str] = []
        for label in _listed(value):
            name = known.get(str(label).strip().lower())
            if name is None:
                raise ValueError(
                    f"unknown finding {label!r}; expected one of {', '.join(CHEXPERT_CLASSES)}, or a mapping with a "
                    "name and texts"
                )
            labels.append(name)
        if len(set(labels)) < len(labels):
            raise ValueError(f"duplicate finding {_twice(labels)!r}")
        if NO_FINDING in labels and set(labels) - {NO_FINDING, "Support Devices"}:
            raise ValueError(f"{NO_FINDING!r} can be combined with 'Support Devices' only")
        return tuple(labels)

    @model_validator(mode="after")
    def _says_something(self) -> Finding:
        if not self.labels and not self.texts:
            raise ValueError("needs labels or texts")
        if any(not any(map(str.isalnum, text)) for text in self.texts):
            raise ValueError("a text is empty")
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts for it."""
        return self.texts or sentences(self.labels)


def _in_order(value: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    for low, high in value:
        if not 0 <= low <= high <= MAX_AGE:
            raise ValueError(f"ages {low} to {high}: expected whole years, rising, from 0 to {MAX_AGE:g}")
    return value


AgeGroups = Annotated[tuple[Ages, ...], AfterValidator(_in_order)]


class Balanced(_Part):
    """Every combination of the axes is a cell of ``count`` studies; an empty axis is left out of the prompts.

    ``views`` are the images of a study; by default all views among the outputs. ``severities`` are Brixia scores.
    """

    findings: tuple[Finding, ...] = ()
    sexes: tuple[Literal["F", "M"], ...] = ()
    ages: AgeGroups = ()
    races: tuple[str, ...] = ()
    severities: tuple[float, ...] = ()
    views: tuple[Views, ...] = ()
    count: int = Field(ge=1)

    @model_validator(mode="after")
    def _each_once(self) -> Balanced:
        for axis in ("sexes", "ages", "races", "severities", "views"):
            _once(axis, getattr(self, axis))
        _once("findings", [finding.name for finding in self.findings])
        return self


class Matched(_Part):
    """``count`` studies for each study of a manifest's split, from its own ``inputs``.

    Labels are the study's. So are sex, age and race if demographics are an input, or an image, which shows the same
    patient. A study without one of the inputs is left out and counted; demographics are given as far as they are known,
    and count as an input that a study lacks where they are the only one and nothing is known.
    ``sections`` are the report's as input; ``limit`` is the maximum number of studies, drawn by the seed.

    ``findings``, ``sexes`` and ``ages`` choose studies that show one of the findings (all of its classes), and are of
    one of the sexes and ages; what is unknown of a study is none of them. The others are left out and counted.
    """

    manifest: str = Field(min_length=1)
    split: Split
    inputs: tuple[Input, ...] = ("report",)
    sections: tuple[Literal["findings", "impression"], ...] = Field(default=("impression",), min_length=1)
    count: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    findings: tuple[Finding, ...] = ()
    sexes: tuple[Literal["F", "M"], ...] = ()
    ages: AgeGroups = ()

    @model_validator(mode="after")
    def _each_once(self) -> Matched:
        for axis in ("inputs", "sexes", "ages"):
            _once(axis, getattr(self, axis))
        _once("findings", [finding.name for finding in self.findings])
        if any(not finding.labels or finding.texts for finding in self.findings):
            raise ValueError("findings: expected classes of the studies' labels alone, as texts choose no study")
        if not self.inputs:
            raise ValueError("inputs: expected at least one; studies from nothing are a balanced plan without axes")
        return self


class Plan(SamplingOptions):
    """A whole plan. Model, sampling and outputs are as in ``xgem generate``; paths start from the working folder.

    Batches of ``batch_size`` items depend on the items' numbers alone, so the batch size is part of the result.
    If a report is both input and output, it is generated from the generated images.
    """

    name: str = Field(pattern=_NAME)
    model: str | None = None
    revision: str | None = None
    outputs: tuple[Output, ...] = Field(min_length=1)
    split: Split = "train"
    licence: str = ""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    balanced: Balanced | None = None
    matched: Matched | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, values: Any) -> Any:
        """Options by their old names are accepted, with a warning."""
        return renamed(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _agrees(self) -> Plan:
        _once("outputs", self.outputs)
        if (self.balanced is None) == (self.matched is None):
            raise ValueError("expected one of balanced and matched")
        if isinstance(self.guidance_scale, dict) and (strange := set(self.guidance_scale) - set(self.outputs)):
            raise ValueError(f"guidance_scale names {sorted(strange)[0]!r}, which is not among the outputs")
        if self.balanced is not None and self.balanced.views:
            wanted = {view for views in self.balanced.views for view in views}
            if wanted != set(self.outputs) & VIEWS.keys():
                raise ValueError(f"views are {_names(wanted)}, outputs {_names(self.outputs)}: expected the same views")
        return self

    @property
    def count(self) -> int:
        """Studies per cell, or per matched study."""
        part = self.balanced or self.matched
        assert part is not None
        return part.count

    def sha256(self, manifest: str | None) -> str:
        """Hash of what decides an item, except the count and the checkpoint; ``manifest`` is its file's SHA-256."""
        values = self.model_dump(mode="json", exclude={"model", "revision"})
        # A cohort that was started by an earlier version stays the same: options have the names that they had then, and
        # those that came later count only where they are given.
        values |= {old: values.pop(new) for old, new in RENAMED.items() if new in values}
        for name in SamplingOptions.model_fields.keys() - _FIRST_OPTIONS:
            if values[name] == SamplingOptions.model_fields[name].default:
                del values[name]
        for part in ("balanced", "matched"):
            (values[part] or {}).pop("count", None)
            (values[part] or {}).pop("manifest", None)
        if self.matched is not None:
            for name in _FILTERS:
                if not getattr(self.matched, name):
                    del values["matched"][name]
        text = json.dumps({**values, "manifest": manifest}, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_plan(path: str | Path) -> Plan:
    """A plan from a YAML file.

    Raises:
        InputError: unreadable, not YAML, or a field that is unknown, missing or not valid; names it.
    """
    values = read_yaml(path)
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {first_wrong(error, Plan)}") from None
    for old in sorted(RENAMED.keys() & values):
        logger.warning("%s: %s is deprecated, use %s", path, old, RENAMED[old])
    return plan


def _once(what: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{what}: duplicate {_twice(values)!r}")


def _twice(values: Sequence[Any]) -> Any:
    return next(value for k, value in enumerate(values) if value in values[:k])


def _names(values: Any) -> str:
    return ", ".join(sorted(values)) or "none"


SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    NO_FINDING: (NORMAL_CAPTION, "Normal chest radiograph.", "No acute abnormality is seen."),
    "Enlarged Cardiomediastinum": ("The mediastinum is widened.", "Widening of the mediastinum."),
    "Cardiomegaly": ("Cardiomegaly.", "The heart is enlarged.", "Cardiac enlargement."),
    "Lung Lesion": ("Pulmonary nodule.", "There is a nodule in the lung.", "Lung mass."),
    "Lung Opacity": ("Lung opacity.", "There is an airspace opacity.", "Patchy opacities in the lungs."),
    "Edema": ("Pulmonary edema.", "Interstitial edema.", "The lungs show pulmonary edema."),
    "Consolidation": ("Consolidation.", "There is a focal consolidation.", "Lobar consolidation."),
    "Pneumonia": ("Pneumonia.", "The appearance is that of pneumonia.", "Lobar pneumonia."),
    "Atelectasis": ("Atelectasis.", "Bibasilar atelectasis.", "There is atelectasis at the lung base."),
    "Pneumothorax": ("Pneumothorax.", "There is a pneumothorax.", "Apical pneumothorax."),
    "Pleural Effusion": ("Pleural effusion.", "There is a pleural effusion.", "Small pleural effusion."),
    "Pleural Other": ("Pleural thickening.", "There is pleural thickening.", "Pleural plaque."),
    "Fracture": ("Rib fracture.", "There is a fracture of a rib.", "Fractured rib."),
    "Support Devices": ("Pacemaker in place.", "A central venous catheter is in place."),
}


def sentences(labels: Sequence[str]) -> tuple[str, ...]:
    """Prompts for all of ``labels`` (CheXpert classes) at once; each prompt names each class once."""
    count = max(len(SENTENCES[label]) for label in labels)
    return tuple(" ".join(SENTENCES[label][k % len(SENTENCES[label])] for label in labels) for k in range(count))
