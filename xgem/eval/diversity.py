"""Diversity of the samples of one prompt: structural similarity over pairs of seeds (ChexGen)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet
from xgem.eval.record import Metric
from xgem.metrics.fidelity import mean_estimate
from xgem.metrics.similarity import ms_ssim, pairwise, ssim
from xgem.types import InputError

Similarity = Callable[[NDArray[Any], NDArray[Any]], float]


def of_one_prompt(generated: EvalSet) -> list[list[int]]:
    """Groups of rows with the same real item (``pair``) or else the same prompt, of at least two rows each."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, item in enumerate(generated.items):
        if item.pair or item.prompt.strip():
            groups.setdefault(("pair", item.pair) if item.pair else ("prompt", item.prompt), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def similarity_of_seeds(
    real: EvalSet,
    generated: EvalSet,
    findings: Mapping[str, NDArray[np.bool_]] | None = None,
    *,
    seed: int = 0,
    draws: int = 1000,
    prompts: int = 500,
) -> list[Metric]:
    """SSIM and multi-scale SSIM over the pairs of a prompt's samples, averaged per prompt; the lower, the more diverse.

    The reference is the similarity of ``different real images``, read at the size of the generated images, on which
    the metric depends. Only one prompt's samples are in memory at a time.

    Args:
        findings: (n,) by finding, which generated items have it, for separate averages over those prompts; a finding
            that no chosen prompt has is left out.
        prompts: maximum number of prompts, chosen at random.
    """
    real, groups = real.with_images(), of_one_prompt(generated)
    if not groups:
        reason = "no prompt has several samples: diversity needs at least 2 generated images of one `pair` or prompt"
        return [Metric.missing(name, reason) for name in ("ssim", "ms_ssim")]
    # Random prompts, and as many random pairs of real images
    rng = np.random.default_rng([seed, 4])
    chosen = [groups[place] for place in np.sort(rng.permutation(len(groups))[:prompts])]
    order = rng.permutation(len(real))
    real_pairs = [order[place : place + 2] for place in range(0, min(len(order), 2 * len(chosen)) - 1, 2)]
    side = max(next(generated.subset(chosen[0][:1]).batches()).shape[1:])
    metrics: list[Metric] = []
    for name, similarity in (("ssim", ssim), ("ms_ssim", ms_ssim)):
        try:
            values = np.array([_within(generated, rows, similarity) for rows in chosen])
            between = np.array([_within(real, rows, similarity, side) for rows in real_pairs])
        except InputError as error:
            metrics.append(Metric.missing(name, error))
            continue
        options = {"seed": seed, "draws": draws}
        references = {"different real images": mean_estimate(between, **options)} if real_pairs else {}
        for of, columns in {"": np.ones(len(generated), np.bool_), **(findings or {})}.items():
            part = values[[bool(columns[rows[0]]) for rows in chosen]]
            if len(part):
                value = mean_estimate(part, **options)
                unpaired = {} if of else references
                metrics.append(Metric.measured(name, value, unpaired=unpaired, of=of, settings=options))
    return metrics


def _within(items: EvalSet, rows: Any, similarity: Similarity, size: int | None = None) -> float:
    """Mean similarity over all pairs of the images in these rows."""
    return pairwise(items.subset(rows).images(size).astype(np.float64) / 255, similarity)
