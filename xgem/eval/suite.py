"""All families of measures for one checkpoint: generate what they need, and measure it (``xgem eval all``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from xgem.cohort.plan import Plan
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet
from xgem.eval.cohorts import Cohorts, Sampling
from xgem.eval.diversity import similarity_of_seeds
from xgem.eval.families import consistency, factual, fidelity, privacy, utility
from xgem.eval.families import fairness as fairness_family
from xgem.eval.families.text import Tables
from xgem.eval.instruments import Weights, chat_judges, open_extractors, or_reason, xrv_of
from xgem.eval.record import FamilyResult
from xgem.eval.route import Route
from xgem.eval.routes import RunSettings, Setup, seeds_plan
from xgem.eval.spaces import Settings
from xgem.eval.studies import samples
from xgem.eval.subgroups import AXES, mitigation
from xgem.judges.extractors import Extractor
from xgem.judges.judge import OWN_JUDGE, Judge
from xgem.judges.reid import Reid, load_reid
from xgem.judges.report_labellers import ReportLabeller
from xgem.judges.settings import UtilitySettings, preset
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.fairness import MIN_N
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import InputError, NotComputed

VIEW: Final = "frontal"


@dataclass(frozen=True)
class SuiteSettings:
    """What is generated, and how much.

    Attributes:
        limit: maximum number of studies of the split; None takes all.
        samples: of each study's report; numbers are means over them.
        training_limit: generations from training prompts, one per prompt: for privacy, and to train on for utility.
        seeds, seeds_limit: samples of each of so many prompts, for diversity.
        utility_runs: training runs of each protocol.
    """

    seed: int = 0
    bootstrap: int = 1000
    limit: int | None = None
    samples: int = 3
    training_limit: int = 1000
    seeds: int = 4
    seeds_limit: int = 16
    batch_size: int = 32
    utility_runs: int = 3

    def __post_init__(self) -> None:
        amounts = asdict(self) | {"limit": 1 if self.limit is None else self.limit, "seed": self.seed + 1}
        wrong = next((name for name, value in amounts.items() if value < 1), None)
        if wrong is not None:
            raise InputError(f"{wrong} is {getattr(self, wrong)}: expected a seed from 0, all else from 1")


@dataclass(frozen=True)
class _Sets:
    """What is generated, checked before anything is; a plan that the model or the manifest does not allow says why.

    Attributes:
        images, reports: from reports to frontals and back; ``known``: from training reports, for privacy and utility.
        seeds: several frontals of some reports, for diversity.
        joint, separate: a frontal and a report from laterals, jointly and by the routes to each.
    """

    images: Plan
    seeds: Plan
    known: Plan
    reports: Plan | NotComputed
    joint: Plan | NotComputed
    separate: Sequence[Plan] | NotComputed

    @classmethod
    def of(cls, cohorts: Cohorts, settings: SuiteSettings) -> _Sets:
        """Raises InputError where the model makes no frontals from reports, or too few studies are there."""
        images, both = Route(("report",), (VIEW,)), Route(("lateral",), (VIEW, "report"), joint=True)
        limit = settings.training_limit
        return cls(
            images=cohorts.plan_of(images),
            seeds=seeds_plan(cohorts, images, settings.seeds_limit, settings.seeds),
            known=cohorts.plan("training_prompts", images.inputs, images.outputs, split="train", limit=limit),
            reports=or_reason(lambda: cohorts.plan_of(Route((VIEW,), ("report",)), count=settings.samples), InputError),
            joint=or_reason(lambda: cohorts.plan_of(both), InputError),
            separate=or_reason(lambda: [cohorts.plan_of(one) for one in both.apart], InputError),
        )


@dataclass(frozen=True)
class _Suite:
    """One model's evaluation by all families: what is opened, and the real sets."""

    setup: Setup
    weights: Weights
    settings: SuiteSettings
    sets: _Sets
    reid: Reid | None
    judges: Mapping[str, Judge | NotComputed]
    labellers: Mapping[str, ReportLabeller | Tables | NotComputed]

    @property
    def training(self) -> EvalSet:
        return self.setup.instruments.training[VIEW]

    @property
    def cache(self) -> Path:
        return self.setup.instruments.cache

    @property
    def device(self) -> str:
        return self.setup.instruments.device

    @property
    def options(self) -> dict[str, Any]:
        return self.setup.instruments.bootstrap

    def made(self, plan: Plan) -> dict[str, EvalSet]:
        return self.setup.cohorts.sets(plan)

    def images(self, spaces: Mapping[str, Extractor | NotComputed]) -> list[FamilyResult]:
        """Fidelity with diversity, and factual correctness, of frontals from reports."""
        seeds = self.made(self.sets.seeds)[VIEW]
        real, (generated, *_) = samples(self.setup.real[VIEW], self.made(self.sets.images)[VIEW])
        looks = Settings(seed=self.settings.seed, bootstrap=self.settings.bootstrap)
        found = fidelity.evaluate(
            real, generated, extractors=spaces, training=self.training, cache=self.cache, settings=looks
        )
        kept = [one for one in found.metrics if one.name not in ("ssim", "ms_ssim")]
        diversity = similarity_of_seeds(real, seeds, **self.options)
        return [
            replace(found, metrics=[*kept, *diversity], route="T->F"),
            replace(factual.evaluate(real, generated, judges=self.judges, **self.options), route="T->F"),
        ]

    def reports(self) -> list[FamilyResult]:
        """Text measures of reports from frontals."""
        if isinstance(self.sets.reports, NotComputed):
            return [FamilyResult.missing("text", self.sets.reports)]
        instruments = self.setup.instruments
        found = instruments.words(
            self.setup.real["report"],
            self.made(self.sets.reports)["report"],
            "report",
            labellers=self.labellers,
            external=self.weights.external(),
            retrieval=instruments.retrieval(self.setup.real, [VIEW], "report"),
        )
        return [replace(found, route="F->T")]

    def consistency(self) -> list[FamilyResult]:
        """Of a frontal and a report that are generated together from a lateral."""
        joint, separate = self.sets.joint, self.sets.separate
        for reason in (joint, separate):
            if isinstance(reason, NotComputed):
                return [FamilyResult.missing("consistency", reason)]
        assert not isinstance(joint, NotComputed)
        assert not isinstance(separate, NotComputed)
        encoders = PromptEncoders.of(self.setup.model, VIEW)
        apart = {name: one for plan in separate for name, one in self.made(plan).items()}
        found = consistency.evaluate_outputs(
            self.setup.real.sets,
            self.made(joint),
            views={VIEW: consistency.View(encoders, self.judges)},
            independent=apart,
            **self.options,
        )
        return [replace(found, route="L->F+T")]

    def privacy(self, known: EvalSet, real: EvalSet, spaces: Mapping[str, Extractor | NotComputed]) -> FamilyResult:
        """Of frontals from training reports, against the training images."""
        found = privacy.evaluate(
            known,
            self.training,
            real,
            extractors=spaces,
            reid=self.reid,
            cache=self.cache,
            seed=self.settings.seed,
            bootstrap=self.settings.bootstrap,
            device=self.device,
        )
        return replace(found, route="T->F")

    def use(self, known: EvalSet, real: EvalSet) -> list[FamilyResult]:
        """Utility and fairness of classifiers that learn from frontals from training reports."""
        learning = replace(
            preset("classification", "small"),
            runs=self.settings.utility_runs,
            seed=self.settings.seed,
            draws=self.settings.bootstrap,
        )
        training = self.training
        bare = next((one for one in (training, known, real) if not any(item.labels for item in one.items)), None)
        if bare is not None:
            reason = f"{bare.name}: none of its {len(bare)} items has labels to learn from"
            return [FamilyResult.missing(family, reason, route="T->F") for family in ("utility", "fairness")]
        usable = utility.make_task(learning, training).usable
        share = len(usable(known)) / len(usable(training))
        amounts = {"multiples": (min(1.0, math.floor(100 * share) / 100 or share),)}
        options: dict[str, Any] = {"cache": self.cache, "device": self.device}
        found = [
            utility.evaluate(training, known, real, learning, suite_options=amounts, **options),
            fairness(training, known, real, learning, **options),
        ]
        return [replace(one, route="T->F") for one in found]


def evaluate_all(
    model: str | None,
    data: Path,
    out: Path,
    *,
    split: str = "val",
    settings: SuiteSettings | None = None,
    weights: Weights | None = None,
    cache: Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[FamilyResult]]:
    """Generate with ``model`` and measure everything against the real studies of ``data``.

    Images are made from reports, reports from images, and both from laterals (jointly, and apart as the control);
    images from training prompts serve privacy and utility. A measure that lacks weights, whose data the manifest
    has not (laterals, labels, demographics), or that asks for what the model cannot do, is recorded as not computed.
    The cohorts are those of ``eval routes`` and ``joint`` where these lie in the same ``out``.

    Returns:
        what was measured and how (the record's ``settings``), and the families' results.

    Raises:
        InputError: the model makes no frontal images from reports, or too few studies; before anything is made.
        DataError: the manifest lacks studies. OutputError: ``out`` holds cohorts of another checkpoint or plan.
    """
    settings, weights = settings or SuiteSettings(), weights or Weights()
    sampling = Sampling(seed=settings.seed, limit=settings.limit, batch_size=settings.batch_size)
    run = RunSettings(sampling=sampling, bootstrap=settings.bootstrap, judge=weights.own_judge)
    setup = Setup.of(model, data, out, run, split=split, cache=cache, device=device, progress=progress)
    place, folder = setup.instruments.device, setup.instruments.cache
    # Opened and checked before anything is generated: a wrong file must not end hours of work
    reid = None if weights.reid is None else load_reid(weights.reid, device=place)
    xrv = xrv_of(weights.xrv, place)
    labellers = weights.labellers(place)
    sets = _Sets.of(setup.cohorts, settings)
    judges = {OWN_JUDGE: setup.instruments.judge(VIEW), "xrv": xrv, **chat_judges(weights.judge)}
    suite = _Suite(setup, weights, settings, sets, reid, judges, labellers)

    known = suite.made(sets.known)[VIEW]
    everyone = read_set(data, split=split, pad=True, name="real").with_images()
    spaces = open_extractors(
        weights.extractors, VIEW, suite.training, folder, place, model=setup.cohorts.model, judge=weights.own_judge
    )
    distances, findings = suite.images(spaces)
    results = [
        distances,
        *suite.reports(),
        findings,
        *suite.consistency(),
        suite.privacy(known, everyone, spaces),
        *suite.use(known, everyone),
    ]
    return setup.about(settings), results


def fairness(
    real: EvalSet,
    synthetic: EvalSet,
    test: EvalSet,
    settings: UtilitySettings,
    *,
    axes: Sequence[str] = AXES,
    share: float = 1.0,
    classes: Sequence[str] = CHEXPERT_CLASSES,
    matched: EvalSet | None = None,
    held_out: EvalSet | None = None,
    min_n: int = MIN_N,
    cache: Path | None = None,
    device: str = "cpu",
) -> FamilyResult:
    """Gaps between subgroups on ``test``: of a classifier of ``real``, and of one with subgroups topped up.

    ``matched`` and ``held_out`` as :func:`xgem.eval.subgroups.mitigation` takes them; ``min_n``: images of a subgroup.

    Axes of which nothing is known in the training or the test set are left out; without any, nothing is computed.
    """
    known = [
        axis for axis in axes if all(any(getattr(item, axis) is not None for item in one.items) for one in (real, test))
    ]
    if not known:
        reason = f"no {' or '.join(axes)} is given in {real.name} or {test.name}; cannot form subgroups"
        return FamilyResult.missing("fairness", reason, settings={"axes": list(axes)})
    options: dict[str, Any] = {
        "matched": matched,
        "held_out": held_out,
        "min_n": min_n,
        "cache": cache,
        "device": device,
    }
    found = mitigation(real, synthetic, test, settings, axes=known, share=share, classes=classes, **options)
    return fairness_family.evaluate(
        found.test,
        found.scores,
        synthetic=found.synthetic,
        classes=classes,
        axes=known,
        unmentioned=settings.unmentioned,
        threshold=settings.threshold,
        min_n=min_n,
        draws=settings.draws,
        seed=settings.seed,
        judge=settings.network,
        plan=found.plan,
    )
