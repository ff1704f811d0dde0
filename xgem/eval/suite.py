"""All families of measures for one checkpoint: generate what they need, and measure it (``xgem eval all``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from xgem.checkpoints.locate import DEFAULT_MODEL
from xgem.cohort.check import check
from xgem.cohort.items import expand
from xgem.cohort.plan import Plan
from xgem.cohort.run import run
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet, check_disjoint
from xgem.eval.diversity import similarity_of_seeds
from xgem.eval.families import consistency, factual, fidelity, privacy, text, utility
from xgem.eval.families import fairness as fairness_family
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.spaces import Settings
from xgem.eval.subgroups import AXES, mitigation
from xgem.judges.chexbert import load_chexbert
from xgem.judges.external_text import ExternalMetric
from xgem.judges.extractors import NAMES, Extractor, open_extractor
from xgem.judges.judge import OWN_JUDGE, Judge, train_judge
from xgem.judges.reid import load_reid
from xgem.judges.report_labellers import ReportLabeller, RuleLabeller
from xgem.judges.settings import UtilitySettings, preset
from xgem.judges.xrv import load_xrv
from xgem.pipeline.embedding import PromptEncoders, open_model
from xgem.types import InputError, NotComputed
from xgem.utils.devices import resolve_device

T = TypeVar("T")
VIEW: Final = "frontal"
FEWEST: Final = 8


@dataclass(frozen=True)
class SuiteSettings:
    """What is generated, and how much.

    Attributes:
        limit: at most so many studies of the split; None takes all.
        training_limit: generations from training prompts, one a prompt: for privacy, and to train on for utility.
        seeds, seeds_limit: samples of each of so many prompts, for diversity.
        utility_runs: trainings of each protocol.
    """

    seed: int = 0
    bootstrap: int = 1000
    limit: int | None = None
    training_limit: int = 1000
    seeds: int = 4
    seeds_limit: int = 32
    batch_size: int = 32
    utility_runs: int = 3

    def __post_init__(self) -> None:
        amounts = asdict(self) | {"limit": 1 if self.limit is None else self.limit, "seed": self.seed + 1}
        wrong = next((name for name, value in amounts.items() if value < 1), None)
        if wrong is not None:
            raise InputError(f"{wrong} is {getattr(self, wrong)}: expected a seed from 0, all else from 1")


@dataclass(frozen=True)
class Weights:
    """Where the networks and packages are that measure; what is None is looked for in caches, or not computed.

    Attributes:
        extractors: feature spaces as :func:`xgem.judges.extractors.open_extractor` takes them; None tries all.
        reid: as :func:`xgem.judges.reid.load_reid`; xrv: as :func:`xgem.judges.xrv.load_xrv`.
        chexbert, chexbert_vocabulary: as :func:`xgem.judges.chexbert.load_chexbert`.
        radgraph_python, ratescore_python: Pythons that have these packages.
    """

    extractors: Sequence[str] | None = None
    reid: Path | None = None
    xrv: Path | None = None
    chexbert: Path | None = None
    chexbert_vocabulary: Path | None = None
    radgraph_python: Path | None = None
    ratescore_python: Path | None = None

    def labellers(self, device: str) -> dict[str, ReportLabeller | text.Tables | NotComputed]:
        """Of reports, by the name under which their numbers stand."""
        chexbert = or_reason(lambda: load_chexbert(self.chexbert, self.chexbert_vocabulary, device=device))
        return {RuleLabeller().name: RuleLabeller(), "CheXbert": chexbert}

    def external(self) -> dict[str, ExternalMetric | NotComputed]:
        """Of reports, by packages that live in Pythons of their own."""
        pythons = {"radgraph": self.radgraph_python, "ratescore": self.ratescore_python}
        return {name: ExternalMetric(name, python) for name, python in pythons.items() if python is not None}


@dataclass(frozen=True)
class _Cohorts:
    """Cohorts of one checkpoint, each made once; ``out/cohorts`` keeps them."""

    model: str
    pipe: Any
    data: Path
    split: str
    out: Path
    settings: SuiteSettings
    device: str | None
    progress: bool

    def plan(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        split: str | None = None,
        limit: int | None = None,
        count: int = 1,
        joint: bool | None = None,
    ) -> Plan:
        """Matched to the split, and checked against the model.

        Raises:
            InputError: the model cannot do it, or no study of the manifest has the inputs.
        """
        of = {"manifest": str(self.data), "split": split or self.split, "inputs": inputs, "count": count}
        values: dict[str, Any] = {
            "name": name,
            "model": self.model,
            "outputs": outputs,
            "seed": self.settings.seed,
            "batch_size": self.settings.batch_size,
            "joint": joint,
            "matched": of | {"limit": limit},
        }
        plan = Plan.model_validate(values)
        cohort = expand(plan)
        check(cohort, self.pipe)
        if len(cohort) < FEWEST:
            raise InputError(f"{self.data}: {len(cohort)} studies for {name!r}; the measures need at least {FEWEST}")
        return plan

    def made(self, plan: Plan) -> EvalSet:
        """Generated, or what of it is missing yet."""
        folder = self.out / "cohorts" / plan.name
        run(plan, folder, device=self.device, progress=self.progress)
        return read_set(folder, name=plan.name)


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

    Returns:
        what was measured and how (the record's ``settings``), and the families' results.

    Raises:
        InputError: the model makes no frontal images from reports, or too few studies; before anything is made.
        DataError: the manifest lacks studies. OutputError: ``out`` holds cohorts of another checkpoint or plan.
    """
    if split == "train":
        raise InputError("split 'train': models are measured on studies that they have not seen; expected val or test")
    settings, weights = settings or SuiteSettings(), weights or Weights()
    name = model or DEFAULT_MODEL
    evaluated = open_model(name, device=device)
    folder = cache or out / "cache"
    cohorts = _Cohorts(name, evaluated.pipe, data, split, out, settings, device, progress)
    place = str(resolve_device(device))
    options: dict[str, Any] = {"draws": settings.bootstrap, "seed": settings.seed}
    # Opened before anything is made: a wrong file must not end hours of work
    reid = None if weights.reid is None else load_reid(weights.reid, device=place)
    told: dict[str, Any] = {"labellers": weights.labellers(place), "external": weights.external(), **options}
    xrv = xrv_of(weights.xrv, place)

    few: dict[str, Any] = {"limit": settings.limit}
    of_images = cohorts.plan("images", ["report"], [VIEW], **few)
    prompts = min(settings.seeds_limit, settings.limit or settings.seeds_limit)
    of_seeds = cohorts.plan("seeds", ["report"], [VIEW], limit=prompts, count=settings.seeds)
    of_known = cohorts.plan("training-prompts", ["report"], [VIEW], split="train", limit=settings.training_limit)
    of_reports = or_reason(lambda: cohorts.plan("reports", [VIEW], ["report"], **few), InputError)
    of_both = or_reason(
        lambda: [
            cohorts.plan(title, ["lateral"], [VIEW, "report"], joint=joint, **few)
            for title, joint in (("joint", True), ("apart", False))
        ],
        InputError,
    )

    real = read_set(data, split=split, pad=True, name="real")
    training = read_set(data, split="train", pad=True, name="training")
    check_disjoint(real, training)
    images, seeds, known = (cohorts.made(plan) for plan in (of_images, of_seeds, of_known))

    spaces, missing = open_extractors(weights.extractors, VIEW, training, folder, place, model=name)
    looks = Settings(seed=settings.seed, bootstrap=settings.bootstrap)
    fidelity_result = fidelity.evaluate(
        real, images, extractors=spaces, training=training, cache=folder, settings=looks
    )
    diversity = similarity_of_seeds(real, seeds, seed=settings.seed, draws=settings.bootstrap)
    kept = [one for one in fidelity_result.metrics if one.name not in {metric.name for metric in diversity}]
    results = [replace(fidelity_result, metrics=[*kept, *diversity, *missing])]
    if isinstance(of_reports, NotComputed):
        results.append(_none("text", of_reports))
    else:
        real_reports, training_reports = (
            read_set(data, split=one, labels="reports", pad=True, name=name).with_reports()
            for one, name in ((split, "real reports"), ("train", "training reports"))
        )
        results.append(text.evaluate(real_reports, cohorts.made(of_reports), training=training_reports, **told))
    judges = judges_of(training, xrv, folder, place)
    results.append(factual.evaluate(real, images, judges=judges, **options))
    if isinstance(of_both, NotComputed):
        results.append(_none("consistency", of_both))
    else:
        together, apart = map(cohorts.made, of_both)
        encoders = PromptEncoders.of(evaluated, VIEW)
        results.append(
            consistency.evaluate(
                real.with_images().with_reports(),
                together,
                encoders=encoders,
                judges=judges,
                independent=apart,
                **options,
            )
        )
    results.append(
        privacy.evaluate(
            known,
            training,
            real,
            extractors=spaces,
            reid=reid,
            cache=folder,
            seed=settings.seed,
            bootstrap=settings.bootstrap,
            device=place,
        )
    )
    learning = replace(
        preset("classification", "small"),
        runs=settings.utility_runs,
        seed=settings.seed,
        draws=settings.bootstrap,
    )
    bare = next((one for one in (training, known, real) if not any(item.labels for item in one.items)), None)
    if bare is not None:
        reason = NotComputed(f"{bare.name}: none of its {len(bare)} items has labels, which are what is learnt")
        results += [_none("utility", reason), _none("fairness", reason)]
    else:
        usable = utility.make_task(learning, training).usable
        share = len(usable(known)) / len(usable(training))
        amounts = {"multiples": (min(1.0, math.floor(100 * share) / 100 or share),)}
        results.append(
            utility.evaluate(training, known, real, learning, suite_options=amounts, cache=folder, device=place)
        )
        results.append(fairness(training, known, real, learning, cache=folder, device=place))
    about = {
        "model": {"name": evaluated.name, "hash": evaluated.hash},
        "split": split,
        "suite": asdict(settings),
        "data": {one.name: {"n": len(one), "sha256": one.sha256} for one in (real, training)},
    }
    return about, results


def _none(family: str, reason: NotComputed) -> FamilyResult:
    return FamilyResult(family, [Metric.missing("all measures", reason)], {})


def xrv_of(path: Path | None, device: str) -> Judge | NotComputed:
    """TorchXRayVision's judge, or why there is none."""
    return or_reason(lambda: load_xrv(path, device=device))


def judges_of(
    training: EvalSet | None, xrv: Judge | NotComputed, cache: Path, device: str
) -> dict[str, Judge | NotComputed]:
    """xgem's own judge, trained on real training images, or why there is none; and ``xrv``."""

    def own() -> Judge:
        if training is None:
            raise NotComputed("it is trained on real training images, of which none were given (--training)")
        return train_judge(training, folder=cache / "judges", device=device)

    return {OWN_JUDGE: or_reason(own), "xrv": xrv}


def fairness(
    real: EvalSet,
    synthetic: EvalSet,
    test: EvalSet,
    settings: UtilitySettings,
    *,
    axes: Sequence[str] = AXES,
    share: float = 1.0,
    cache: Path | None = None,
    device: str = "cpu",
) -> FamilyResult:
    """Gaps between subgroups on ``test``: of a classifier of ``real``, and of one with subgroups topped up.

    Axes of which nothing is known in the training or the test set are left out; without any, nothing is computed.
    """
    known = [
        axis for axis in axes if all(any(getattr(item, axis) is not None for item in one.items) for one in (real, test))
    ]
    if not known:
        reason = f"{', '.join(axes)} of no patient of {real.name} or {test.name} is known: subgroups go by them"
        return FamilyResult("fairness", [Metric.missing("weighted_f1 gap", reason)], {"axes": list(axes)})
    plan, judged, scores = mitigation(
        real, synthetic, test, settings, axes=known, share=share, cache=cache, device=device
    )
    return fairness_family.evaluate(
        judged,
        scores,
        axes=known,
        unmentioned=settings.unmentioned,
        threshold=settings.threshold,
        draws=settings.draws,
        seed=settings.seed,
        judge=settings.network,
        plan=plan,
    )


def extractor_names(view: str, training: EvalSet | None, model: str | None = None) -> list[str]:
    """The published spaces, whose weights may be missing, and xgem's own: a prompt encoder's, and a judge's."""
    own = [f"xgem:{model or DEFAULT_MODEL}/{view}", *(["xgem-classifier"] if training is not None else [])]
    return [*own, *(name for name in NAMES if not name.startswith("xgem"))]


def open_extractors(
    names: Sequence[str] | None,
    view: str,
    training: EvalSet | None,
    cache: Path,
    device: str | None,
    model: str | None = None,
) -> tuple[list[Extractor], list[Metric]]:
    """Those that can be opened, and for each of the others a metric that says why not."""
    opened: list[Extractor] = []
    missing: list[Metric] = []
    for name in names or extractor_names(view, training, model):
        try:
            opened.append(open_extractor(name, device=device, training=training, cache=cache))
        except NotComputed as reason:
            missing.append(Metric.missing("distances in this space", reason, extractor=name.partition("=")[0]))
    return opened, missing


def or_reason(make: Callable[[], T], *errors: type[Exception]) -> T | NotComputed:
    """What ``make`` gives, or the reason why it cannot: its ``NotComputed``, or one of ``errors``."""
    try:
        return make()
    except (NotComputed, *errors) as reason:
        return NotComputed(str(reason))
