"""Fidelity of a generated set: distances to real images in several feature spaces, overall and per finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.diversity import similarity_of_seeds
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.spaces import PRDC, Bools, RadiomicSpace, Settings, Space
from xgem.judges.extractors import WITH_TEXTS, Extractor, open_extractor
from xgem.judges.extractors.radiomic import NAME as RADIOMICS
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics import neighbours
from xgem.metrics.bootstrap import Estimate
from xgem.metrics.significance import rank_correlation
from xgem.types import DataError, InputError, NotComputed
from xgem.utils.tables import csv_text

MAP_POINTS: Final = 1000
EXAMPLES: Final = 8


def evaluate(
    real: EvalSet,
    generated: EvalSet,
    *,
    extractors: Sequence[str | Extractor] | Mapping[str, Extractor | NotComputed],
    training: EvalSet | None = None,
    cache: Path | None = None,
    per_finding: bool = True,
    settings: Settings | None = None,
    diversity_prompts: int = 500,
    device: str | None = None,
    note: str = "",
) -> FamilyResult:
    """FID, KID and PRDC in every extractor's space, alignment with the prompts, diversity over seeds.

    The reference of each distance is the distance between real images and other real ones at the generated set's size:
    those of ``training`` if given, else the two halves of the real set (with half its n).

    Args:
        real, generated: items without an image are left out.
        extractors: names (see :mod:`xgem.judges.extractors`) or extractors, or extractors by name with the reason for
            those that are not available. The metrics of one that cannot be opened are recorded as not computed.
        training: other real images: the reference, and the training set of ``xgem-classifier``.
        cache: folder for features.
        per_finding: also for the images with label 1 of each CheXpert class (not uncertain or unmentioned). A generated
            item has the labels of the real item that it names (``pair``) or whose prompt it has; otherwise its own.
        diversity_prompts: maximum number of prompts whose samples are compared with one another.
        note: ``Extra Info`` in CheXGenBench's tables.

    Raises:
        InputError: a set without images, no extractor, or an unknown extractor.
        DataError: sets too small for the metrics; the message says how many images they need.
    """
    # Rows of the whole sets, and of each finding
    settings = settings or Settings()
    if not extractors:
        raise InputError("fidelity: no feature space was given; give at least one, such as rad-dino")
    real, generated = real.with_images(), generated.with_images()
    training = training.with_images() if training else None
    _check_sizes(real, generated, settings.k)
    findings = _findings(real, generated, training) if per_finding else {}
    pool = None if training is None else np.ones(len(training), np.bool_)
    parts = {"": (np.ones(len(real), np.bool_), np.ones(len(generated), np.bool_), pool), **findings}

    # Every feature space that can be opened, over all images and finding by finding
    metrics: list[Metric] = []
    spaces: list[Space] = []
    for name, extractor in _opened(extractors, training, cache, device):
        if isinstance(extractor, NotComputed):
            metrics += _missing(name, extractor)
            continue
        space = _kind(extractor).of(extractor, real, generated, training, settings, cache)
        spaces.append(space)
        for of, (rows, columns, others) in parts.items():
            metrics += space.measure(rows, columns, others, of)
    metrics += similarity_of_seeds(
        real,
        generated,
        {of: columns for of, (_, columns, _) in findings.items()},
        seed=settings.seed,
        draws=settings.bootstrap,
        prompts=diversity_prompts,
    )

    compared = [space for space in spaces if not isinstance(space, RadiomicSpace)]
    counts = {of: (int(rows.sum()), int(columns.sum())) for of, (rows, columns, _) in findings.items()}
    sets = {"real": real, "generated": generated} | ({"training": training} if training else {})
    return FamilyResult(
        "fidelity",
        metrics,
        settings=asdict(settings)
        | {name: items.described for name, items in sets.items()}
        | {"labelled_by": {name: items.labelled_by for name, items in sets.items()}}
        | {"preprocessing": {space.extractor.name: space.extractor.preprocessing for space in spaces}},
        details={"images_per_finding": {of: {"real": n, "generated": m} for of, (n, m) in counts.items()}}
        | {"rank correlation of real images and FID over findings": _frequent_first(metrics, spaces, counts)},
        plots=_plots(metrics, compared, counts),
        examples=_farthest(real, generated, compared[0]) if compared else (),
        tables=_tables(metrics, list(findings), note),
    )


def _kind(extractor: Extractor) -> type[Space]:
    return RadiomicSpace if extractor.name == RADIOMICS else Space


def _missing(name: str, reason: NotComputed) -> list[Metric]:
    """The metrics of a space that cannot be opened."""
    keys = ("fid", "kid", *PRDC, *(("alignment",) if name.startswith(WITH_TEXTS) else ()))
    return [Metric.missing(key, reason, extractor=name) for key in keys]


def _check_sizes(real: EvalSet, generated: EvalSet, k: int) -> None:
    """Raises DataError if a set is too small for PRDC with ``k`` neighbours."""
    if min(len(real), len(generated)) < k + 1:
        raise DataError(
            f"{real.name} has {len(real)} images and {generated.name} {len(generated)}: fidelity needs at least "
            f"{k + 1} of each (PRDC with k {k})"
        )


def _opened(
    extractors: Sequence[str | Extractor] | Mapping[str, Extractor | NotComputed],
    training: EvalSet | None,
    cache: Path | None,
    device: str | None,
) -> Iterator[tuple[str, Extractor | NotComputed]]:
    """Each extractor by its name, opened one at a time, or the reason why it cannot be opened."""
    if isinstance(extractors, Mapping):
        yield from extractors.items()
        return
    for entry in extractors:
        if isinstance(entry, Extractor):
            yield entry.name, entry
            continue
        try:
            yield entry, open_extractor(entry, device=device, training=training, cache=cache)
        except NotComputed as reason:
            yield entry.partition("=")[0], reason


def _findings(
    real: EvalSet, generated: EvalSet, training: EvalSet | None
) -> dict[str, tuple[Bools, Bools, Bools | None]]:
    """Rows with label 1 (not -1, uncertain, or NaN, unmentioned) of each CheXpert class that both sets have.

    A generated image has the labels of the real study that it answers to, else its own, else those of a real study
    with the same prompt.
    """
    by_id = {item.id: item.labels for item in real.items}
    by_prompt = {item.prompt: item.labels for item in real.items if item.prompt.strip()}
    requested = [
        by_id.get(item.pair or item.id) or item.labels or by_prompt.get(item.prompt, {}) for item in generated.items
    ]
    labels, known = real.labels() == 1, None if training is None else training.labels() == 1
    rows = {
        name: (
            labels[:, k],
            np.array([of_item.get(name) == 1 for of_item in requested], dtype=np.bool_),
            None if known is None else known[:, k],
        )
        for k, name in enumerate(CHEXPERT_CLASSES)
    }
    return {name: parts for name, parts in rows.items() if parts[0].any() and parts[1].any()}


def _frequent_first(
    metrics: Sequence[Metric], spaces: Sequence[Space], counts: Mapping[str, tuple[int, int]]
) -> dict[str, dict[str, float]]:
    """Whether frequent findings have low distances, by space (CheXGenBench, Table 10); needs three findings."""
    distances = {(metric.extractor, metric.of): metric.value for metric in metrics if metric.name == "fid"}
    found: dict[str, dict[str, float]] = {}
    for space in spaces:
        name = space.extractor.name
        pairs = [(-n, value.value) for of, (n, _) in counts.items() if (value := distances.get((name, of))) is not None]
        if len(pairs) > 2:
            rho, p = rank_correlation(*zip(*pairs, strict=True))
            found[name] = {"rho": rho, "p": p, "findings": len(pairs)}
    return found


def _farthest(real: EvalSet, generated: EvalSet, space: Space) -> list[Example]:
    """The generated images farthest from any real one, each with its nearest real one."""
    distances, index = neighbours.nearest(space.generated, space.real)
    examples: list[Example] = []
    for row in np.argsort(-distances[:, 0], kind="stable")[:EXAMPLES]:
        nearest = int(index[row, 0])
        names = f"generated {generated.items[row].id}, {distances[row, 0]:.3g} from real {real.items[nearest].id}"
        images = [items.subset([place]).images()[0] for items, place in ((generated, row), (real, nearest))]
        examples.append(Example(f"{names} ({space.extractor.name})", images))
    return examples


def _plots(
    metrics: Sequence[Metric], spaces: Sequence[Space], counts: Mapping[str, tuple[int, int]]
) -> dict[str, bytes]:
    """Bars of PRDC and of FID per finding, and a map of the images, for each feature space."""
    by_key = {(metric.name, metric.extractor, metric.of): metric for metric in metrics}
    drawn: dict[str, bytes] = {}

    def series(keys: Sequence[tuple[str, str, str]], reference: str) -> dict[str, list[Estimate | None]]:
        real = [by_key[key].references.get(reference) for key in keys]
        return {"generated": [by_key[key].value for key in keys], "real": [value and value.value for value in real]}

    for space in spaces:
        name = space.extractor.name
        prdc = series([(key, name, "") for key in PRDC], "ceiling")
        drawn[f"Precision, recall, density, coverage ({name})"] = plots.bars(PRDC, prdc)
        if counts:
            fid = series([("fid", name, of) for of in counts], "floor")
            drawn[f"Frechet distance per finding ({name}); n: generated images"] = plots.bars(
                list(counts), fid, label="FID", counts=[m for _, m in counts.values()]
            )
        drawn[f"Real and generated images, t-SNE ({name})"] = _map(space)
    return drawn


def _map(space: Space) -> bytes:
    """t-SNE map (van der Maaten & Hinton 2008) of at most 1,000 images of each set."""
    from sklearn.manifold import TSNE

    rng = np.random.default_rng([space.settings.seed, 5])
    parts = [rows[np.sort(rng.permutation(len(rows))[:MAP_POINTS])] for rows in (space.real, space.generated)]
    points = np.concatenate(parts)
    perplexity = min(30.0, (len(points) - 1) / 3)
    placed = TSNE(perplexity=perplexity, random_state=space.settings.seed, init="pca").fit_transform(points)
    return plots.scatter({"real": placed[: len(parts[0])], "generated": placed[len(parts[0]) :]})


_SPACES: Final = {"": "inception-v3", " (RadDino)": "rad-dino"}


def _tables(metrics: Sequence[Metric], findings: Sequence[str], note: str) -> dict[str, str]:
    """CheXGenBench's files, with empty cells for metrics that were not computed; its PRDC is in RAD-DINO's space."""
    values = {
        (metric.name, metric.extractor, metric.of): metric.value.value for metric in metrics if metric.value is not None
    }

    def image_row(of: str) -> dict[str, Any]:
        row = {
            f"{name.upper()}{tail}": values.get((name, space, of))
            for name in ("fid", "kid")
            for tail, space in _SPACES.items()
        }
        return row | {name.capitalize(): values.get((name, "rad-dino", of)) for name in PRDC}

    def text_row(of: str) -> dict[str, Any]:
        return {"Alignment_score": values.get(("alignment", "biovil-t", of))}

    tables: dict[str, str] = {}
    for stem, row in (("image_generation_metrics", image_row), ("img_text_alignment", text_row)):
        if all(value is None for value in row("").values()):
            continue
        overall = row("") | {"Extra Info": note}
        tables[f"{stem}.csv"] = csv_text(list(overall), [overall])
        if findings:
            heads = [*overall, "Pathology"]
            rows = [row(of) | {"Extra Info": note, "Pathology": of} for of in findings]
            tables[f"conditional_{stem}.csv"] = csv_text(heads, rows)
    return tables
