"""Several candidates for each sample, of which the one that agrees best with the prompts is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F

from xgem.pipeline.conditioning import encode_prompts, read_prompts
from xgem.types import InputError
from xgem.utils.random import derived_seed

if TYPE_CHECKING:
    from xgem.configs.preset import Preset
    from xgem.pipeline.conditioning import Conditions
    from xgem.pipeline.model import Row, Sample, SamplingModel

_ALIGNED: Final = frozenset({"image_encoder", "text_encoder"})
"""Kinds of prompt encoders whose vectors share one space (XGeM 2.1)."""


def comparable(preset: Preset, group: Sequence[str], prompts: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of modalities whose vectors are compared: each output of a group with each prompt, and outputs.

    Raises:
        InputError: there is no such pair.
    """
    shared = {name for name, one in preset.modalities.items() if one.encoder and _kind(preset, name) in _ALIGNED}
    pairs = [(a, b) for a in group for b in prompts if {a, b} <= shared]
    pairs += [(a, b) for a, b in combinations(group, 2) if {a, b} <= shared]
    if not pairs:
        given = f"given {', '.join(prompts)}" if prompts else "no input"
        raise InputError(
            f"num_candidates: nothing tells candidates for {', '.join(group)} apart ({given}): preset {preset.name!r} "
            f"compares vectors of {', '.join(sorted(shared)) or 'no modality'}; leave it out, or give one of these"
        )
    return pairs


def _kind(preset: Preset, modality: str) -> str:
    return preset.components[preset.encoder(modality)].kind


def agreement(model: SamplingModel, sample: Sample, item: Conditions, pairs: Sequence[tuple[str, str]]) -> float:
    """Mean cosine similarity in [-1, 1] of the prompt encoders' vectors over ``pairs`` of outputs and prompts."""
    outputs = {name: value for name, (value, _) in sample.items()}
    made = encode_prompts(model, read_prompts(model.preset, {name: one for name, one in outputs.items() if one != ""}))
    vectors = {name: F.normalize(one.pooled.float(), dim=1) for name, one in {**item.encoded, **made}.items()}  # (1, d)
    # An empty report has no vector, and agrees with nothing
    cosines = [float((vectors[a] * vectors[b]).sum()) if {a, b} <= vectors.keys() else -1.0 for a, b in pairs]
    return sum(cosines) / len(cosines)


def best_of(
    model: SamplingModel,
    group: Sequence[str],
    rows: Sequence[Row],
    conditions: Sequence[Conditions],
    draw: Callable[[Sequence[Row]], Iterator[tuple[Row, Sample]]],
    *,
    count: int,
    batch_size: int,
) -> Iterator[tuple[Row, Sample]]:
    """For each of ``rows`` the best of ``count`` candidates: ``count`` times the cost.

    The first candidate is the sample of the row itself; the others have seeds derived from its own. Equal ones are
    decided in favour of the earlier. The metadata have the seed of the one that was kept, which replays it alone.
    """
    pairs = [comparable(model.preset, group, list(item.encoded)) for item in conditions]
    rows_at_once = max(1, batch_size // count)
    for start in range(0, len(rows), rows_at_once):
        part = rows[start : start + rows_at_once]
        candidates = [row._replace(seed=_seed(row, group, number)) for row in part for number in range(count)]
        drawn = dict(draw(candidates))
        for position, row in enumerate(part):
            own = candidates[position * count : (position + 1) * count]
            scores = [agreement(model, drawn[one], conditions[row.item], pairs[row.item]) for one in own]
            chosen = int(torch.tensor(scores).argmax())
            sample = drawn[own[chosen]]
            for _, described in sample.values():
                described |= {
                    "seed": own[chosen].seed,
                    "candidates": {"count": count, "chosen": chosen, "agreement": scores[chosen]},
                }
            yield own[chosen], sample


def _seed(row: Row, group: Sequence[str], number: int) -> int:
    return derived_seed(row.seed, "+".join(group), row.number, f"candidate {number}") if number else row.seed
