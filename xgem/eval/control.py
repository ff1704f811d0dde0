"""Do a model's images show what was requested? A cohort per kind of input (``xgem eval control``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.checkpoints.locate import CONTROL_MODEL, DEFAULT_MODEL
from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet, Item, squares
from xgem.data.study import Study
from xgem.eval.cohorts import Cohorts
from xgem.eval.families import control as family
from xgem.eval.families.requests import MIN_STUDIES, Annotated, Judges, Requested
from xgem.eval.instruments import Instruments, or_reason
from xgem.eval.record import FamilyResult
from xgem.eval.route import Route
from xgem.eval.routes import COHORTS, RunSettings, described, write_sheet
from xgem.eval.studies import Studies, answered, pixels_of, read_training, samples
from xgem.judges.classifier import ClassifierConfig
from xgem.judges.segmenter import SegmenterConfig
from xgem.pipeline.embedding import Evaluated, PromptEncoders, open_model
from xgem.types import DataError, InputError, NotComputed
from xgem.utils.cache import evaluation_cache
from xgem.utils.devices import resolve_device

VIEW: Final = "frontal"
HAS: Final[Mapping[str, Callable[[Study], bool]]] = {
    "mask": lambda study: bool(study.masks),
    "boxes": lambda study: bool(study.boxes),
    "severity": lambda study: study.severity is not None,
    "demographics": lambda study: study.sex is not None or study.age is not None,
}
"""Whether a study carries the input."""


@dataclass(frozen=True)
class ControlSettings(RunSettings):
    """Settings of an evaluation with the judges of shapes and of the patient's age and sex."""

    diversity_prompts: int = 0
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    patient: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(size=64, epochs=15, batch_size=32))


def evaluate_control(
    model: str | None,
    data: Path,
    out: Path,
    *,
    judge: str | None = None,
    split: str = "val",
    settings: ControlSettings | None = None,
    cache: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[FamilyResult]]:
    """Request what the studies of a split are annotated with, each kind alone, and measure what comes.

    Masks, boxes, severity scores and demographics are measured by the family ``control``, reports by those of
    :func:`xgem.eval.routes.evaluate_routes`. Judges learn from all training studies, whatever the limit.

    Args:
        model: name, folder or hub id of a model that makes frontals; the embedded one with control by default.
        judge: a checkpoint whose prompt encoders embed frontals and reports; the embedded default.

    Returns:
        what all results share, and the results; a kind that cannot be measured says why.

    Raises:
        InputError: the model makes no frontals. ImageError: an annotation cannot be read.
        CheckpointError, ManifestError, OutputError: as :func:`xgem.eval.routes.evaluate_routes`.
    """
    settings, name, judged_by = settings or ControlSettings(), model or CONTROL_MODEL, judge or DEFAULT_MODEL
    opened, looks = open_model(name, device=device, dtype=dtype), open_model(judged_by, device=device)
    if VIEW not in opened.images:
        raise InputError(f"{opened.name}: makes {', '.join(opened.modalities)}; expected a model of frontals")
    manifest = Manifest.read(data)
    manifest.check()
    sampling, folder, place = settings.sampling, cache or evaluation_cache(), str(resolve_device(device))
    options: dict[str, Any] = {"sections": opened.sections, "device": device, "dtype": dtype, "progress": progress}
    cohorts = Cohorts(name, opened.pipe, data, split, out / COHORTS, sampling, **options)
    encoders = _encoders(opened, looks)
    instruments = Instruments(
        judged_by,
        encoders,
        read_training(data, encoders),
        None,
        folder,
        place,
        settings.bootstrap,
        sampling.seed,
        settings.classifier,
    )
    judges = Judges(
        opened.transform,
        PromptEncoders.of(looks, VIEW),
        instruments.judge(VIEW),
        folder,
        place,
        settings.segmenter,
        settings.patient,
        settings.bootstrap,
        sampling.seed,
    )
    studies = _Studies(manifest, opened, cohorts, settings.num_samples)
    results: list[FamilyResult] = []
    for kind in family.KINDS:
        route = Route((kind,), (VIEW,)).short
        found = or_reason(lambda kind=kind: family.evaluate(kind, studies.requested(kind), judges))
        results.append(
            FamilyResult.missing(family.FAMILY, found, route=route)
            if isinstance(found, NotComputed)
            else replace(found, route=route)
        )
    results += _of_reports(encoders, opened, instruments, cohorts, settings, out)
    return {**described(settings, opened, cohorts), "judge": {"name": looks.name, "hash": looks.hash}}, results


def _encoders(model: Evaluated, looks: Evaluated) -> Evaluated:
    """The judge's encoders behind the evaluated model's own preprocessing and codec."""

    def embed(modality: str, values: Any) -> Any:
        images = isinstance(values, np.ndarray)
        return looks.embed(modality, squares(values, looks.transform.size) if images else values)

    own = {"transform": model.transform, "reconstruct": model.reconstruct, "sections": model.sections}
    return replace(looks, images=(VIEW,), embed=embed, **own)


@dataclass(frozen=True)
class _Studies:
    """Annotated studies of a manifest, and what a model makes of their annotations."""

    manifest: Manifest
    model: Evaluated
    cohorts: Cohorts
    count: int

    def requested(self, kind: str) -> Requested:
        """Every annotated study, generated from one kind of input alone.

        Raises:
            NotComputed: the model does not take the input, or too few studies have it.
        """
        if kind not in self.model.inputs:
            raise NotComputed(f"{self.model.name} takes no {kind}")
        real, training = self._annotated(self.cohorts.split, kind), self._annotated("train", kind)
        for one, split, least in ((real, self.cohorts.split, MIN_STUDIES), (training, "train", 1)):
            if len(one) < least:
                raise NotComputed(f"split {split!r} has {len(one)} studies with {kind}: expected at least {least}")
        plan = or_reason(lambda: self.cohorts.plan(f"{kind}_to_{VIEW}", [kind], [VIEW], count=self.count), InputError)
        if isinstance(plan, NotComputed):
            raise plan
        matched, generated = samples(_frontals(real, f"real, {kind}"), self.cohorts.sets(plan)[VIEW])
        by_id = {study.id: study for study in real}
        return Requested(
            Annotated(tuple(by_id[item.id] for item in matched.items), pixels_of(matched, self.model)),
            [pixels_of(one, self.model) for one in generated],
            Annotated(tuple(training), pixels_of(_frontals(training, "training"), self.model)),
        )

    def _annotated(self, split: str, kind: str) -> list[Study]:
        return [study for study in self.manifest.studies(split) if VIEW in study.images and HAS[kind](study)]


def _frontals(studies: list[Study], name: str) -> EvalSet:
    return EvalSet(name, tuple(Item(study.id, study.images[VIEW][0]) for study in studies), pad=True)


def _of_reports(
    encoders: Evaluated,
    model: Evaluated,
    instruments: Instruments,
    cohorts: Cohorts,
    settings: ControlSettings,
    out: Path,
) -> list[FamilyResult]:
    """The route from report to frontal, by the families that measure any route."""
    route = Route(("report",), (VIEW,))
    if "report" not in model.inputs:
        return [FamilyResult.missing("agreement", f"{model.name} takes no report", route=route.short)]
    real = or_reason(lambda: Studies.read(cohorts.data, encoders, cohorts.split), DataError)
    plan = or_reason(lambda: cohorts.plan_of(route, count=settings.num_samples), InputError)
    for reason in (real, plan):
        if isinstance(reason, NotComputed):
            return [FamilyResult.missing("agreement", reason, route=route.short)]
    assert not isinstance(real, NotComputed)
    assert not isinstance(plan, NotComputed)
    generated = cohorts.sets(plan)[VIEW]
    real = real.of(answered(real.ids, [generated]))
    write_sheet(out, route, real, generated, encoders, rows=settings.sheet_rows)
    return [replace(one, route=route.short) for one in instruments.of_images(real, generated, route.inputs, VIEW)]
