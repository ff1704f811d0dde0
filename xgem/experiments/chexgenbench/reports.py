"""Utility for report generation: a report model learns from a model's pairs, and describes real radiographs.

The paper trains LLaVA-Rad further (LoRA) on 20,000 synthetic pairs. Here it is xgem's own report generator; reports of
another one, such as LLaVA-Rad, enter as the ``reports`` of a model's sets.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from xgem.checkpoints.locate import locate
from xgem.cohort.plan import Plan as CohortPlan
from xgem.configs import load_preset
from xgem.configs.preset import Preset
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet
from xgem.eval.families import text
from xgem.eval.instruments import Weights
from xgem.eval.record import FamilyResult
from xgem.experiments.chexgenbench.data import VIEW, Sources, answered
from xgem.experiments.chexgenbench.plan import Reports
from xgem.experiments.papers.report_models import report_preset
from xgem.train.loop import LoopOptions
from xgem.train.stages import run as train_stages
from xgem.types import ConfigError

REPORT: Final = "report"
_HELD_BACK: Final = 0.1


def report_model(pairs: EvalSet, root: Path, settings: Reports, *, seed: int, progress: bool) -> Path:
    """A checkpoint in ``root`` whose report generator learned from images and their texts; resumes.

    A tenth of the pairs, by a hash of their ids, and at least one, is held back to watch the loss.

    Raises:
        DataError, ConfigError, CheckpointError: as ``xgem train``.
    """
    folder = root.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    items = pairs.with_images().items
    order = sorted((item.id for item in items), key=lambda name: hashlib.sha256(name.encode()).digest())
    held_back = set(order[: max(1, round(_HELD_BACK * len(order)))])
    rows = [
        Row(
            study=item.id,
            subject=item.id,  # a patient's other studies may be in the other split, which only stops the training
            split="val" if item.id in held_back else "train",
            view=VIEW,
            file=str(item.file.absolute()),
            impression=item.report or item.prompt,
        )
        for item in items
        if item.file is not None
    ]
    manifest = Manifest(tuple(rows), folder)
    preset = from_frontals(load_preset(settings.preset), settings)
    init = None if settings.init is None else locate(settings.init).root
    options = LoopOptions(resume=True, progress=progress, tensorboard=False)
    train_stages(settings.stages, preset, manifest, folder / "model", options, seed=seed, init=init)
    return folder / "model"


def from_frontals(preset: Preset, settings: Reports) -> Preset:
    """The preset of a report generator that sees frontals alone and writes one section, as the pairs have one text.

    Its generator is a component of its own, so that it starts from random weights beside ``settings.init``'s encoders
    and codec.

    Raises:
        ConfigError: the preset has no report generator, or does not train a stage of ``settings``.
    """
    untrained = [stage for stage in settings.stages if stage not in preset.train]
    if untrained:
        raise ConfigError(
            f"reports.stages: preset {preset.name!r} does not train {untrained[0]!r}: expected some of "
            f"{', '.join(preset.train)}"
        )
    alone = report_preset(preset)
    name = f"{REPORT}_from_{VIEW}"
    values = alone.model_dump(mode="json")
    values["components"][name] = values["components"].pop(alone.generator(REPORT))
    values["modalities"][REPORT]["generator"] = name
    trained = {stage: preset.train[stage].model_dump(mode="json") for stage in settings.stages}
    if settings.steps is not None:
        trained = {stage: how | {"steps": settings.steps} for stage, how in trained.items()}
    own = {"name": f"{preset.name}-{name}", "report_sections": ("impression",), "train": trained}
    return Preset.parse(values | own, f"{preset.name}, reports from frontals")


def describe(model: Path, sources: Sources, root: Path) -> EvalSet:
    """Reports of the real test images by ``model``: a cohort in ``root``."""
    plan = sources.plan
    matched = {"manifest": str(sources.manifest), "split": plan.data.test, "inputs": (VIEW,)}
    cohort = CohortPlan(
        name="reports",
        model=str(model),
        outputs=(REPORT,),
        split=plan.data.test,
        seed=plan.seed,
        matched=matched | {"limit": plan.reports.test_n},  # pyright: ignore[reportArgumentType]
    )
    sources.generate(cohort, root)
    return read_set(root, view=None, name=root.parent.name, pad=True)


def evaluate(name: str, pairs: EvalSet, sources: Sources, given: Path | None = None) -> FamilyResult:
    """Text measures of the reports that a report model writes of the real test images.

    Args:
        name: of the folder in ``OUT/models`` where model and reports are kept.
        pairs: what the report model learns from.
        given: reports by a report model that learned from them elsewhere.
    """
    plan, root = sources.plan, sources.out / "models" / name / "report-model"
    if given is None:
        model = report_model(pairs, root, plan.reports, seed=plan.seed, progress=sources.progress)
        written = describe(model, sources, root / "reports")
    else:
        written = read_set(given, view=None, name=name, pad=True)
    weights = Weights(
        chexbert=plan.reports.chexbert,
        chexbert_vocabulary=plan.reports.chexbert_vocabulary,
        radgraph_python=plan.reports.radgraph_python,
    )
    found = text.evaluate(
        answered(sources.test, written),
        written,
        training=sources.train,
        labellers=weights.labellers(sources.device or "cpu"),
        external=weights.external(),
        draws=plan.bootstrap,
        seed=plan.seed,
    )
    return replace(found, route="frontal->report")
