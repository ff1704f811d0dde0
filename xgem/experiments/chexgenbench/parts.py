"""The parts of the benchmark, each for one model: its sets are made if need be, then measured by xgem's families."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval.families import fidelity as fidelity_family
from xgem.eval.families import privacy as privacy_family
from xgem.eval.families import utility as utility_family
from xgem.eval.instruments import open_extractors
from xgem.eval.record import FamilyResult
from xgem.eval.spaces import Settings
from xgem.experiments.chexgenbench import reports as report_utility
from xgem.experiments.chexgenbench.data import VIEW, Sources, answered, fingerprint, training_prompts
from xgem.experiments.chexgenbench.plan import Model, Part
from xgem.judges.reid import load_reid
from xgem.judges.settings import preset
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.auc import FEWEST
from xgem.types import NotComputed
from xgem.utils.cache import evaluation_cache
from xgem.utils.hashing import canonical

REAL_MODEL: Final = "real"
"""The name under which the report model of real pairs is kept and shown."""
FAMILY: Final[Mapping[Part, str]] = {
    "fidelity": "fidelity",
    "privacy": "privacy",
    "classification": "utility",
    "reports": "text",
}


def key_of(sources: Sources, model: Model, part: Part) -> str:
    """A hash of all that decides a part's numbers, so that one that is finished is known again."""
    plan = sources.plan
    values = {
        "real": sources.hash,
        "split": [plan.data.train, plan.data.test],
        "model": model.model_dump(mode="json"),
        "files": _stamps(model),
        "part": getattr(plan, part).model_dump(mode="json"),
        "pairs": training_prompts(plan) if part in ("classification", "reports") else None,
        "shared": [plan.seed, plan.bootstrap, plan.judge, plan.compat],
    }
    return hashlib.sha256(canonical(values).encode()).hexdigest()


def _stamps(model: Model) -> list[list[Any]]:
    """A hash of the model, or names, sizes and times of the files of its sets."""
    if model.sets is None:
        return [[fingerprint(model)]]
    places = [path for path in vars(model.sets).values() if path is not None]
    files = [file for path in places for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def measure(sources: Sources, model: Model, part: Part) -> FamilyResult:
    """One part for one model; what cannot be computed is a result with the reason."""
    try:
        return PART[part](sources, model)
    except NotComputed as reason:
        return FamilyResult.missing(FAMILY[part], reason)


def _fidelity(sources: Sources, model: Model) -> FamilyResult:
    plan, generated = sources.plan, sources.made(model, "test")
    spaces = open_extractors(
        plan.fidelity.spaces, VIEW, sources.train, evaluation_cache(), sources.device, judge=plan.judge
    )
    settings = Settings(seed=plan.seed, bootstrap=plan.bootstrap)
    if plan.compat:
        settings = replace(settings, subset_size=None)
    return fidelity_family.evaluate(
        answered(sources.test, generated),
        generated,
        extractors=spaces,
        training=_reference(sources, len(generated)),
        cache=evaluation_cache(),
        per_finding=plan.fidelity.per_finding,
        settings=settings,
        device=sources.device,
        note=model.name,
    )


def _reference(sources: Sources, n: int) -> EvalSet:
    """Training images for the floor of each distance: several times ``n``, so that rare findings are among them."""
    rows = _drawn([item.id for item in sources.train.items], 4 * n, sources.plan.seed)
    return sources.train.subset(sorted(rows))


def _privacy(sources: Sources, model: Model) -> FamilyResult:
    plan = sources.plan
    reid = None if plan.privacy.reid is None else load_reid(plan.privacy.reid, device=sources.device or "cpu")
    generated = sources.made(model, "privacy")
    return privacy_family.evaluate(
        generated,
        sources.train,
        sources.test,
        extractors=open_extractors(
            plan.privacy.spaces, VIEW, sources.train, evaluation_cache(), sources.device, judge=plan.judge
        ),
        reid=reid,
        delta=plan.privacy.delta,
        own_prompt=plan.compat,
        size=plan.privacy.size,
        cache=evaluation_cache(),
        seed=plan.seed,
        bootstrap=plan.bootstrap,
        device=sources.device or "cpu",
    )


def _classification(sources: Sources, model: Model) -> FamilyResult:
    plan = sources.plan
    _check_positives(sources.test)
    synthetic, real = _training_pairs(sources, model, plan.classification.n)
    settings = preset(
        "classification",
        plan.classification.settings,
        runs=plan.classification.runs,
        seed=plan.seed,
        draws=plan.bootstrap,
        unmentioned="negative",  # as the published code fills them, whatever the settings say
    )
    if plan.classification.epochs is not None:
        settings = replace(settings, training=replace(settings.training, epochs=plan.classification.epochs))
    return utility_family.evaluate(
        real,
        synthetic,
        sources.test,
        settings,
        suite="substitution",
        cache=evaluation_cache(),
        device=sources.device or "cpu",
    )


def _check_positives(test: EvalSet) -> None:
    """Raises NotComputed where no class has enough positives and negatives for an AUROC."""
    labels = test.labels()
    positives = {name: int((labels[:, k] == 1).sum()) for k, name in enumerate(CHEXPERT_CLASSES)}
    if not any(FEWEST <= n <= len(test) - FEWEST for n in positives.values()):
        counted = ", ".join(f"{name} {n}" for name, n in positives.items() if n) or "none at all"
        raise NotComputed(
            f"{test.name}: too few positives for an AUROC of any class, which needs {FEWEST} of {len(test)} images and "
            f"as many negatives (positives: {counted}); take a larger test split"
        )


def _reports(sources: Sources, model: Model) -> FamilyResult:
    given = None if model.sets is None else model.sets.reports
    if given is not None:
        return report_utility.evaluate(model.name, sources.train, sources, given)
    synthetic, _ = _training_pairs(sources, model, sources.plan.reports.n)
    return report_utility.evaluate(model.name, synthetic, sources)


def real_reports(sources: Sources, model: Model) -> FamilyResult:
    """The same from the real pairs of the prompts that ``model``'s synthetic pairs have."""
    try:
        _, real = _training_pairs(sources, model, sources.plan.reports.n)
        return report_utility.evaluate(REAL_MODEL, real, sources)
    except NotComputed as reason:
        return FamilyResult.missing("text", reason)


def _training_pairs(sources: Sources, model: Model, n: int) -> tuple[EvalSet, EvalSet]:
    """At most ``n`` synthetic images with their prompts, and the real images of the same prompts.

    Where images name no real study, as a model's sets may, the real ones are as many, drawn by the seed.
    """
    seed = sources.plan.seed
    made, real = sources.made(model, "train"), sources.train
    synthetic = made.subset(sorted(_drawn([item.pair or item.id for item in made.items], n, seed)))
    wanted = {item.pair or item.id for item in synthetic.items}
    rows = [row for row, item in enumerate(real.items) if item.id in wanted]
    return synthetic, real.subset(rows or sorted(_drawn([item.id for item in real.items], len(synthetic), seed)))


def _drawn(names: list[str], n: int, seed: int) -> list[int]:
    """Rows of ``n`` names, drawn as a cohort draws its studies: more of them hold the fewer."""
    order = np.argsort([hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names], kind="stable")
    return [int(row) for row in order[:n]]


PART: Final[Mapping[Part, Callable[[Sources, Model], FamilyResult]]] = {
    "fidelity": _fidelity,
    "privacy": _privacy,
    "classification": _classification,
    "reports": _reports,
}


def options_of(sources: Sources) -> dict[str, Any]:
    """What all parts share, for the records."""
    plan = sources.plan
    return {"plan": plan.name, "seed": plan.seed, "compat": plan.compat, "real": sources.hash}


def part_folder(out: Path, model: str, part: Part) -> Path:
    """Where a part's record and report are."""
    return out / "models" / model / part
