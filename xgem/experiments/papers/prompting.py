"""Several models on the same routes: XGeM's Tables 2 to 6, multi-prompt against single-prompt training among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from xgem.eval.families import factual, fidelity
from xgem.eval.instruments import Weights, judges_of, open_extractors, xrv_of
from xgem.eval.record import FamilyResult
from xgem.eval.route import Route, parse_route
from xgem.eval.routes import RunSettings, Setup, measurable, missing_routes, route_sets
from xgem.eval.schema import FamilyEntry
from xgem.eval.spaces import Settings as SpaceSettings
from xgem.eval.studies import answered, samples
from xgem.experiments.papers.plans import Routes
from xgem.experiments.papers.steps import Bench, manifest_splits
from xgem.experiments.papers.tables import ABSENT, Cell, Table, find
from xgem.judges.judge import Judge
from xgem.labels.vocabulary import XGEM_10
from xgem.types import InputError, NotComputed

MODALITIES: Final = ("frontal", "lateral", "report")
_MEANS: Final = ("micro", "macro", "weighted")


def check(bench: Bench, settings: Routes) -> None:
    """Refuse data without the splits, or plans of routes that do not exist.

    Raises:
        DataError: a split is missing. InputError: an unknown route, or no model.
    """
    manifest_splits(bench.manifest(None), settings.test_split, "train")
    if not settings.models:
        raise InputError(f"{bench.plan.name}: no models to compare; name some (models:)")
    for route in settings.routes:
        parse_route(route, MODALITIES)


def run(bench: Bench, settings: Routes) -> list[Table]:
    """One step a model; the tables have a row a model."""
    found = {name: bench.step(name, lambda name=name: _measured(bench, settings, name)) for name in settings.models}
    routes = [parse_route(route, MODALITIES) for route in settings.routes]
    return list(_tables(found, routes))


def _measured(bench: Bench, settings: Routes, name: str) -> list[FamilyResult]:
    """Fidelity and findings of the images of every route, words and findings of its reports."""
    model = bench.model(name)
    weights = settings.judged.weights()
    sampling = settings.generating.sampling(settings.limit)
    how = RunSettings(
        sampling=sampling, report_samples=settings.report_samples, bootstrap=settings.bootstrap, judge=weights.judge
    )
    out = bench.out / "cohorts" / name
    options: dict[str, Any] = {"cache": bench.cache, "device": bench.device, "progress": bench.progress}
    setup = Setup.of(model, bench.manifest(None), out, how, split=settings.test_split, **options)
    made_by = setup.model.modalities
    wanted = [parse_route(route, MODALITIES) for route in settings.routes]
    able = [route for route in wanted if {*route.inputs, *route.outputs} <= set(made_by)]
    measurable_routes, missing = measurable(setup.real, able)
    missing |= {route: f"{setup.model.name} does not have this route" for route in wanted if route not in able}
    sets = route_sets(setup, measurable_routes, how)
    real = setup.real.of(answered(setup.real.ids, list(sets.values())))
    instruments = setup.instruments
    labellers, external = weights.labellers(bench.place), weights.external()
    judged = _judges_by_view(bench, setup, weights)
    results = missing_routes("fidelity", missing)
    for route in measurable_routes:
        (output,) = route.outputs
        if output not in setup.model.images:
            words = instruments.words(real[output], sets[route], output, labellers=labellers, external=external)
            results.append(replace(words, route=route.short))
            continue
        training = instruments.training.get(output)
        target, (generated, *_) = samples(real[output], sets[route])
        spaces = open_extractors(
            weights.extractors, output, training, bench.cache, bench.place, model=model, judge=weights.judge
        )
        looks = SpaceSettings(seed=settings.seed, bootstrap=settings.bootstrap)
        of_looks = fidelity.evaluate(
            target, generated, extractors=spaces, training=training, cache=bench.cache, per_finding=False,
            settings=looks, device=bench.place,
        )  # fmt: skip
        of_findings = factual.evaluate(target, generated, judges=judged(output), **instruments.bootstrap)
        results += [replace(of_looks, route=route.short), replace(of_findings, route=route.short)]
    return results


def _judges_by_view(bench: Bench, setup: Setup, weights: Weights) -> Callable[[str], dict[str, Judge | NotComputed]]:
    """The judges of a view: xgem's own, and TorchXRayVision's where its weights are there."""
    xrv = xrv_of(weights.xrv, bench.place)

    def of_view(view: str) -> dict[str, Judge | NotComputed]:
        return judges_of(weights.judge, view, setup.instruments.training.get(view), xrv, bench.cache, bench.place)

    return of_view


def _tables(found: Mapping[str, Sequence[FamilyEntry]], routes: Sequence[Route]) -> Iterator[Table]:
    """Tables 2 to 6; what no network judged is left out, and what could not be computed says why."""
    images = [route for route in routes if route.outputs[0] != "report"]
    reports = [route for route in routes if route.outputs[0] == "report"]
    fid = Table("fid", "FID of generated images")
    for name, families in found.items():
        for route in images:
            for space in _judges(found.values(), "fid", route):
                cell = find(families, "fid", family="fidelity", route=route.short, extractor=space)
                fid.put(name, f"{route.short} {space}", cell)
    yield fid
    for key, title in (("auroc", "AUROC"), ("f1", "F1")):
        table = Table(f"findings_{key}", f"{title} of a classifier on generated images")
        for route in images:
            for name, families in found.items():
                for judge in _judges(found.values(), f"{key}_macro", route):
                    where = {"family": "factual", "route": route.short, "extractor": judge}
                    row = f"{route.short} {name}, {judge}"
                    _classes(table, row, families, (XGEM_10, key, f"{key}_{{}}"), where)
        yield table
    words = Table("bleu", "BLEU of generated reports")
    other = Table("report_entities", "RadGraph-F1 and RaTEScore of generated reports")
    for route in reports:
        for name, families in found.items():
            where = {"family": "text", "route": route.short}
            for order in range(1, 5):
                words.put(name, f"{route.short} BLEU-{order}", find(families, f"bleu_{order}", **where))
            for metric, title in (("radgraph_partial", "RadGraph-F1"), ("ratescore", "RaTE")):
                other.put(name, f"{route.short} {title}", find(families, metric, **where))
    yield words
    yield _report_findings(found, reports)
    yield other


def _classes(
    table: Table,
    row: str,
    families: Sequence[FamilyEntry],
    metrics: tuple[Sequence[str], str, str],
    where: Mapping[str, str],
) -> None:
    """A metric of every class, and its means; where the judge is not there, only why."""
    classes, key, means = metrics
    cells = {of: find(families, key, of=of, **where) for of in classes}
    cells |= {mean.capitalize(): find(families, means.format(mean), **where) for mean in _MEANS}
    if all(cell.value is None for cell in cells.values()):
        cells = {"Macro": cells["Macro"]}
    for of, cell in cells.items():
        table.put(row, of, Cell(reason="the judge does not know this class") if cell.reason == ABSENT else cell)


def _report_findings(found: Mapping[str, Sequence[FamilyEntry]], reports: Sequence[Route]) -> Table:
    table = Table("report_f1", "F1 of the findings of generated reports")
    for route in reports:
        for name, families in found.items():
            for labeller in _judges(found.values(), "macro_f1_10+", route):
                where = {"family": "text", "route": route.short, "extractor": labeller}
                row = f"{route.short} {name}, {labeller}"
                _classes(table, row, families, ((*XGEM_10, "No Finding"), "f1", "{}_f1_10+"), where)
    return table


def _judges(found: Any, metric: str, route: Route) -> list[str]:
    """The extractors by which any model has the metric on a route, with or without a number."""
    names = (
        one.extractor
        for families in found
        for family in families
        if family.route == route.short
        for one in family.metrics
        if one.name == metric and not one.of
    )
    return list(dict.fromkeys(names))
