"""All routes to one output: a cohort for each, measured by the families (``xgem eval routes``)."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from xgem._version import __version__
from xgem.checkpoints.locate import DEFAULT_MODEL
from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet, check_disjoint
from xgem.eval.cohorts import Cohorts, Sampling, at_least
from xgem.eval.combine import beside_best
from xgem.eval.instruments import Instruments, or_reason
from xgem.eval.record import FamilyResult
from xgem.eval.route import Route, all_routes, parse_route
from xgem.eval.studies import Studies, answered, pixels_of, read_training, samples
from xgem.judges.classifier import ClassifierConfig
from xgem.pipeline.embedding import Evaluated, open_model
from xgem.types import DataError, InputError, NotComputed
from xgem.utils import sheets
from xgem.utils.cache import evaluation_cache
from xgem.utils.devices import resolve_device

logger = logging.getLogger(__name__)
COHORTS: Final = "cohorts"
"""Folder of the generated sets in that of the results."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of an evaluation of routes.

    Attributes:
        num_samples: samples of each study; numbers are means over them.
        report_samples: of a report, where not as many as of an image: they are cheap, and F1 of rare findings is noisy.
        diversity_prompts, diversity_seeds: so many samples of each of so many prompts; 0 prompts leave diversity out.
        sheet_rows: studies on a contact sheet.
        judge, classifier: the judge of findings, as for :func:`xgem.judges.saved.open_judge`, and how one is trained.
    """

    sampling: Sampling = field(default_factory=Sampling)
    num_samples: int = 1
    report_samples: int | None = None
    bootstrap: int = 1000
    diversity_prompts: int = 16
    diversity_seeds: int = 4
    sheet_rows: int = 12
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    judge: str | None = None

    def __post_init__(self) -> None:
        at_least("num_samples", self.num_samples, 1)
        at_least("report_samples", self.report_samples, 1)
        at_least("bootstrap", self.bootstrap, 1)
        at_least("diversity_prompts", self.diversity_prompts, 0)
        at_least("diversity_seeds", self.diversity_seeds, 2)

    def count(self, output: str, model: Evaluated) -> int:
        """Samples of each study of a route to ``output``."""
        return self.num_samples if output in model.images else self.report_samples or self.num_samples


@dataclass(frozen=True)
class Setup:
    """One model before its sets are measured: opened, with real studies, cohorts to come, and instruments."""

    model: Evaluated
    real: Studies
    cohorts: Cohorts
    instruments: Instruments

    @classmethod
    def of(
        cls,
        model: str | None,
        data: Path,
        out: Path,
        settings: RunSettings,
        *,
        split: str,
        cache: Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        progress: bool = True,
    ) -> Setup:
        """Read and check everything; nothing is generated.

        Raises:
            InputError: the split is that of training. DataError: too few studies, or real sets that overlap.
            CheckpointError, ManifestError: the model or the manifest cannot be used.
        """
        if split == "train":
            raise InputError("split 'train': models are measured on studies that they have not seen; use val or test")
        Manifest.read(data).check()
        name = model or DEFAULT_MODEL
        opened = open_model(name, device=device, dtype=dtype)
        real, training = Studies.read(data, opened, split), read_training(data, opened)
        for view in opened.images:
            if view in training and view in real.sets:
                check_disjoint(real[view], training[view])
        # A model without prompt encoders is measured with those of the default one
        looks = opened if opened.encodes else open_model(DEFAULT_MODEL, device=device, dtype=dtype)
        paired = or_reason(lambda: Studies.read(data, opened, "train", name="training"), DataError)
        options = {"sections": opened.sections, "device": device, "dtype": dtype, "progress": progress}
        cohorts = Cohorts(name, opened.pipe, data, split, out / COHORTS, settings.sampling, **options)
        instruments = Instruments(
            name if looks is opened else DEFAULT_MODEL,
            looks,
            training,
            None if isinstance(paired, NotComputed) else paired,
            cache or evaluation_cache(),
            str(resolve_device(device)),
            settings.bootstrap,
            settings.sampling.seed,
            settings.classifier,
            settings.judge,
            opened,
        )
        return cls(opened, real, cohorts, instruments)

    def about(self, settings: Any) -> dict[str, Any]:
        """What all results of the run share: settings with the model's own defaults, model, data, versions."""
        import torch

        return {
            **described(settings, self.model, self.cohorts),
            "studies": {"n": len(self.real), "report_sections": list(self.model.sections)},
            "torch": torch.__version__,
            "machine": platform.machine(),
            "xgem_version": __version__,
        }


def described(settings: Any, model: Evaluated, cohorts: Cohorts) -> dict[str, Any]:
    """Model, split and settings, with the model's own defaults for sampling where the settings leave it open."""
    chosen = {key: value for key, value in asdict(cohorts.sampling).items() if value is not None}
    return {
        "model": {"name": model.name, "hash": model.hash},
        "split": cohorts.split,
        **{key: value for key, value in asdict(settings).items() if key != "sampling"},
        "sampling": {**model.sampling, **chosen},
    }


def evaluate_routes(
    model: str | None,
    data: Path,
    out: Path,
    *,
    split: str = "val",
    settings: RunSettings | None = None,
    routes: Sequence[str] | None = None,
    cache: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[FamilyResult]]:
    """Generate and measure routes; every family's result says of which route it is.

    A route is measured on the real studies that have all of the model's modalities, so that numbers of several routes
    are of the same studies. One of several prompts has, number by number, the better of its single ones as reference.

    Args:
        model: name, folder or hub id; the embedded default.
        data: a manifest. ``out``: receives contact sheets, and the cohorts in ``cohorts``, where they are resumed.
        routes: as :func:`xgem.eval.route.parse_route` takes them; all of the model's by default.
        cache: folder for features and trained judges; :func:`xgem.utils.cache.evaluation_cache` by default.

    Returns:
        what all results share, and the results.

    Raises:
        InputError, DataError, CheckpointError, ManifestError: as :meth:`Setup.of`.
        OutputError: ``out`` holds cohorts of another plan or checkpoint, or cannot be written.
    """
    settings = settings or RunSettings()
    setup = Setup.of(
        model, data, out, settings, split=split, cache=cache, device=device, dtype=dtype, progress=progress
    )
    modalities = setup.model.modalities
    wanted = [parse_route(one, modalities) for one in routes] if routes else all_routes(modalities)
    unable = [route for route in wanted if not setup.model.makes(route.outputs[0])]
    measured, missing = measurable(setup.real, [route for route in wanted if route not in unable])
    missing |= {route: f"{setup.model.name} makes no {route.outputs[0]}" for route in unable}
    sets, seeds = route_sets(setup, measured, settings), _seed_sets(setup, measured, settings)
    real = setup.real.of(answered(setup.real.ids, list(sets.values())))
    results: dict[Route, list[FamilyResult]] = {}
    for route in measured:
        logger.info("measuring %s", route.short)
        (output,) = route.outputs
        options = {"seeds": seeds[route]} if route in seeds else {}
        results[route] = setup.instruments.of_output(real, sets[route], route.inputs, output, **options)
        write_sheet(out, route, real, sets[route], setup.model, rows=settings.sheet_rows)
    found = [
        replace(one, route=route.short) for route in measured for one in _beside_singles(route, results[route], results)
    ]
    return setup.about(settings), [*found, *missing_routes("agreement", missing)]


def measurable(real: Studies, routes: Sequence[Route]) -> tuple[list[Route], dict[Route, str]]:
    """The routes whose modalities these studies have, and why each of the others cannot be measured."""
    missing: dict[Route, str] = {}
    for route in routes:
        names = [name for name in (*route.inputs, *route.outputs) if name not in real.sets]
        if names:
            missing[route] = f"no study of the split has a {' or a '.join(names)}"
    return [route for route in routes if route not in missing], missing


def missing_routes(family: str, reasons: Mapping[Route, str]) -> list[FamilyResult]:
    """A result for each route that cannot be measured."""
    return [FamilyResult.missing(family, why, route=route.short) for route, why in reasons.items()]


def route_sets(setup: Setup, routes: Sequence[Route], settings: RunSettings) -> dict[Route, EvalSet]:
    """The generated sets of routes to one output; all plans are checked before anything is generated."""
    n = len(setup.real)
    plans = {
        route: setup.cohorts.plan_of(route, count=settings.count(route.outputs[0], setup.model), n=n)
        for route in routes
    }
    return {
        route: setup.cohorts.sets(plan, () if route.inputs else setup.real.ids)[route.outputs[0]]
        for route, plan in plans.items()
    }


def seeds_plan(cohorts: Cohorts, route: Route, prompts: int, seeds: int) -> Any:
    """Several samples of a few prompts, for diversity."""
    limit = min(prompts, cohorts.sampling.limit or prompts)
    return cohorts.plan(f"seeds_{route.stem}", route.inputs, route.outputs, limit=limit, count=seeds)


def _seed_sets(setup: Setup, routes: Sequence[Route], settings: RunSettings) -> dict[Route, EvalSet]:
    images = [route for route in routes if route.outputs[0] in setup.model.images] if settings.diversity_prompts else []
    plans = {
        route: seeds_plan(setup.cohorts, route, settings.diversity_prompts, settings.diversity_seeds)
        for route in images
    }
    return {route: setup.cohorts.sets(plan)[route.outputs[0]] for route, plan in plans.items()}


def _beside_singles(
    route: Route, results: Sequence[FamilyResult], measured: Mapping[Route, Sequence[FamilyResult]]
) -> list[FamilyResult]:
    """A route of several prompts beside the better of the measured routes of one of them."""
    singles = [one for one in measured if one.outputs == route.outputs and len(one.inputs) == 1]
    singles = [one for one in singles if one.inputs[0] in route.inputs]
    if len(route.inputs) < 2:
        return list(results)
    return [
        beside_best(
            result, {one.short: other for one in singles for other in measured[one] if other.family == result.family}
        )
        for result in results
    ]


def write_sheet(out: Path, route: Route, real: Studies, generated: EvalSet, model: Evaluated, *, rows: int) -> None:
    """A contact sheet of prompts, targets and up to four samples of the first studies: ``sheets/ROUTE.png``."""
    _, outputs = samples(real[route.outputs[0]], generated)
    few = range(min(rows, len(real)))

    def shown(items: EvalSet, modality: str) -> Any:
        part = items.subset(few)
        return pixels_of(part, model) if modality in model.images else part.reports

    columns = [(f"prompt: {name}", shown(real[name], name)) for name in route.inputs]
    columns += [(f"real {name}", shown(real[name], name)) for name in route.outputs]
    columns += [(f"generated {k}", shown(one, route.outputs[0])) for k, one in enumerate(outputs[:4], 1)]
    folder = out / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    sheets.write_sheet(folder / f"{route.stem}.png", columns, rows=rows)
