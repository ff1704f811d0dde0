"""Measures of generated reports: BLEU and label F1, each with matched and shuffled prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgem.eval.statistics import Array, Bootstrap, Comparison, derangements
from xgem.types import InputError

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

MAX_ORDER = 4


def _bleu() -> BLEU:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise InputError("BLEU needs the package sacrebleu, which is not installed: install xgem[eval]") from error
    # effective_order keeps short sentences' counts; the corpus score below never smooths
    return BLEU(lowercase=True, tokenize="13a", smooth_method="none", effective_order=True)


def bleu_signature() -> str:
    """How BLEU is computed, in sacrebleu's words, with its version."""
    import sacrebleu

    return f"corpus BLEU-1..4, cumulative, case:lc, tok:13a, smooth:none, sacrebleu {sacrebleu.__version__}"


def bleu_statistics(outputs: Sequence[str], references: Sequence[str]) -> Array:
    """Sufficient statistics of BLEU for each of n pairs.

    Returns:
        (n, 10): four counts of matching n-grams, four counts of the output's n-grams, output length, reference length.
    """
    metric = _bleu()
    cache: dict[tuple[str, str], list[float]] = {}
    rows: list[list[float]] = []
    for output, reference in zip(outputs, references, strict=True):
        key = (output, reference)
        if key not in cache:
            score = metric.sentence_score(output, [reference])
            cache[key] = [*score.counts, *score.totals, score.sys_len, score.ref_len]
        rows.append(cache[key])
    return np.array(rows, dtype=np.float64).reshape(len(rows), 2 * MAX_ORDER + 2)


def bleu_from_statistics(statistics: Array, order: int) -> Array:
    """Cumulative corpus BLEU of orders 1 to ``order`` (Papineni et al. 2002) in [0, 1] of summed counts (..., 10)."""
    matches, totals = statistics[..., :order], statistics[..., MAX_ORDER : MAX_ORDER + order]
    output_length, reference_length = statistics[..., -2], statistics[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.log(matches / totals).mean(axis=-1)
        brevity = np.minimum(0.0, 1 - reference_length / output_length)
        score = np.exp(precision + brevity)
    return np.where((matches > 0).all(axis=-1) & (output_length > 0), np.nan_to_num(score, nan=0.0), 0.0)


def corpus_bleu(outputs: Sequence[str], references: Sequence[str]) -> tuple[float, float, float, float]:
    """Corpus BLEU-1, -2, -3, -4 (cumulative, no smoothing, lower case, tokenizer 13a), each in [0, 1]."""
    total = bleu_statistics(outputs, references).sum(axis=0)
    one, two, three, four = (float(bleu_from_statistics(total, order)) for order in range(1, MAX_ORDER + 1))
    return one, two, three, four


def compare_bleu(
    outputs: Sequence[str], references: Sequence[str], bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> dict[str, Comparison]:
    """BLEU-1..4 of matched pairs beside the same outputs dealt to other studies (mean over derangements)."""
    own = bleu_statistics(outputs, references)
    weights = bootstrap.weights
    dealt = [
        weights @ bleu_statistics([outputs[int(j)] for j in order], references)
        for order in derangements(len(outputs), permutations, seed)
    ]
    result: dict[str, Comparison] = {}
    for order in range(1, MAX_ORDER + 1):
        matched = bootstrap.sampled(bleu_from_statistics(weights @ own, order))
        shuffled = bootstrap.sampled(np.mean([bleu_from_statistics(d, order) for d in dealt], axis=0))
        result[f"bleu_{order}"] = Comparison(matched, shuffled)
    return result


def compare_f1(truth: NDArray[np.bool_], predicted: NDArray[np.bool_], bootstrap: Bootstrap) -> dict[str, Comparison]:
    """Micro and macro F1 of (n, classes) labels, matched and shuffled.

    Macro averages over the classes that are affirmed at least once in ``truth``: elsewhere F1 is not defined. The
    shuffled control pools all pairs of different studies; F1 is linear in the true positives, so this is exactly the
    mean over random derangements.

    Returns:
        ``micro_f1`` and ``macro_f1``.
    """
    if truth.shape != predicted.shape or truth.shape[0] != bootstrap.n:
        raise InputError(
            f"labels of shapes {truth.shape} and {predicted.shape}: expected two of ({bootstrap.n}, classes)"
        )
    y, p, w = truth.astype(np.float64), predicted.astype(np.float64), bootstrap.weights
    support, called = w @ y, w @ p
    own = w @ (y * p)
    squares = w**2
    crossed = support * called - squares @ (y * p)  # sum over pairs of different studies
    scale = bootstrap.n / (bootstrap.n**2 - squares.sum(axis=1, keepdims=True))
    kept = np.asarray(truth.any(axis=0), dtype=np.bool_)
    return {
        name: Comparison(
            bootstrap.sampled(score(own, support, called, kept)),
            bootstrap.sampled(score(crossed * scale, support, called, kept)),
        )
        for name, score in (("micro_f1", _micro), ("macro_f1", _macro))
    }


def class_f1(
    truth: NDArray[np.bool_], predicted: NDArray[np.bool_], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """F1, support and number of predictions of each class; F1 is None where the class is nowhere affirmed."""
    result: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(classes):
        hits, support, called = (
            int((truth[:, k] & predicted[:, k]).sum()),
            int(truth[:, k].sum()),
            int(predicted[:, k].sum()),
        )
        f1 = 2 * hits / (support + called) if support + called else None
        result[name] = {"f1": f1, "support": support, "predicted": called}
    return result


def _micro(hits: Array, support: Array, called: Array, kept: NDArray[np.bool_]) -> Array:
    bottom = support.sum(axis=1) + called.sum(axis=1)
    return np.where(bottom > 0, 2 * hits.sum(axis=1) / np.maximum(bottom, 1e-12), np.nan)


def _macro(hits: Array, support: Array, called: Array, kept: NDArray[np.bool_]) -> Array:
    """Mean over the kept classes; in a resampling that lost a class's positives, over those left."""
    defined = (support > 0) & kept
    f1 = np.where(defined, 2 * hits / np.maximum(support + called, 1e-12), 0.0)
    count = defined.sum(axis=1)
    return np.where(count > 0, f1.sum(axis=1) / np.maximum(count, 1), np.nan)


def most_frequent(reports: Sequence[str]) -> str:
    """The report that occurs most often (ties: the one that comes first); the constant baseline."""
    counts = Counter(report for report in reports if report.strip())
    if not counts:
        raise InputError("no report at all: the constant baseline needs training impressions")
    return counts.most_common(1)[0][0]


def distinct(reports: Sequence[str]) -> int:
    """Number of different reports, ignoring case and white space."""
    return len({" ".join(report.lower().split()) for report in reports})
