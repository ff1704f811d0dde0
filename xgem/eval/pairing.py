"""What the families that compare a generation with its real study share: the pairing, its settings, its numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xgem.data.sets import EvalSet, pairs
from xgem.metrics.bootstrap import Comparison, Estimate, Sampled


def one_each(real: EvalSet, generated: EvalSet) -> tuple[EvalSet, EvalSet]:
    """Both sets row by row in the real set's order: the first generation of every real study that has any.

    Studies are what is resampled, so that a study with many generations must not count as many.

    Raises:
        DataError: no generation names a real item.
    """
    matched, answers = pairs(real, generated)
    first: dict[str, int] = {}
    for row, item in enumerate(matched.items):
        first.setdefault(item.id, row)
    rows = [first[item.id] for item in real.items if item.id in first]
    return matched.subset(rows), answers.subset(rows)


def described(real: EvalSet, generated: EvalSet, *, n: int, draws: int, seed: int, **more: Any) -> dict[str, Any]:
    """The settings that every record has: seed, resamplings, both sets with their sizes and hashes."""
    both = (("real", real), ("generated", generated))
    sets = {key: one.described for key, one in both}
    return {
        "seed": seed,
        "bootstrap": f"{draws} resamplings of studies",
        "n": n,
        "pairs": "the first generation of each real study",
        **sets,
        **more,
    }


def numbers(
    compared: Comparison, *, n: int | None = None, beside: Mapping[str, Sampled | None] | None = None
) -> tuple[Estimate, dict[str, Estimate]]:
    """A matched measure, and beside it the shuffled control, their paired difference, and further yardsticks.

    ``n`` is the number of studies behind it where that is not all of the bootstrap's.
    """

    def estimate(one: Sampled) -> Estimate:
        found = one.estimate()
        return found if n is None else replace(found, n=n)

    references = {"shuffled": estimate(compared.shuffled), "less shuffled": estimate(compared.difference)}
    references |= {name: estimate(one) for name, one in (beside or {}).items() if one is not None}
    return estimate(compared.matched), references


def as_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV text; None becomes an empty cell."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(heads)
    table.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return stream.getvalue()
