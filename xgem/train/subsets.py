"""What a sample of a batch is drawn from: studies, and Multi-Prompt Training's prompts (XGeM 2.2)."""

from __future__ import annotations

import random
from collections.abc import Sequence


def draw_prompts(present: Sequence[str], target: str, rng: random.Random, null_probability: float) -> frozenset[str]:
    """The prompts of one sample: a uniformly drawn non-empty subset of ``present`` without ``target``.

    With n modalities besides the target, each of the 2^n - 1 subsets has the same probability. With
    ``null_probability``, or where nothing but the target is present, the result is empty: the null context, which
    classifier-free guidance needs. ``target`` is never among the prompts.
    """
    candidates = sorted(set(present) - {target})
    if not candidates or rng.random() < null_probability:
        return frozenset()
    chosen = rng.randrange(1, 2 ** len(candidates))
    return frozenset(name for bit, name in enumerate(candidates) if chosen >> bit & 1)


def enriched(studies: Sequence[int], rare: Sequence[int], share: float, rng: random.Random) -> list[int]:
    """``studies``, of which about ``share`` made way for some of ``rare``, drawn with even chance."""
    return [rng.choice(rare) if share and rng.random() < share else study for study in studies]
