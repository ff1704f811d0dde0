"""Fidelity of a generated set: distances to real images in several feature spaces, whole and per finding."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.diversity import similarity_of_seeds
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.spaces import PRDC, Bools, Settings, Space
from xgem.judges.extractors import WITH_TEXTS, Extractor, open_extractor
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics import neighbours
from xgem.types import DataError, InputError, NotComputed

MAP_POINTS: Final = 1000
EXAMPLES: Final = 8


def evaluate(
    real: EvalSet,
    generated: EvalSet,
    *,
    extractors: Sequence[str | Extractor],
    training: EvalSet | None = None,
    cache: Path | None = None,
    per_finding: bool = True,
    settings: Settings | None = None,
    diversity_prompts: int = 500,
    device: str | None = None,
    note: str = "",
) -> FamilyResult:
    """FID, KID and PRDC in every extractor's space, alignment with the prompts, diversity over seeds.

    Beside each distance stands what real images reach against real ones at the generated set's size: those of
    ``training`` where given, else the real set's two halves (half its size, which the reference's n tells).

    Args:
        real, generated: items without an image are left out.
        extractors: names (see :mod:`xgem.judges.extractors`) or extractors. The measures of one that cannot be opened
            are recorded as not computed.
        training: other real images: the yardstick, and what ``xgem-classifier`` learns from.
        cache: folder for features.
        per_finding: also for the images of each CheXpert class with label 1 (uncertain and unmentioned ones are
            not). A generation has the labels of the real item that it answers to, by ``pair`` or else by prompt; where
            it answers to none, its own.
        diversity_prompts: at most so many prompts' samples are compared with one another.
        note: ``Extra Info`` of CheXGenBench's tables.

    Raises:
        InputError: a set without images, no extractor, or one of an unknown name.
        DataError: sets too small for the measures; says how many images they need.
    """
    settings = settings or Settings()
    if not extractors:
        raise InputError("fidelity: no feature space was given; name at least one, as rad-dino")
    real, generated = real.with_images(), generated.with_images()
    training = training.with_images() if training else None
    need = settings.k + 1
    if min(len(real), len(generated)) < need:
        raise DataError(
            f"{real.name} has {len(real)} images and {generated.name} {len(generated)}: fidelity needs at least "
            f"{need} of each (PRDC with k {settings.k})"
        )
    findings = _findings(real, generated, training) if per_finding else {}
    everything = (np.ones(len(real), np.bool_), np.ones(len(generated), np.bool_), None)
    if training:
        everything = (*everything[:2], np.ones(len(training), np.bool_))
    metrics: list[Metric] = []
    spaces: list[Space] = []
    for named in extractors:
        try:
            opened = _opened(named, training, cache, device)
        except NotComputed as reason:
            name = str(named).partition("=")[0]
            measures = ("fid", "kid", *PRDC, *(("alignment",) if name.startswith(WITH_TEXTS) else ()))
            metrics += [Metric.missing(measure, reason, extractor=name) for measure in measures]
            continue
        spaces.append(Space.of(opened, real, generated, training, settings, cache))
        for of, (rows, columns, pool) in {"": everything, **findings}.items():
            metrics += spaces[-1].measure(rows, columns, pool, of)
    metrics += similarity_of_seeds(
        real,
        generated,
        {of: columns for of, (_, columns, _) in findings.items()},
        seed=settings.seed,
        draws=settings.bootstrap,
        prompts=diversity_prompts,
    )
    counts = {of: (int(rows.sum()), int(columns.sum())) for of, (rows, columns, _) in findings.items()}
    sets = {"real": real, "generated": generated} | ({"training": training} if training else {})
    return FamilyResult(
        "fidelity",
        metrics,
        settings=asdict(settings)
        | {name: one.described for name, one in sets.items()}
        | {"labelled_by": {name: one.labelled_by for name, one in sets.items()}}
        | {"preprocessing": {space.extractor.name: space.extractor.preprocessing for space in spaces}},
        details={"images_per_finding": {of: {"real": n, "generated": m} for of, (n, m) in counts.items()}},
        plots=_plots(metrics, spaces, counts),
        examples=_strangest(real, generated, spaces[0]) if spaces else (),
        tables=_tables(metrics, list(findings), note),
    )


def _opened(named: str | Extractor, training: EvalSet | None, cache: Path | None, device: str | None) -> Extractor:
    if isinstance(named, Extractor):
        return named
    return open_extractor(named, device=device, training=training, cache=cache)


def _findings(
    real: EvalSet, generated: EvalSet, training: EvalSet | None
) -> dict[str, tuple[Bools, Bools, Bools | None]]:
    """Rows of each CheXpert class that both sets have: label 1; NaN (not mentioned) and -1 (uncertain) are not."""
    by_id = {item.id: item.labels for item in real.items}
    by_prompt = {item.prompt: item.labels for item in real.items if item.prompt.strip()}

    def asked(name: str) -> Bools:
        found = [
            by_id.get(item.pair or item.id) or by_prompt.get(item.prompt) or item.labels for item in generated.items
        ]
        return np.array([labels.get(name) == 1 for labels in found], dtype=np.bool_)

    labels, known = real.labels() == 1, None if training is None else training.labels() == 1
    found = {
        name: (labels[:, k], asked(name), None if known is None else known[:, k])
        for k, name in enumerate(CHEXPERT_CLASSES)
    }
    return {name: three for name, three in found.items() if three[0].any() and three[1].any()}


def _strangest(real: EvalSet, generated: EvalSet, space: Space) -> list[Example]:
    """The generated images farthest from any real one, each beside its nearest real one."""
    distances, index = neighbours.nearest(space.generated, space.real)
    examples: list[Example] = []
    for row in np.argsort(-distances[:, 0], kind="stable")[:EXAMPLES]:
        own, other = generated.items[row], real.items[index[row, 0]]
        caption = f"generated {own.id}, {distances[row, 0]:.3g} from real {other.id} ({space.extractor.name})"
        shown = [one.subset([place]).images()[0] for one, place in ((generated, row), (real, index[row, 0]))]
        examples.append(Example(caption, shown))
    return examples


def _plots(
    metrics: Sequence[Metric], spaces: Sequence[Space], counts: Mapping[str, tuple[int, int]]
) -> dict[str, bytes]:
    by_key = {(one.name, one.extractor, one.of): one for one in metrics}
    drawn: dict[str, bytes] = {}
    for space in spaces:
        name = space.extractor.name
        found = [by_key[measure, name, ""] for measure in PRDC]
        series = {"generated": [one.value for one in found]}
        series |= {"real": [one.references.get("ceiling") for one in found]}
        drawn[f"Precision, recall, density, coverage ({name})"] = plots.bars(PRDC, series)
        if counts:
            found = [by_key["fid", name, of] for of in counts]
            series = {"generated": [one.value for one in found]}
            series |= {"real": [one.references.get("floor") for one in found]}
            drawn[f"Frechet distance per finding ({name}); n: generated images"] = plots.bars(
                list(counts), series, label="FID", counts=[m for _, m in counts.values()]
            )
        drawn[f"Real and generated images, t-SNE ({name})"] = _map(space)
    return drawn


def _map(space: Space) -> bytes:
    """t-SNE (van der Maaten & Hinton 2008) of at most 1,000 images of each set."""
    from sklearn.manifold import TSNE

    rng = np.random.default_rng([space.settings.seed, 5])
    parts = [one[np.sort(rng.permutation(len(one))[:MAP_POINTS])] for one in (space.real, space.generated)]
    points = np.concatenate(parts)
    perplexity = min(30.0, (len(points) - 1) / 3)
    placed = TSNE(perplexity=perplexity, random_state=space.settings.seed, init="pca").fit_transform(points)
    return plots.scatter({"real": placed[: len(parts[0])], "generated": placed[len(parts[0]) :]})


_SPACES: Final = {"": "inception-v3", " (RadDino)": "rad-dino"}


def _tables(metrics: Sequence[Metric], findings: Sequence[str], note: str) -> dict[str, str]:
    """CheXGenBench's files, with empty cells for what was not computed; its PRDC is of RAD-DINO's space."""
    values = {(one.name, one.extractor, one.of): one.value.value for one in metrics if one.value is not None}

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
        tables[f"{stem}.csv"] = _csv([row("") | {"Extra Info": note}])
        if findings:
            rows = [row(of) | {"Extra Info": note, "Pathology": of} for of in findings]
            tables[f"conditional_{stem}.csv"] = _csv(rows)
    return tables


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return stream.getvalue()
