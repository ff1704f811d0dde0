"""All families of measures for one checkpoint: generate what they need, and measure it (``xgem eval all``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from xgem.cohort.plan import Plan
from xgem.cohort.run import run
from xgem.eval.consistency import PromptEncoders
from xgem.eval.extractors import NAMES, Extractor, open_extractor
from xgem.eval.fairness import AXES, mitigation
from xgem.eval.families import consistency, factual, fidelity, privacy, text, utility
from xgem.eval.families import fairness as fairness_family
from xgem.eval.judges import OWN_JUDGE, load_xrv, train_judge
from xgem.eval.material import open_model
from xgem.eval.record import FamilyResult, Metric, NotComputed
from xgem.eval.reid import load_reid
from xgem.eval.seeds import similarity_of_seeds
from xgem.eval.sets import EvalSet, read_set
from xgem.eval.spaces import Settings
from xgem.eval.utility.settings import UtilitySettings, preset
from xgem.locate import DEFAULT_MODEL

T = TypeVar("T")
VIEW: Final = "frontal"


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


@dataclass(frozen=True)
class _Cohorts:
    """Cohorts of one checkpoint, each made once; ``out/cohorts`` keeps them."""

    model: str
    data: Path
    out: Path
    settings: SuiteSettings
    device: str | None
    progress: bool

    def matched(
        self,
        name: str,
        split: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        limit: int | None,
        count: int = 1,
        joint: bool | None = None,
    ) -> EvalSet:
        part = {"manifest": str(self.data), "split": split, "inputs": inputs, "count": count, "limit": limit}
        values: dict[str, Any] = {
            "name": name,
            "model": self.model,
            "outputs": outputs,
            "seed": self.settings.seed,
            "batch_size": self.settings.batch_size,
            "joint": joint,
            "matched": part,
        }
        folder = self.out / "cohorts" / name
        run(Plan.model_validate(values), folder, device=self.device, progress=self.progress)
        return read_set(folder, name=name)


def evaluate_all(
    model: str | None,
    data: Path,
    out: Path,
    *,
    split: str = "val",
    settings: SuiteSettings | None = None,
    extractors: Sequence[str] | None = None,
    reid: Path | None = None,
    xrv: Path | None = None,
    cache: Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[FamilyResult]]:
    """Generate with ``model`` and measure everything against the real studies of ``data``.

    Pictures are made from reports, reports from pictures, and both from laterals (jointly, and apart as the control);
    pictures from training prompts serve privacy and utility. A measure that lacks weights, or whose data the manifest
    has not (demographics), is recorded as not computed.

    Returns:
        what was measured and how (the record's ``settings``), and the families' results.

    Raises:
        DataError: the manifest lacks studies. OutputError: ``out`` holds cohorts of another checkpoint or plan.
    """
    settings = settings or SuiteSettings()
    name = model or DEFAULT_MODEL
    evaluated = open_model(name, device=device)
    folder = cache or out / "cache"
    made = _Cohorts(name, data, out, settings, device, progress)
    place = device or "cpu"
    options: dict[str, Any] = {"draws": settings.bootstrap, "seed": settings.seed}

    real = read_set(data, split=split, pad=True, name="real")
    training = read_set(data, split="train", pad=True, name="training")
    real_reports, training_reports = (
        _with_reports(read_set(data, split=one, labels="reports", pad=True, name=name))
        for one, name in ((split, "real reports"), ("train", "training reports"))
    )
    pictures = made.matched("pictures", split, ["report"], [VIEW], limit=settings.limit)
    reports = made.matched("reports", split, [VIEW], ["report"], limit=settings.limit)
    seeds = made.matched("seeds", split, ["report"], [VIEW], limit=settings.seeds_limit, count=settings.seeds)
    known = made.matched("training-prompts", "train", ["report"], [VIEW], limit=settings.training_limit)

    spaces, missing = open_extractors(extractors, VIEW, training, folder, device, model=name)
    looks = Settings(seed=settings.seed, bootstrap=settings.bootstrap)
    results = [fidelity.evaluate(real, pictures, extractors=spaces, training=training, cache=folder, settings=looks)]
    diversity = similarity_of_seeds(real, seeds, seed=settings.seed, draws=settings.bootstrap)
    kept = [one for one in results[0].metrics if one.name not in {metric.name for metric in diversity}]
    results[0] = replace(results[0], metrics=[*kept, *diversity, *missing])
    results.append(text.evaluate(real_reports, reports, training=training_reports, **options))
    judges = {
        OWN_JUDGE: or_reason(lambda: train_judge(training, folder=folder / "judges", device=place)),
        "xrv": or_reason(lambda: load_xrv(xrv, device=place)),
    }
    side = evaluated.transform.size
    results.append(factual.evaluate(real, pictures, judges=judges, size=side, **options))
    together, apart = (
        made.matched(title, split, ["lateral"], [VIEW, "report"], limit=settings.limit, joint=joint)
        for title, joint in (("joint", True), ("apart", False))
    )
    results.append(
        consistency.evaluate(
            _with_reports(real),
            together,
            encoders=PromptEncoders.of(evaluated, VIEW),
            judges=judges,
            independent=apart,
            size=side,
            **options,
        )
    )
    results.append(
        privacy.evaluate(
            known,
            training,
            real,
            extractors=spaces,
            reid=None if reid is None else load_reid(reid),
            size=side,
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
    share = min(1.0, len(known) / len(training.with_pictures()))
    results.append(
        utility.evaluate(
            training, known, real, learning, suite_options={"multiples": (share,)}, cache=folder, device=place
        )
    )
    results.append(fairness(training, known, real, learning, cache=folder, device=place))
    about = {
        "model": {"name": evaluated.name, "hash": evaluated.hash},
        "split": split,
        "suite": asdict(settings),
        "data": {one.name: {"n": len(one), "sha256": one.sha256} for one in (real, training)},
    }
    return about, results


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


def or_reason(make: Callable[[], T]) -> T | NotComputed:
    """What ``make`` gives, or the reason why it cannot."""
    try:
        return make()
    except NotComputed as reason:
        return reason


def _with_reports(items: EvalSet) -> EvalSet:
    return items.subset([row for row, item in enumerate(items.items) if item.report.strip()])
