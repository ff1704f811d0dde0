"""Do images show what a sentence asked for? The finding, its side, a chest at all, and the text's effect on the image.

All numbers are of images (sentences, seeds, s, s) where sample k of every sentence starts from the same noise.
Intervals resample sentences and seeds (:class:`xgem.metrics.bootstrap.CrossedBootstrap`). ``shuffled`` gives each
sentence what another one asked for; ``ceiling`` and ``floor`` are the same judge's numbers on real held-out images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import Images
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.sentences import Sentence
from xgem.judges.judge import Judge
from xgem.judges.sides import group_of
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels
from xgem.metrics.auc import auc, too_few
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, CrossedBootstrap, Sampled, average
from xgem.types import InputError, NotComputed
from xgem.utils.tables import csv_text

FAMILY: Final = "prompts"
CASES: Final = "prompts_cases.csv"
PERMUTATIONS: Final = 20
_EXAMPLES: Final = 4


class Sides(Protocol):
    """Tells sides, as :class:`xgem.judges.sides.SideJudge`."""

    @property
    def groups(self) -> Sequence[str]: ...
    @property
    def told(self) -> Sequence[str]: ...
    @property
    def hash(self) -> str: ...
    def leftness(self, images: Images) -> Array: ...


@dataclass(frozen=True)
class RealImages:
    """Held-out real images of the same size as the generated ones, for ceilings and floors.

    Attributes:
        images: (n, s, s) uint8.
        labels: (n, 14) of 1, 0, NaN, columns as ``CHEXPERT_CLASSES``.
        sides: (n, groups) of 1 (left alone), -1 (right alone) and NaN, as :func:`xgem.judges.sides.sides_of`.
    """

    images: Images
    labels: Array
    sides: Array


Malformed = Callable[[Images], Mapping[str, NDArray[np.bool_]]]
"""(n, s, s) uint8 -> (n,) by space whether an image is malformed there; ``any`` of them."""


@dataclass(frozen=True)
class Looks:
    """What looks at images: judges, or the reason why one is not available.

    ``malformed_real`` is the share of malformed among real images that had no part in the thresholds, by space.
    """

    judge: Judge | NotComputed
    sides: Sides | NotComputed
    malformed: Malformed | NotComputed
    malformed_real: Mapping[str, Sampled]


def evaluate(
    pictures: Images, sentences: Sequence[Sentence], looks: Looks, real: RealImages, *, draws: int = 1000, seed: int = 0
) -> FamilyResult:
    """All metrics of the family.

    Args:
        pictures: (sentences, seeds, s, s) uint8; sample k of every sentence from the same noise.

    Raises:
        InputError: other numbers of pictures and sentences, or fewer than two seeds.
    """
    if pictures.ndim != 4 or len(pictures) != len(sentences) or pictures.shape[1] < 2:
        raise InputError(
            f"pictures {pictures.shape} of {len(sentences)} sentences: expected (sentences, 2 or more, s, s)"
        )
    bootstrap = CrossedBootstrap(*pictures.shape[:2], draws=draws, seed=seed)
    flat = pictures.reshape(-1, *pictures.shape[2:])
    cases: dict[str, Array] = {}
    metrics = [
        *_findings(flat, sentences, looks.judge, real, bootstrap, seed, cases),
        *_sides(flat, sentences, looks.sides, real, bootstrap, seed, cases),
        *_malformed(flat, looks, bootstrap, cases),
        *effects(pictures, sentences, bootstrap, real.images),
    ]
    settings = {
        "sentences": len(sentences),
        "seeds": pictures.shape[1],
        "size": pictures.shape[-1],
        "seed": seed,
        "draws": draws,
        "permutations": PERMUTATIONS,
        "real": len(real.images),
    }
    examples = [
        Example(f"{sentence.text} ({_EXAMPLES} seeds)", list(row[:_EXAMPLES]))
        for sentence, row in zip(sentences, pictures, strict=True)
    ]
    return FamilyResult(
        FAMILY, metrics, settings, examples=examples, tables={CASES: _table(sentences, pictures.shape[1], cases)}
    )


def asked_labels(sentences: Sequence[Sentence]) -> Array:
    """(sentences, 14) of 1, 0 and NaN (neither asked for nor against, such as the parent class of a finding)."""
    rows = [annotated_labels(sentence.findings, "chexpert") for sentence in sentences]
    return np.array([[row.get(name, math.nan) for name in CHEXPERT_CLASSES] for row in rows])


def _orders(known: NDArray[np.bool_], seed: int) -> Iterable[NDArray[np.int64]]:
    """Random orders of the rows that are ``known``; the others stay."""
    rng, rows = np.random.default_rng([seed, 5]), np.flatnonzero(known)
    for _ in range(PERMUTATIONS):
        order = np.arange(len(known))
        order[rows] = rng.permutation(rows)
        yield order


def _findings(
    images: Images,
    sentences: Sequence[Sentence],
    judge: Judge | NotComputed,
    real: RealImages,
    bootstrap: CrossedBootstrap,
    seed: int,
    cases: dict[str, Array],
) -> list[Metric]:
    """AUROC by finding that is asked for, and their mean."""
    labels = asked_labels(sentences)
    asked = [k for k in range(len(CHEXPERT_CLASSES)) if (labels[:, k] == 1).any()]
    if isinstance(judge, NotComputed):
        return [Metric.missing("asked_auroc", judge, of=CHEXPERT_CLASSES[k]) for k in asked]
    named: dict[str, Any] = {"extractor": judge.name, "weights": judge.weights}
    seeds = len(images) // len(sentences)
    scores, of_real = judge.scores(images), judge.scores(real.images)
    metrics: list[Metric] = []
    values: list[Comparison] = []
    ceilings: list[Sampled] = []
    for k in asked:
        name = CHEXPERT_CLASSES[k]
        if name not in judge.classes:
            reason = f"{judge.name} does not know this finding: too few real training images have it"
            metrics.append(Metric.missing("asked_auroc", reason, of=name, **named))
            continue
        column = list(judge.classes).index(name)
        truth = labels[:, k]
        reason = too_few(np.repeat(truth, seeds))
        if reason:
            metrics.append(Metric.missing("asked_auroc", reason, of=name, **named))
            continue
        cases[f"score of {name}"] = scores[:, column]
        matched = auc(scores[:, column], np.repeat(truth, seeds), bootstrap)
        permuted = [
            auc(scores[:, column], np.repeat(truth[order], seeds), bootstrap)
            for order in _orders(np.isfinite(truth), seed)
        ]
        value = Comparison(matched, average(permuted))
        ceiling = _ceiling(of_real[:, column], real.labels[:, k], bootstrap, seed)
        counts = {"sentences": int((truth == 1).sum()), "without": int((truth == 0).sum())}
        counts["real positives"] = int((real.labels[:, k] == 1).sum())
        metrics.append(
            Metric.measured("asked_auroc", value, unpaired={"ceiling": ceiling}, of=name, settings=counts, **named)
        )
        if ceiling is not None:
            values.append(value)
            ceilings.append(ceiling)
    if values:
        mean = Comparison(average([one.matched for one in values]), average([one.shuffled for one in values]))
        about = {"findings": [one.of for one in metrics if "ceiling" in one.references]}
        macro = Metric.measured(
            "asked_auroc_macro", mean, unpaired={"ceiling": average(ceilings)}, settings=about, **named
        )
        metrics.insert(0, macro)
    return metrics


def _ceiling(scores: Array, labels: Array, bootstrap: Bootstrap, seed: int) -> Sampled | None:
    """AUROC on real images; None where they have too few positives or negatives."""
    draws = len(bootstrap.weights) - 1
    return None if too_few(labels) else auc(scores, labels, Bootstrap(len(labels), draws=draws, seed=seed))


def _sides(
    images: Images,
    sentences: Sequence[Sentence],
    judge: Sides | NotComputed,
    real: RealImages,
    bootstrap: CrossedBootstrap,
    seed: int,
    cases: dict[str, Array],
) -> list[Metric]:
    """Share on the asked side: by finding, and over all whose side the judge tells."""
    wanted = np.array([{"left": 1.0, "right": -1.0}.get(str(sentence.side), math.nan) for sentence in sentences])
    findings = sorted({name for one in sentences if one.side for name in one.findings}, key=CHEXPERT_CLASSES.index)
    if isinstance(judge, NotComputed):
        return [Metric.missing("asked_side", judge, of=name) for name in ("", *findings)]
    named: dict[str, Any] = {"extractor": "judge of sides", "weights": judge.hash}
    groups, seeds = list(judge.groups), len(images) // len(sentences)
    leftness, of_real = judge.leftness(images), judge.leftness(real.images)  # (n, groups)
    # The judge's side for what each sentence asks
    first = [_column(one, judge) for one in sentences]
    seen = np.full(len(images), math.nan)
    for row, column in enumerate(first):
        part = slice(row * seeds, (row + 1) * seeds)
        if column is not None and sentences[row].side:
            seen[part] = np.sign(leftness[part, column])
    cases["side seen (1 left, -1 right)"] = seen
    right = np.where(np.isfinite(real.sides), (of_real > 0) == (real.sides > 0), math.nan)  # (n, groups)

    def measured(rows: NDArray[np.bool_], columns: Sequence[int], of: str) -> Metric:
        sided = np.where(rows, wanted, math.nan)
        matched = bootstrap.mean(_agree(seen, np.repeat(sided, seeds)))
        orders = _orders(np.isfinite(sided), seed)
        shuffled = average([bootstrap.mean(_agree(seen, np.repeat(sided[order], seeds))) for order in orders])
        known = right[:, columns].ravel()
        known = known[np.isfinite(known)]
        ceiling = _mean(known, len(bootstrap.weights) - 1, seed) if len(known) > 1 else None
        about = {"sentences": int(rows.sum()), "real, one-sided": len(known)}
        n = int(rows.sum()) * seeds
        value = Comparison(matched, shuffled)
        return Metric.measured("asked_side", value, unpaired={"ceiling": ceiling}, of=of, n=n, settings=about, **named)

    judged = np.array([column is not None and bool(one.side) for column, one in zip(first, sentences, strict=True)])
    metrics: list[Metric] = []
    if judged.any():
        metrics.append(measured(judged, sorted({c for c in first if c is not None}), ""))
    for name in findings:
        rows = np.array([bool(one.side) and name in one.findings for one in sentences])
        group = group_of(name)
        if group is None or group not in judge.told:
            reason = "the judge of sides does not tell it better than chance: too few real images name its side"
            metrics.append(Metric.missing("asked_side", reason, of=name, **named))
        else:
            metrics.append(measured(rows, [groups.index(group)], name))
    return metrics + _sides_apart(leftness, of_real, real.sides, wanted, first, judge, bootstrap, seed)


def _sides_apart(
    leftness: Array,
    of_real: Array,
    real_sides: Array,
    wanted: Array,
    columns: Sequence[int | None],
    judge: Sides,
    bootstrap: CrossedBootstrap,
    seed: int,
) -> list[Metric]:
    """AUROC of left against right, by group of findings, and their mean.

    A judge that calls most images left is no better than chance by the share on the asked side, and may still put those
    that are left before those that are right.
    """
    seeds = len(leftness) // len(wanted)
    metrics: list[Metric] = []
    values: list[Comparison] = []
    ceilings: list[Sampled | None] = []
    for column in sorted({c for c in columns if c is not None}):
        truth = np.where([c == column for c in columns], (wanted + 1) / 2, math.nan)  # 1 left, 0 right
        named: dict[str, Any] = {"of": judge.groups[column], "extractor": "judge of sides", "weights": judge.hash}
        reason = too_few(np.repeat(truth, seeds))
        if reason:
            metrics.append(Metric.missing("asked_side_auroc", reason, **named))
            continue
        matched, *permuted = (
            auc(leftness[:, column], np.repeat(one, seeds), bootstrap)
            for one in (truth, *(truth[order] for order in _orders(np.isfinite(truth), seed)))
        )
        ceilings.append(_ceiling(of_real[:, column], (real_sides[:, column] + 1) / 2, bootstrap, seed))
        values.append(Comparison(matched, average(permuted)))
        metrics.append(
            Metric.measured("asked_side_auroc", values[-1], unpaired={"ceiling": ceilings[-1]}, **named,
                settings={"sentences": int(np.isfinite(truth).sum())})
        )  # fmt: skip
    if values:
        mean = Comparison(average([one.matched for one in values]), average([one.shuffled for one in values]))
        known = [one for one in ceilings if one is not None]
        metrics.insert(
            0, Metric.measured("asked_side_auroc", mean, extractor="judge of sides", weights=judge.hash,
                unpaired={"ceiling": average(known) if len(known) == len(values) else None},
                settings={"groups": [one.of for one in metrics if one.value]})
        )  # fmt: skip
    return metrics


def _column(sentence: Sentence, judge: Sides) -> int | None:
    """The judge's column for the first finding of a sentence whose side it tells."""
    groups = [group_of(name) for name in sentence.findings]
    return next((list(judge.groups).index(name) for name in groups if name is not None and name in judge.told), None)


def _agree(seen: Array, wanted: Array) -> Array:
    """1 where the sides agree, 0.5 where the judge sees none, 0 where not; NaN where no side was asked for."""
    return np.where(np.isfinite(wanted), (1 + seen * wanted) / 2, math.nan)


def _mean(values: Array, draws: int, seed: int) -> Sampled:
    return Bootstrap(len(values), draws=draws, seed=seed).mean(values.astype(np.float64))


def _malformed(images: Images, looks: Looks, bootstrap: CrossedBootstrap, cases: dict[str, Array]) -> list[Metric]:
    """Share of malformed images: in any space, and in each."""
    if isinstance(looks.malformed, NotComputed):
        return [Metric.missing("malformed", looks.malformed)]
    found = looks.malformed(images)
    metrics: list[Metric] = []
    for name in ("any", *(one for one in found if one != "any")):
        values = found[name].astype(np.float64)
        cases[f"malformed, {name}"] = values
        floor = {"floor": looks.malformed_real.get(name)}
        of = "" if name == "any" else name
        metrics.append(Metric.measured("malformed", bootstrap.mean(values), unpaired=floor, of=of))
    return metrics


def effects(pictures: Images, sentences: Sequence[Sentence], bootstrap: CrossedBootstrap, real: Images) -> list[Metric]:
    """Mean absolute differences between images: of two sentences from one noise, of one sentence from two noises.

    Args:
        pictures: (sentences, seeds, s, s) uint8.
        real: (n, s, s) real images; pairs of different ones are the reference of the seed's effect.
    """
    rows, columns = pictures.shape[:2]
    between = np.stack([_differences(pictures[:, k]) for k in range(columns)])  # (seeds, sentences, sentences)
    within = np.stack([_differences(own) for own in pictures])  # (sentences, seeds, seeds)
    by_row, by_column = bootstrap.row_weights, bootstrap.column_weights
    text = _weighted(between, by_column, by_row, np.ones((rows, rows)) - np.eye(rows))
    noise = _weighted(within, by_row, by_column, np.ones((columns, columns)) - np.eye(columns))
    index = {sentence.text: k for k, sentence in enumerate(sentences)}
    partners = np.zeros((rows, rows))
    for k, sentence in enumerate(sentences):
        if sentence.partner in index:
            partners[k, index[sentence.partner]] = 1
    parts = {"": text}
    if partners.any():
        parts["left against right"] = _weighted(between, by_column, by_row, partners)
    few = real[:: max(1, len(real) // 32)][:32]
    apart = {"different real images": _mean(_differences(few)[np.triu_indices(len(few), 1)], len(by_row) - 1, 0)}
    metrics = [Metric.measured("text_effect", bootstrap.sampled(value), of=of) for of, value in parts.items()]
    metrics.append(Metric.measured("seed_effect", bootstrap.sampled(noise), unpaired=apart))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = {of: value / noise for of, value in parts.items()}
    return metrics + [
        Metric.measured("text_over_seed", bootstrap.sampled(ratio), of=of) for of, ratio in ratios.items()
    ]


def _differences(images: Images) -> Array:
    """(n, s, s) -> (n, n) mean absolute differences of grey levels."""
    from scipy.spatial.distance import pdist, squareform

    flat = images.reshape(len(images), -1).astype(np.float32)
    return squareform(pdist(flat, "cityblock") / flat.shape[1])


def _weighted(values: Array, outer: Array, inner: Array, pairs: Array) -> Array:
    """(1 + draws,) means of values (outer, inner, inner) over pairs, by weights (1 + draws, outer or inner)."""
    total = np.einsum("bo,oij,bi,bj->b", outer, values * pairs, inner, inner, optimize=True)
    count = outer.sum(axis=1) * np.einsum("bi,ij,bj->b", inner, pairs, inner, optimize=True)
    return np.divide(total, count, out=np.full(len(total), math.nan), where=count > 0)


def _table(sentences: Sequence[Sentence], seeds: int, cases: Mapping[str, Array]) -> str:
    """One row per image: what was asked, and what the judges see."""
    rows = [
        [one.text, "; ".join(one.findings), one.side or "", k, *(float(v[row * seeds + k]) for v in cases.values())]
        for row, one in enumerate(sentences)
        for k in range(seeds)
    ]
    return csv_text(["sentence", "findings", "side", "sample", *cases], rows)
