"""Do outputs of one request agree? Joint beside independent generation on one split (``xgem eval joint``).

Source: XGeM 4.3 (Eq. 5, Table 7: cosine of two outputs in the prompt encoders' space; Fig. 5: Hamming distance between
label sets of a generated frontal radiograph and report), with controls, intervals and tests that the paper leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.eval import measures
from xgem.eval.material import Images, Material, Training, load_material, load_training
from xgem.eval.record import finite
from xgem.eval.results import Measure
from xgem.eval.route import LETTERS
from xgem.eval.routes import RunSettings, described, each, generate_several, judged, prepare_folder
from xgem.judges.classifier import Classifier
from xgem.judges.judge import prevalence_thresholds
from xgem.labels.rules import LABELLER, LABELLER_VERSION, label_matrix
from xgem.labels.vocabulary import CHEXPERT_CLASSES, XGEM_10
from xgem.metrics.agreement import cosine, own_rank_scores
from xgem.metrics.bootstrap import Array, Bootstrap, Sampled
from xgem.metrics.significance import signed_ranks
from xgem.metrics.text import most_frequent
from xgem.pipeline.embedding import Evaluated
from xgem.types import InputError, OutputError

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest
    from xgem.eval.measures import RealImages

UNCONDITIONAL: Final = ("frechet_classifier", "frechet_encoder", "band_ratio")
"""What can be said of outputs that were made from nothing: there is no target to agree with."""
SHOWN: Final = (
    "target_agreement",
    "one_minus_own_rank",
    "classifier_agreement",
    "label_auc",
    "frechet_encoder",
    "band_ratio",
    "micro_f1_14",
    "macro_f1_findings",
    "bleu_4",
)
"""The measures of single outputs that the table shows; the JSON holds all."""
MODES: Final = ("joint", "independent")
RESULTS: Final = "joint.json"


@dataclass(frozen=True)
class JointRoute:
    """From some inputs, none included, to several outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def short(self) -> str:
        left, right = ("+".join(LETTERS.get(name, name) for name in names) for names in (self.inputs, self.outputs))
        return f"{left or 'nothing'}->{right}"


def joint_routes(modalities: Sequence[str]) -> list[JointRoute]:
    """All but one modality from the one, and all of them from nothing."""
    single = [JointRoute((name,), tuple(other for other in modalities if other != name)) for name in modalities]
    return [*reversed(single), JointRoute((), tuple(modalities))]


Outputs = dict[str, Any]
"""By output: images (n, s, s) uint8, or n reports."""


def generate(
    evaluated: Evaluated,
    route: JointRoute,
    material: Material,
    settings: RunSettings,
    *,
    joint: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Outputs]:
    """``settings.num_samples`` of one route's outputs for every study; study i has seed ``settings.seed + i`` in either
    mode."""
    prompts = material.prompts(route.inputs)
    return generate_several(evaluated, prompts, route.outputs, settings, advance=advance, joint=joint)


@dataclass(frozen=True)
class LabelJudges:
    """Label sets of images and reports over ``classes``: those of XGeM's ten that the classifier has learned.

    The classifier's thresholds are quantiles of its logits on real training images: it calls as many of them positive
    as are annotated so.
    """

    judge: Classifier
    classes: tuple[str, ...]
    thresholds: Array

    @classmethod
    def fit(cls, judge: Classifier, training: Training, view: str) -> LabelJudges:
        classes = tuple(name for name in judge.classes if name in XGEM_10)
        logits = judge.logits(training.images[view])[:, [judge.classes.index(name) for name in classes]]
        labels = training.labels[view][:, [CHEXPERT_CLASSES.index(name) for name in classes]]
        return cls(judge, classes, prevalence_thresholds(logits, labels))

    def of_images(self, images: Images) -> NDArray[np.bool_]:
        columns = [self.judge.classes.index(name) for name in self.classes]
        return self.judge.logits(images)[:, columns] > self.thresholds

    def of_reports(self, reports: Sequence[str]) -> NDArray[np.bool_]:
        return label_matrix(reports, classes=self.classes)


def hamming(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Array:
    """(n, k), (n, k) -> (n, n) numbers of labels in which set i of the first and set j of the second differ."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    return a @ (1 - b).T + (1 - a) @ b.T


def _compared(scores: Mapping[str, Array], real: Array, bootstrap: Bootstrap) -> dict[str, Any]:
    """Joint beside independent, shuffled and real, from (n, n) scores of one output i against another output j."""
    matched = {mode: bootstrap.matched_and_shuffled(scores[mode]) for mode in MODES}
    own = {mode: np.diag(scores[mode]) for mode in MODES}
    _, _, p, _ = signed_ranks(own["joint"] - own["independent"])
    return {
        "joint": _estimate(matched["joint"].matched),
        "independent": _estimate(matched["independent"].matched),
        "shuffled": _estimate(matched["joint"].shuffled),
        "real": _estimate(bootstrap.matched_and_shuffled(real).matched),
        "difference": _estimate(matched["joint"].matched - matched["independent"].matched),
        "difference_to_shuffled": _estimate(matched["joint"].difference),
        "wilcoxon_p": p,
    }


def _estimate(sampled: Sampled) -> dict[str, Any]:
    return sampled.estimate().as_dict()


@dataclass(frozen=True)
class JointEvaluation:
    """The whole run: settings, and by route the agreement of its outputs, their label sets, each output's quality."""

    settings: Mapping[str, Any]
    routes: Mapping[str, Any]

    def json(self) -> str:
        record = {"format": "xgem-eval-joint", "format_version": 1, "settings": dict(self.settings)}
        return json.dumps(finite(record | {"routes": dict(self.routes)}), indent=2, ensure_ascii=False)

    def markdown(self) -> str:
        """The tables, as the model card has them."""
        lines = [
            "Several outputs at once: joint beside independent sampling of the same seeds, mean of "
            f"{self.settings['num_samples']} samples a study; paired difference [95 %]",
            "",
            "| route | measure | n | joint | independent | difference | Wilcoxon p | shuffled | real pairs |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for route, found in self.routes.items():
            for name, one in found["agreement"].items():
                value = one["difference"]
                difference = f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
                cells = [f"{one[key]['value']:.3f}" for key in ("joint", "independent")]
                cells += [difference, f"{one['wilcoxon_p']:.2g}"]
                cells += [f"{one[key]['value']:.3f}" for key in ("shuffled", "real")]
                lines.append(f"| {route} | {name} | {value['n']} | {' | '.join(cells)} |")
        lines += [
            "",
            "Each output of these routes by itself, first sample, joint less independent; paired difference [95 %]",
            "",
            "| route | output | measure | joint | independent | difference |",
            "|---|---|---|---|---|---|",
        ]
        for route, found in self.routes.items():
            for output, quality in found["quality"].items():
                for name, one in quality.items():
                    if name not in SHOWN:
                        continue
                    value = one["difference"]
                    difference = f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
                    cells = [f"{one[key]['value']:.3f}" for key in MODES]
                    lines.append(f"| {route} | {output} | {name} | {' | '.join(cells)} | {difference} |")
        return "\n".join(lines) + "\n"

    def write(self, out: Path) -> None:
        """joint.json, joint.md and the plots into the run folder.

        Raises:
            OutputError: the folder cannot be written. InputError: matplotlib is missing.
        """
        try:
            (out / RESULTS).write_text(self.json() + "\n", encoding="utf-8")
            (out / "joint.md").write_text(self.markdown(), encoding="utf-8")
            _plot(self.routes, out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None


def evaluate_joint(
    evaluated: Evaluated,
    manifest: Manifest,
    *,
    split: str = "val",
    out: Path,
    settings: RunSettings | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> JointEvaluation:
    """Run every route to several outputs jointly and independently, measure both, and write to the folder ``out``.

    Args:
        cache: folder for prepared images and classifiers, as of ``evaluate_routes``; ``out/cache`` by default.
        overwrite: replace the results of an earlier run in ``out``.
        device: where the classifier trains and runs.

    Raises:
        InputError: the model has no alignment. OutputError: ``out`` holds results already or cannot be written.
        DataError: too few studies or images.
    """
    settings = settings or RunSettings()
    prepare_folder(out, RESULTS, overwrite=overwrite)
    cache = cache or out / "cache"
    material = load_material(
        manifest, split, evaluated, cache, limit=settings.limit, seed=settings.seed, progress=progress
    )
    training = load_training(manifest, evaluated, cache, progress=progress)
    bootstrap = Bootstrap(material.n, draws=settings.bootstrap, seed=settings.seed)
    real = judged(evaluated.images, evaluated, material, training, bootstrap, settings, cache, device)
    judges = {view: LabelJudges.fit(one.judge, training, view) for view, one in real.items()}
    judges = {view: one for view, one in judges.items() if one.classes}
    truth: Outputs = {**material.images, **{name: list(material.reports) for name in evaluated.reports}}
    embedded = {name: evaluated.embed(name, value) for name, value in truth.items()}
    constant = most_frequent(training.impressions)

    routes: dict[str, Any] = {}
    for route, advance in each(joint_routes(evaluated.modalities), 2 * material.n, progress):
        made = {
            mode: generate(evaluated, route, material, settings, joint=mode == "joint", advance=advance)
            for mode in MODES
        }
        distances = _label_distances(route, {**made, "real": [truth]}, evaluated, judges)
        routes[route.short] = {
            "inputs": list(route.inputs),
            "outputs": list(route.outputs),
            "n": material.n,
            "agreement": _agreement(route, made, embedded, distances, evaluated, bootstrap),
            "labels": {
                ", ".join(pair): _label_histogram(one, len(judges[pair[0]].classes)) for pair, one in distances.items()
            },
            "quality": _quality(route, made, real, material, embedded, constant, evaluated, bootstrap, settings.seed),
        }
    own = described(settings, evaluated, split, material) | {
        "labels": {view: list(one.classes) for view, one in judges.items()},
        "labeller": f"{LABELLER} {LABELLER_VERSION}, uncertain counts as positive",
        "classifiers": {view: one.judge.hash for view, one in real.items()},
    }
    evaluation = JointEvaluation(own, routes)
    evaluation.write(out)
    return evaluation


def _agreement(
    route: JointRoute,
    made: Mapping[str, Sequence[Outputs]],
    embedded: Mapping[str, Array],
    distances: Mapping[tuple[str, str], Mapping[str, Sequence[Array]]],
    evaluated: Evaluated,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """By measure: the cosine of every pair of outputs, the rank of the own image, the label sets' distance."""
    vectors = {
        mode: [{name: evaluated.embed(name, outputs[name]) for name in route.outputs} for outputs in samples]
        for mode, samples in made.items()
    }

    def mean(score: Callable[[Array, Array], Array], first: str, second: str) -> dict[str, Array]:
        return {
            mode: np.mean([score(one[first], one[second]) for one in samples], axis=0)
            for mode, samples in vectors.items()
        }

    found: dict[str, Any] = {}
    for a, b in combinations(route.outputs, 2):
        name = f"{LETTERS.get(a, a)}-{LETTERS.get(b, b)}"
        found[f"cosine {name}"] = _compared(mean(cosine, a, b), cosine(embedded[a], embedded[b]), bootstrap)
        if a in evaluated.images and b in evaluated.images:
            actual = own_rank_scores(embedded[a], embedded[b])
            found[f"1 - rank of the own {a} {name}"] = _compared(mean(own_rank_scores, a, b), actual, bootstrap)
    for (view, report), one in distances.items():
        name = f"{LETTERS.get(view, view)}-{LETTERS.get(report, report)}"
        means = {source: np.mean(samples, axis=0) for source, samples in one.items()}
        found[f"Hamming {name}"] = _compared(means, means["real"], bootstrap)
    return found


def _label_distances(
    route: JointRoute,
    sources: Mapping[str, Sequence[Outputs]],
    evaluated: Evaluated,
    judges: Mapping[str, LabelJudges],
) -> dict[tuple[str, str], dict[str, list[Array]]]:
    """By pair of an image and a report, by source and sample: the Hamming distances (n, n) of all their label sets."""
    pairs = [(view, name) for view in route.outputs if view in judges for name in route.outputs]
    return {
        (view, report): {
            source: [
                hamming(judges[view].of_images(outputs[view]), judges[view].of_reports(outputs[report]))
                for outputs in samples
            ]
            for source, samples in sources.items()
        }
        for view, report in pairs
        if report in evaluated.reports
    }


def _label_histogram(distances: Mapping[str, Sequence[Array]], classes: int) -> dict[str, Any]:
    """How many studies have label sets 0, 1, 2, ... apart, by source, a sample; the shuffled control as expected."""
    bins = classes + 1

    def counts(values: Array, samples: int) -> Array:
        return np.bincount(values.astype(int).ravel(), minlength=bins) / samples

    found = {
        source: counts(np.array([np.diag(one) for one in samples]), len(samples))
        for source, samples in distances.items()
    }
    joint = np.array(distances["joint"])
    found["shuffled"] = (counts(joint, len(joint)) - found["joint"]) / (joint.shape[1] - 1)
    return {source: np.round(one, 2).tolist() for source, one in found.items()}


def _quality(
    route: JointRoute,
    made: Mapping[str, Sequence[Outputs]],
    real: Mapping[str, RealImages],
    material: Material,
    embedded: Mapping[str, Array],
    constant: str,
    evaluated: Evaluated,
    bootstrap: Bootstrap,
    seed: int,
) -> dict[str, Any]:
    """What ``eval routes`` measures of each output by itself, joint and independent; from nothing: fidelity alone."""
    prompts = measures.prompt_embedding(embedded, route.inputs or tuple(embedded))
    found: dict[str, Any] = {}
    for name in route.outputs:
        by_mode: dict[str, Mapping[str, Measure]] = {}
        for mode, (outputs, *_) in made.items():
            if name in real:
                by_mode[mode], _ = measures.measure_images(
                    outputs[name], real[name], material, prompts, evaluated, bootstrap, seed=seed
                )
            else:
                by_mode[mode], _ = measures.measure_reports(
                    outputs[name], material, name, prompts, embedded[name], constant, evaluated, bootstrap, seed=seed
                )
        found[name] = {
            measure: {
                "joint": _estimate(by_mode["joint"][measure].value),
                "independent": _estimate(by_mode["independent"][measure].value),
                "difference": _estimate(by_mode["joint"][measure].value - by_mode["independent"][measure].value),
                "higher_is_better": by_mode["joint"][measure].higher_is_better,
            }
            for measure in by_mode["joint"]
            if route.inputs or measure in UNCONDITIONAL
        }
    return found


def _plot(routes: Mapping[str, Any], out: Path) -> None:
    """The cosines of all routes, and the label sets' distances of each route that has them."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need the package matplotlib, which is not installed: install xgem[eval]") from error
    columns = ("real", "joint", "independent", "shuffled")
    bars = [
        (f"{route}\n{name.removeprefix('cosine ')}", one)
        for route, found in routes.items()
        for name, one in found["agreement"].items()
        if name.startswith("cosine ")
    ]
    figure: Any = Figure(figsize=(1.6 * len(bars) + 2, 4), layout="constrained")
    axes = figure.subplots()
    for k, column in enumerate(columns):
        values = [one[column] for _, one in bars]
        middle = np.array([one["value"] for one in values])
        spread = np.abs(np.array([[one["low"], one["high"]] for one in values]).T - middle)
        axes.bar(np.arange(len(bars)) + (k - 1.5) * 0.2, middle, 0.2, yerr=spread, label=column)
    axes.set_xticks(np.arange(len(bars)), [label for label, _ in bars])
    axes.set_ylabel("cosine of two outputs")
    axes.legend()
    figure.savefig(out / "cosine.png", dpi=120)
    for route, found in routes.items():
        for pair, counts in found["labels"].items():
            figure = Figure(figsize=(6, 4), layout="constrained")
            axes = figure.subplots()
            for k, column in enumerate(columns):
                axes.bar(np.arange(len(counts[column])) + (k - 1.5) * 0.2, counts[column], 0.2, label=column)
            axes.set_xlabel(f"labels in which {pair} differ (Hamming distance)")
            axes.set_ylabel("studies")
            axes.set_title(route)
            axes.legend()
            stem = f"{route}_{pair}".replace("->", "_to_").replace("+", "_").replace(", ", "_")
            figure.savefig(out / f"hamming_{stem}.png", dpi=120)
