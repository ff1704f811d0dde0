"""Pairing of generated items with their real studies, shared by several families, and its settings."""

from __future__ import annotations

from typing import Any

from xgem.data.sets import EvalSet, pairs


def one_each(real: EvalSet, generated: EvalSet) -> tuple[EvalSet, EvalSet]:
    """Both sets row by row in the real set's order: the first generated item of every real study that has one.

    The bootstrap resamples studies, so a study with many generated items must count once.

    Raises:
        DataError: no generated item names a real one.
    """
    matched, answers = pairs(real, generated)
    first: dict[str, int] = {}
    for row, item in enumerate(matched.items):
        first.setdefault(item.id, row)
    rows = [first[item.id] for item in real.items if item.id in first]
    return matched.subset(rows), answers.subset(rows)


def paired_settings(
    real: EvalSet, generated: EvalSet, *, n: int, draws: int, seed: int, **options: Any
) -> dict[str, Any]:
    """The settings in every such record: seed, resamplings, both sets with their sizes and hashes."""
    return {
        "seed": seed,
        "bootstrap": f"{draws} resamplings of studies",
        "n": n,
        "pairs": "the first generation of each real study",
        "real": real.described,
        "generated": generated.described,
        **options,
    }
