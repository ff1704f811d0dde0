"""The instruments that evaluate the sets of one model: judges, feature spaces, labellers, and families of metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from xgem.chat.settings import PREFIX
from xgem.checkpoints.locate import DEFAULT_MODEL
from xgem.data.sets import EvalSet
from xgem.eval.combine import averaged, over_samples
from xgem.eval.diversity import similarity_of_seeds
from xgem.eval.families import agreement, factual, fidelity, text
from xgem.eval.families.consistency import View
from xgem.eval.record import FamilyResult
from xgem.eval.retrieval import Retrieval, retrieve
from xgem.eval.sharpness import sharpness
from xgem.eval.spaces import Settings
from xgem.eval.studies import Studies, samples
from xgem.judges.chat_roles import ChatJudge, ChatLabeller, open_endpoint
from xgem.judges.chexbert import load_chexbert
from xgem.judges.classifier import ClassifierConfig
from xgem.judges.external_text import ExternalMetric
from xgem.judges.extractors import NAMES, Extractor, open_extractor
from xgem.judges.extractors.own import judge_space, prompt_encoder
from xgem.judges.judge import OWN_JUDGE, Judge, OwnJudge
from xgem.judges.report_labellers import ReportLabeller, RuleLabeller
from xgem.judges.saved import open_judge
from xgem.judges.xrv import load_xrv
from xgem.pipeline.embedding import Evaluated, PromptEncoders
from xgem.types import NotComputed

T = TypeVar("T")


@dataclass(frozen=True)
class Weights:
    """Files of networks and packages for evaluation; None looks in local caches, or leaves the metrics uncomputed.

    Attributes:
        extractors: feature spaces as for :func:`xgem.judges.extractors.open_extractor`; None tries all.
        reid: as :func:`xgem.judges.reid.load_reid`; xrv: as :func:`xgem.judges.xrv.load_xrv`.
        chexbert, chexbert_vocabulary: as :func:`xgem.judges.chexbert.load_chexbert`.
        radgraph_python, ratescore_python: Python interpreters with these packages installed.
        judge: as for :func:`judges_of`.
        labeller: ``chat:FILE`` or ``chat:URL#MODEL``, another labeller of reports.
    """

    extractors: Sequence[str] | None = None
    reid: Path | None = None
    xrv: Path | None = None
    chexbert: Path | None = None
    chexbert_vocabulary: Path | None = None
    radgraph_python: Path | None = None
    ratescore_python: Path | None = None
    judge: str | None = None
    labeller: str | None = None

    def labellers(self, device: str) -> dict[str, ReportLabeller | text.Tables | NotComputed]:
        """Labellers of reports by the name under which their metrics are reported."""
        chexbert = or_reason(lambda: load_chexbert(self.chexbert, self.chexbert_vocabulary, device=device))
        known: dict[str, ReportLabeller | text.Tables | NotComputed] = {
            RuleLabeller().name: RuleLabeller(),
            "CheXbert": chexbert,
        }
        if self.labeller is not None:
            chat = ChatLabeller(open_endpoint(self.labeller))
            known[chat.name] = chat
        return known

    @property
    def own_judge(self) -> str | None:
        """The source of xgem's own judge, which gives features too; None takes the one that ships with xgem."""
        return None if is_chat(self.judge) else self.judge

    def external(self) -> dict[str, ExternalMetric | NotComputed]:
        """Report metrics of packages that run in their own Python interpreters."""
        pythons = {"radgraph": self.radgraph_python, "ratescore": self.ratescore_python}
        return {name: ExternalMetric(name, python) for name, python in pythons.items() if python is not None}


def or_reason(make: Callable[[], T], *errors: type[Exception]) -> T | NotComputed:
    """The result of ``make``, or as ``NotComputed`` the reason why it fails: its own, or one of ``errors``."""
    try:
        return make()
    except (NotComputed, *errors) as reason:
        return NotComputed(str(reason))


def xrv_of(path: Path | None, device: str) -> Judge | NotComputed:
    """TorchXRayVision's judge, or the reason why it is not available."""
    return or_reason(lambda: load_xrv(path, device=device))


def is_chat(name: str | None) -> bool:
    """Whether a judge is a model at a chat endpoint."""
    return name is not None and name.startswith(PREFIX)


def chat_judges(source: str | None) -> dict[str, Judge | NotComputed]:
    """The judge at a chat endpoint by its name, where ``source`` names one."""
    if source is None or not is_chat(source):
        return {}
    judge = ChatJudge(open_endpoint(source))
    return {judge.name: judge}


def judges_of(
    source: str | None, view: str, training: EvalSet | None, xrv: Judge | NotComputed, cache: Path, device: str
) -> dict[str, Judge | NotComputed]:
    """``xrv``, and xgem's own judge (:func:`xgem.judges.saved.open_judge`), or the reason why it is not available.

    ``source`` is that of xgem's own judge, or a chat endpoint (``chat:FILE``, ``chat:URL#MODEL``) beside it.
    """
    own = None if is_chat(source) else source
    judge = or_reason(lambda: open_judge(own, view, training, cache=cache, device=device))
    return {OWN_JUDGE: judge, "xrv": xrv, **chat_judges(source)}


def extractor_names(view: str, model: str | None = None) -> list[str]:
    """The published feature spaces, which may lack weights, and xgem's own: of a judge, and last of a prompt encoder,
    which is the space that the generator is conditioned on."""
    published = (name for name in NAMES if not name.startswith("xgem"))
    return [*published, OWN_JUDGE, f"xgem:{model or DEFAULT_MODEL}/{view}"]


def open_extractors(
    names: Sequence[str] | None,
    view: str,
    training: EvalSet | None,
    cache: Path,
    device: str | None,
    model: str | None = None,
    judge: str | None = None,
) -> dict[str, Extractor | NotComputed]:
    """Feature spaces by name, or the reason why one cannot be opened; ``judge`` as for ``open_judge``."""

    def opened(name: str) -> Extractor:
        space = f"{name}={judge}" if name == OWN_JUDGE and judge else name
        return open_extractor(space, view=view, device=device, training=training, cache=cache)

    return {
        name.partition("=")[0]: or_reason(lambda name=name: opened(name))
        for name in names or extractor_names(view, model)
    }


@dataclass(frozen=True)
class Instruments:
    """Judges and feature spaces for the sets of one model, opened or trained when they are first needed.

    Attributes:
        encoders: the model that embeds prompts, reads images and reconstructs them; ``name`` is its name or path.
        training: real training images and reports by modality, for training judges and for baselines.
        paired: the training studies that have all modalities, for baselines that predict one modality from another.
        cache: folder of features and trained judges.
        draws, seed: for the bootstrap; the seed also for all other random choices.
        source, classifier: of the judge, as for :func:`xgem.judges.saved.open_judge`.
        model: the model whose sets these are, where it is another than that of the encoders.
    """

    name: str
    encoders: Evaluated
    training: Mapping[str, EvalSet]
    paired: Studies | None
    cache: Path
    device: str
    draws: int = 1000
    seed: int = 0
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    source: str | None = None
    model: Evaluated | None = None

    @property
    def bootstrap(self) -> dict[str, Any]:
        return {"draws": self.draws, "seed": self.seed}

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    def _once(self, key: str, make: Callable[[], T]) -> T:
        if key not in self._opened:
            self._opened[key] = make()
        return self._opened[key]

    def judge(self, view: str) -> OwnJudge | NotComputed:
        """The judge of findings for a view."""
        options: dict[str, Any] = {"config": self.classifier, "cache": self.cache, "device": self.device}
        training = self.training.get(view)
        return self._once(
            f"judge {view}", lambda: or_reason(lambda: open_judge(self.source, view, training, **options))
        )

    def spaces(self, view: str) -> dict[str, Extractor | NotComputed]:
        """The feature spaces of the judge and of the prompt encoder."""

        def own() -> dict[str, Extractor | NotComputed]:
            judge = self.judge(view)
            return {
                OWN_JUDGE: judge if isinstance(judge, NotComputed) else judge_space(judge),
                f"xgem:{self.name}/{view}": prompt_encoder(f"xgem:{self.name}/{view}", self.device),
            }

        return self._once(f"spaces {view}", own)

    def view(self, view: str) -> View:
        """Encoders and judges for comparing images of a view with reports."""
        return View(PromptEncoders.of(self.encoders, view), {OWN_JUDGE: self.judge(view)})

    def of_images(
        self,
        real: Studies,
        generated: EvalSet,
        inputs: Sequence[str],
        view: str,
        seeds: EvalSet | None = None,
    ) -> list[FamilyResult]:
        """Fidelity, factual correctness and agreement; without inputs only fidelity, as nothing was requested.

        Args:
            seeds: several samples of some prompts, for diversity; None leaves it out.
        """
        results = [self._fidelity(real[view], generated, view, seeds)]
        if inputs:
            judge = self.judge(view)
            results += [
                over_samples(factual.evaluate, real[view], generated, judges={OWN_JUDGE: judge}, **self.bootstrap),
                self._agreement(real, generated, inputs, view, None if isinstance(judge, NotComputed) else judge),
            ]
        return results

    def _fidelity(self, real: EvalSet, generated: EvalSet, view: str, seeds: EvalSet | None) -> FamilyResult:
        """Distances to the studies' real images, sharpness and diversity; means over samples."""
        target, outputs = samples(real, generated)
        options: dict[str, Any] = {"training": self.training.get(view), "cache": self.cache, "per_finding": False}
        options |= {"settings": Settings(seed=self.seed, bootstrap=self.draws)}
        spaces = self.spaces(view)
        distances = averaged([fidelity.evaluate(target, sample, extractors=spaces, **options) for sample in outputs])
        sharp = sharpness(real, generated, self.model or self.encoders, view, **self.bootstrap)
        # Alignment with prompts belongs to agreement; diversity needs sets with several samples per prompt
        metrics = [metric for metric in distances.metrics if metric.name not in ("alignment", "ssim", "ms_ssim")]
        if seeds is not None:
            metrics += similarity_of_seeds(real, seeds, **self.bootstrap)
        return replace(
            distances,
            metrics=[*metrics, *sharp.metrics],
            details={**distances.details, **sharp.details},
            plots={**distances.plots, **sharp.plots},
        )

    def of_reports(self, real: Studies, generated: EvalSet, inputs: Sequence[str], report: str) -> list[FamilyResult]:
        """Text and agreement; empty without inputs, as nothing was requested."""
        if not inputs:
            return []
        words = self.words(real[report], generated, report, retrieval=self.retrieval(real, inputs, report))
        return [words, self._agreement(real, generated, inputs, report, None)]

    def words(self, real: EvalSet, generated: EvalSet, report: str, **options: Any) -> FamilyResult:
        """Text metrics, averaged over samples; ``options`` as for :func:`xgem.eval.families.text.evaluate`."""
        options |= {"training": self.training.get(report), **self.bootstrap}
        return over_samples(text.evaluate, real, generated, **options)

    def retrieval(self, real: Studies, inputs: Sequence[str], report: str) -> Retrieval | NotComputed:
        """The reports of the training studies whose images are nearest to those of the prompts, or why there are none.

        In the judge's feature space, which is independent of the model; where a view has no judge, in that of the
        model's own prompt encoders.
        """
        views = [name for name in inputs if name in self.encoders.images]
        if not views:
            return NotComputed("the prompt has no image to retrieve by")
        lacking = [name for name in (*views, report) if name not in self.training]
        if lacking:
            return NotComputed(f"no training study has a {' or a '.join(lacking)}")
        judges = {view: self.judge(view) for view in views}
        spaces = {view: judge_space(judge) for view, judge in judges.items() if not isinstance(judge, NotComputed)}
        if len(spaces) < len(views):
            spaces = {view: prompt_encoder(f"xgem:{self.name}/{view}", self.device) for view in views}
        prompts = {view: real[view] for view in views}
        options: dict[str, Any] = {"cache": self.cache, "device": self.device}
        return or_reason(lambda: retrieve(prompts, self.training, report, spaces, **options))

    def _agreement(
        self, real: Studies, generated: EvalSet, inputs: Sequence[str], output: str, judge: Judge | None
    ) -> FamilyResult:
        return agreement.evaluate(
            real,
            generated,
            inputs=inputs,
            output=output,
            encoders=self.encoders,
            judge=judge,
            training=self.paired,
            **self.bootstrap,
        )

    def of_output(
        self, real: Studies, generated: EvalSet, inputs: Sequence[str], output: str, **options: Any
    ) -> list[FamilyResult]:
        """All results for one output by itself, an image or a report."""
        if output in self.encoders.images:
            return self.of_images(real, generated, inputs, output, **options)
        return self.of_reports(real, generated, inputs, output)
