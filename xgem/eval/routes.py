"""All single-output routes of a model on one split: generate, measure, compare (``xgem eval routes``)."""

from __future__ import annotations

import csv
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from xgem._version import __version__
from xgem.eval import measures
from xgem.eval.material import Images, Material, Training, load_material, load_training
from xgem.eval.results import Evaluation, Measure, RouteResult, average_measures
from xgem.eval.route import Route, all_routes
from xgem.judges.classifier import ClassifierConfig, train_findings
from xgem.metrics import similarity, spectrum
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.text import most_frequent
from xgem.pipeline.embedding import Evaluated
from xgem.types import InputError, OutputError
from xgem.utils import sheets

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest
    from xgem.eval.measures import RealImages

logger = logging.getLogger(__name__)
# What a two-prompt route is compared with its single ones on; agreement with different prompts is no common ground
COMPARED = (
    "target_agreement",
    "one_minus_own_rank",
    "pixel_correlation",
    "classifier_agreement",
    "label_auc",
    "micro_f1_14",
    "macro_f1_14",
    "micro_f1_findings",
    "macro_f1_findings",
    "bleu_4",
)


@dataclass(frozen=True)
class RunSettings:
    """Settings of an evaluation; None leaves a sampling option to the model's preset."""

    seed: int = 0
    limit: int | None = None
    num_samples: int = 1
    report_samples: int | None = None
    """Samples of a report, where not as many as of an image: they are cheap, and F1 over rare findings is noisy."""
    num_inference_steps: int | None = None
    guidance_scale: float | dict[str, float] | None = None
    sampler: str | None = None
    batch_size: int = 32
    bootstrap: int = 1000
    diversity_prompts: int = 16
    diversity_seeds: int = 4
    sheet_rows: int = 12
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("num_samples", 1),
            ("report_samples", 1),
            ("batch_size", 1),
            ("bootstrap", 1),
            ("diversity_prompts", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} {value}: expected at least {least}")
        if self.limit is not None and self.limit < 8:
            raise InputError(f"limit {self.limit}: expected at least 8 studies")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps {self.num_inference_steps}: expected at least 1")

    def for_reports(self) -> RunSettings:
        """The settings of a route that writes reports."""
        return replace(self, num_samples=self.report_samples or self.num_samples)

    def options(self) -> dict[str, Any]:
        """The sampling options to call the pipeline with."""
        names = ("num_inference_steps", "guidance_scale", "sampler")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class _Named(Protocol):
    @property
    def short(self) -> str: ...


Shown = TypeVar("Shown", bound=_Named)

Samples = list[Any]
"""One entry a sample index: images (n, s, s) uint8, or n reports."""


def generate(
    evaluated: Evaluated,
    route: Route,
    material: Material,
    settings: RunSettings,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Samples:
    """One route's outputs for every study, as :func:`generate_from` makes them."""
    return generate_from(evaluated, material.prompts(route.inputs), route.output, settings, advance=advance)


def generate_from(
    evaluated: Evaluated,
    prompts: Sequence[Mapping[str, Any]],
    output: str,
    settings: RunSettings,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Samples:
    """One output for each of ``prompts``, as :func:`generate_several` makes it."""
    return [made[output] for made in generate_several(evaluated, prompts, [output], settings, advance=advance)]


def generate_several(
    evaluated: Evaluated,
    prompts: Sequence[Mapping[str, Any]],
    outputs: Sequence[str],
    settings: RunSettings,
    *,
    advance: Callable[[int], None] = lambda _: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """``settings.num_samples`` of the outputs for each of ``prompts``, in batches; prompt i has seed
    ``settings.seed + i`` on every route. ``options`` go to the pipeline.

    Raises:
        InputError: the pipeline gave images of another size than the model's transform says.
    """
    made: list[Mapping[str, Sequence[Any]]] = []
    for start in range(0, len(prompts), settings.batch_size):
        batch = list(prompts[start : start + settings.batch_size])
        generations = evaluated.pipe(
            batch,
            list(outputs),
            seed=[settings.seed + start + i for i in range(len(batch))],
            num_samples=settings.num_samples,
            batch_size=settings.batch_size,
            progress=False,
            **settings.options(),
            **options,
        )
        made += [generation.outputs for generation in generations]
        advance(len(batch))
    size = evaluated.transform.size
    return [
        {name: gathered_outputs([one[name][k] for one in made], size) for name in outputs}
        for k in range(settings.num_samples)
    ]


def gathered_outputs(outputs: list[Any], size: int) -> Images | list[str]:
    """Samples of one output as (n, s, s) uint8, or as n reports; InputError where images are of another size."""
    if all(isinstance(output, str) for output in outputs):
        return outputs
    images = np.stack([np.asarray(output.convert("L"), dtype=np.uint8) for output in outputs])
    if images.shape[1:] != (size, size):
        raise InputError(f"generated images of {images.shape[1:]}: expected {size} x {size}, the model's own size")
    return images


def evaluate_routes(
    evaluated: Evaluated,
    manifest: Manifest,
    *,
    split: str = "val",
    out: Path,
    settings: RunSettings | None = None,
    routes: Sequence[Route] | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Run and measure routes, and write tables, reports and contact sheets to the run folder ``out``.

    Args:
        routes: all of the model's by default. Two-prompt routes are compared with those single ones that are run too.
        cache: folder for prepared images and trained classifiers; ``out/cache`` by default.
        overwrite: replace the results of an earlier run in ``out``.
        device: where the classifier trains and runs.

    Raises:
        OutputError: ``out`` holds results already or cannot be written. DataError: too few studies or images.
    """
    settings = settings or RunSettings()
    routes = list(routes or all_routes(evaluated.modalities))
    prepare_folder(out, "routes.json", "sheets", "reports", overwrite=overwrite)
    cache = cache or out / "cache"
    options: dict[str, Any] = {"limit": settings.limit, "seed": settings.seed, "progress": progress}
    material = load_material(manifest, split, evaluated, cache, **options)
    training = load_training(manifest, evaluated, cache, progress=progress)
    bootstrap = Bootstrap(material.n, draws=settings.bootstrap, seed=settings.seed)
    views = [view for view in evaluated.images if any(route.output == view for route in routes)]
    real = judged(views, evaluated, material, training, bootstrap, settings, cache, device)
    embedded = {view: evaluated.embed(view, material.images[view]) for view in evaluated.images}
    embedded |= {name: evaluated.embed(name, list(material.reports)) for name in evaluated.reports}
    constant = most_frequent(training.impressions)

    results: list[RouteResult] = []
    for route, advance in each(routes, material.n, progress):
        own_settings = settings if route.output in real else settings.for_reports()
        samples = generate(evaluated, route, material, own_settings, advance=advance)
        prompts = measures.prompt_embedding(embedded, route.inputs)
        if route.output in real:
            ridge = measures.ridge_baseline(route.inputs, route.output, material, training.material)
            found = [
                measures.measure_images(
                    one, real[route.output], material, prompts, evaluated, bootstrap, ridge=ridge, seed=settings.seed
                )
                for one in samples
            ]
            diversity = _diversity(evaluated, route, material, settings)
        else:
            found = [
                measures.measure_reports(
                    one,
                    material,
                    route.output,
                    prompts,
                    embedded[route.output],
                    constant,
                    evaluated,
                    bootstrap,
                    seed=settings.seed,
                )
                for one in samples
            ]
            diversity = {}
        own = average_measures([one for one, _ in found]) | diversity
        results.append(RouteResult(route.inputs, route.output, route.short, material.n, own, found[0][1]))
        _write_outputs(out, route, samples, material, settings)
    evaluation = Evaluation(
        settings=described(settings, evaluated, split, material),
        routes=tuple(results),
        several_prompts=compare_several(results),
        real={view: _real_summary(one, evaluated, bootstrap, training.images[view]) for view, one in real.items()},
    )
    evaluation.write(out)
    return evaluation


def judged(
    views: Sequence[str],
    evaluated: Evaluated,
    material: Material,
    training: Training,
    bootstrap: Bootstrap,
    settings: RunSettings,
    cache: Path,
    device: str,
) -> dict[str, RealImages]:
    """The real images of ``views``, with a classifier of each that is trained, or taken from ``cache``."""
    real: dict[str, RealImages] = {}
    for view in views:
        logger.info("classifier of %s images", view)
        judge = train_findings(
            training.images[view],
            training.labels[view],
            config=settings.classifier,
            folder=cache / "classifier",
            device=device,
        )
        real[view] = measures.measure_real(view, material, training, evaluated, judge, bootstrap, seed=settings.seed)
    return real


def compare_several(results: Sequence[RouteResult]) -> dict[str, Any]:
    """Each route of several prompts beside the better of its single ones, measure by measure, paired over studies."""
    found: dict[str, Any] = {}
    for route in results:
        singles = [one for one in results if one.output == route.output and len(one.inputs) == 1]
        singles = [one for one in singles if one.inputs[0] in route.inputs]
        if len(route.inputs) < 2 or not singles:
            continue
        found[route.short] = {}
        for name in COMPARED:
            if name not in route.measures:
                continue
            best = max(singles, key=lambda one: one.measures[name].value.value)
            own, single = route.measures[name].value, best.measures[name].value
            difference = (own - single).estimate()
            found[route.short][name] = {
                "best_single": best.short,
                "value": own.estimate().as_dict(),
                "single": single.estimate().as_dict(),
                "difference": difference.as_dict(),
                "at_least_as_good": difference.value >= 0,
                "significantly_worse": difference.high < 0,
            }
    return found


def _diversity(evaluated: Evaluated, route: Route, material: Material, settings: RunSettings) -> dict[str, Measure]:
    """1 - SSIM over seeds for a few prompts, beside that of different studies' real images."""
    count = min(settings.diversity_prompts, material.n)
    if count < 2 or settings.diversity_seeds < 2:
        return {}
    few = replace(
        material,
        studies=material.studies[:count],
        reports=material.reports[:count],
        images={view: images[:count] for view, images in material.images.items()},
        labels=material.labels[:count],
    )
    # Seeds far from those of the studies, so that no noise is used twice
    moved = replace(settings, num_samples=settings.diversity_seeds, seed=settings.seed + 1_000_000)
    samples = np.stack(generate(evaluated, route, few, moved), axis=1).astype(np.float64) / 255
    real = material.images[route.output][: count * 2].astype(np.float64) / 255
    pairs = np.stack([real[0 : len(real) // 2 * 2 : 2], real[1::2][: len(real) // 2]], axis=1)
    small = Bootstrap(count, draws=settings.bootstrap, seed=settings.seed)
    others = Bootstrap(max(2, len(pairs)), draws=settings.bootstrap, seed=settings.seed)
    between = others.mean(similarity.diversity(pairs)) if len(pairs) >= 2 else None
    return {
        "diversity": Measure(
            small.mean(similarity.diversity(samples)),
            reference={} if between is None else {"between studies": between},
            space=f"1 - SSIM, window 11, sigma 1.5, {settings.diversity_seeds} seeds a prompt",
        )
    }


def _real_summary(real: RealImages, evaluated: Evaluated, bootstrap: Bootstrap, training: Images) -> dict[str, Any]:
    rebuilt = evaluated.reconstruct(real.view, real.images)
    mean = real.mean_auc
    nothing: dict[str, Any] = {
        "value": float("nan"),
        "low": float("nan"),
        "high": float("nan"),
        "n": real.images.shape[0],
    }
    return {
        "n": len(real.images),
        "training_images": len(training),
        "classifier": real.judge.hash,
        "reconstruction_band_ratio": spectrum.band_ratio(rebuilt, real.images, bootstrap).estimate().as_dict(),
        "reconstruction_radial_power_ratio": measures.power_curve(rebuilt, real.images),
        "reconstruction_psnr": bootstrap.mean(_psnr(rebuilt, real.images)).estimate().as_dict(),
        "frechet_floor": {
            "classifier": real.floor_classifier.estimate().as_dict(),
            "encoder": real.floor_encoder.estimate().as_dict(),
        },
        "label_auc": {"mean": mean.estimate().as_dict() if mean is not None else nothing}
        | {name: one.estimate().as_dict() for name, one in real.auc.items()},
    }


def _psnr(first: Images, second: Images) -> Array:
    error = ((first.astype(np.float64) - second.astype(np.float64)) ** 2).mean(axis=(1, 2))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-9))


def described(settings: RunSettings, evaluated: Evaluated, split: str, material: Material) -> dict[str, Any]:
    """What the results say of how they came about."""
    return settled(settings, evaluated, split) | {
        "n": material.n,
        "report_sections": list(evaluated.sections),
        "band_nyquist": list(spectrum.BAND),
    }


def settled(settings: RunSettings, evaluated: Evaluated, split: str) -> dict[str, Any]:
    """The settings with the model's own defaults where they are open, the model, the split, versions and machine."""
    import torch

    own = {
        name: value for name, value in asdict(settings).items() if value is not None or name not in evaluated.sampling
    }
    return {**evaluated.sampling, **own} | {
        "model": {"name": evaluated.name, "hash": evaluated.hash},
        "split": split,
        "xgem_version": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def prepare_folder(out: Path, results: str, *folders: str, overwrite: bool) -> None:
    """Make the run folder ``out`` with the ``folders`` in it.

    Raises:
        OutputError: it has the file ``results`` already (and not ``overwrite``), or cannot be written.
    """
    if (out / results).exists() and not overwrite:
        raise OutputError(f"{out}: holds results already; choose another folder or pass --overwrite")
    try:
        for folder in (out, *(out / name for name in folders)):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None


def _write_outputs(out: Path, route: Route, samples: Samples, material: Material, settings: RunSettings) -> None:
    """The contact sheet of a route, and for reports all of them beside the real ones."""
    stem = route.name.replace("->", "_to_").replace("+", "_")

    def shown(name: str) -> Any:
        return material.images.get(name, material.reports)

    columns = [(f"prompt: {name}", shown(name)) for name in route.inputs]
    columns += [(f"real {route.output}", shown(route.output))]
    columns += [(f"generated {k + 1}", one) for k, one in enumerate(samples[:4])]
    sheets.write_sheet(out / "sheets" / f"{stem}.png", columns, rows=settings.sheet_rows)
    if isinstance(samples[0], list):
        with (out / "reports" / f"{stem}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["study", "real", *(f"generated_{k + 1}" for k in range(len(samples)))])
            for study, reference, *texts in zip(material.studies, material.reports, *samples, strict=True):
                writer.writerow([study.id, reference, *texts])


def each(routes: Sequence[Shown], n: int, progress: bool) -> Iterator[tuple[Shown, Callable[[int], None]]]:
    """The routes, each with a function that advances its progress bar (on stderr)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        for route in routes:
            task = bar.add_task(route.short, total=n)
            yield route, lambda count, task=task: bar.advance(task, count)


def beats_shuffled(evaluation: Evaluation) -> Mapping[str, Mapping[str, bool]]:
    """For each route and measure with a control: whether the whole interval of the difference lies above zero."""
    return {
        route.short: {
            name: difference.above_zero
            for name, measure in route.measures.items()
            if measure.higher_is_better and (difference := measure.difference) is not None
        }
        for route in evaluation.routes
    }
