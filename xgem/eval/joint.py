"""Routes to several outputs at once: joint beside separate sampling of the same requests (``xgem eval joint``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xgem.data.sets import EvalSet
from xgem.eval.combine import beside
from xgem.eval.families import consistency
from xgem.eval.record import FamilyResult
from xgem.eval.route import Route, joint_routes
from xgem.eval.routes import RunSettings, Setup, measurable, missing_routes, route_sets
from xgem.eval.studies import Studies, answered
from xgem.types import InputError


def evaluate_joint(
    model: str | None,
    data: Path,
    out: Path,
    *,
    split: str = "val",
    settings: RunSettings | None = None,
    quality: bool = True,
    cache: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[FamilyResult]]:
    """From each modality to the others and from nothing to all: consistency, and the quality of every output.

    A joint cohort is compared with the cohorts of the routes to each of its outputs alone, which have the same seeds:
    what ``xgem eval routes`` measures is the ``independent`` reference here.

    Args and errors as of :func:`xgem.eval.routes.evaluate_routes`; InputError where the model has no alignment.
    ``quality``: also measure every output by itself.
    """
    settings = settings or RunSettings()
    setup = Setup.of(
        model, data, out, settings, split=split, cache=cache, device=device, dtype=dtype, progress=progress
    )
    if not setup.cohorts.pipe.aligned:
        raise InputError(f"{setup.model.name}: has no trained alignment, so nothing is sampled jointly")
    routes, missing = measurable(setup.real, joint_routes(setup.model.modalities))
    n = len(setup.real)
    plans = {route: setup.cohorts.plan_of(route, count=settings.num_samples, n=n) for route in routes}
    apart = route_sets(setup, [one for route in routes for one in route.apart], settings)
    ids = setup.real.ids
    joint = {route: setup.cohorts.sets(plan, () if route.inputs else ids) for route, plan in plans.items()}
    real = setup.real.of(answered(ids, [*(one for sets in joint.values() for one in sets.values()), *apart.values()]))
    results: list[FamilyResult] = []
    for route, outputs in joint.items():
        separate = {one.outputs[0]: apart[one] for one in route.apart}
        results += [
            replace(one, route=route.short) for one in _measured(setup, real, route, outputs, separate, quality)
        ]
    return setup.about(settings), [*results, *missing_routes("consistency", missing)]


def _measured(
    setup: Setup,
    real: Studies,
    route: Route,
    outputs: Mapping[str, EvalSet],
    separate: Mapping[str, EvalSet],
    quality: bool,
) -> list[FamilyResult]:
    """Consistency of the outputs, and every output by itself, joint beside independent."""
    instruments = setup.instruments
    views = {view: instruments.view(view) for view in setup.model.images if view in outputs}
    found = [
        consistency.evaluate_outputs(real.sets, outputs, views=views, independent=separate, **instruments.bootstrap)
    ]
    for output, generated in outputs.items() if quality else ():
        joint, independent = (
            instruments.of_output(real, one, route.inputs, output) for one in (generated, separate[output])
        )
        for own, other in zip(joint, independent, strict=True):
            compared = beside(own, {consistency.INDEPENDENT: other})
            found.append(replace(compared, settings={**compared.settings, "output": output}))
    return found
