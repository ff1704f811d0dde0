"""Several models by their records: ranks, and tests case by case."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from xgem.eval.schema import MetricEntry, Record
from xgem.metrics.bootstrap import Array
from xgem.metrics.significance import NOTE_ON_MANY, PairedTest, holm, wilcoxon
from xgem.types import DataError, InputError


def compare_cases(
    first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike], *, draws: int = 1000, seed: int = 0
) -> dict[str, PairedTest]:
    """:func:`wilcoxon` for every measure that both have, by name, with ``p_holm`` over all of them."""
    names = [name for name in first if name in second]
    if not names:
        raise InputError(f"measures {', '.join(first)} and {', '.join(second)}: expected one that both have")
    tests = {name: wilcoxon(first[name], second[name], draws=draws, seed=seed) for name in names}
    adjusted = holm([one.p for one in tests.values()])
    return {
        name: PairedTest(one.difference, one.n_used, one.statistic, one.p, one.smallest_p, p)
        for (name, one), p in zip(tests.items(), adjusted, strict=True)
    }


def comparison_table(tests: Mapping[str, PairedTest]) -> str:
    """A table of :func:`compare_cases`, with the smallest p that each test can give and the note on many tests."""
    heads = ["measure", "difference [95 %]", "n", "n that differ", "p", "p (Holm)", "smallest possible p"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, one in tests.items():
        adjusted = "" if one.p_holm is None else f"{one.p_holm:.2g}"
        cells = [name, one.difference, one.difference.n, one.n_used, f"{one.p:.2g}", adjusted, f"{one.smallest_p:.2g}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", NOTE_ON_MANY]) + "\n"


def read_cases(first: str | Path, second: str | Path) -> tuple[dict[str, Array], dict[str, Array], list[str]]:
    """Two runs' tables of cases (``text_cases.csv``, ...): numbers by measure for the ids that both have, and the ids.

    A case without a number in either (an empty cell) is left out of all measures.

    Raises:
        DataError: not such a table, or no case in both.
    """
    tables = [_cases(Path(path)) for path in (first, second)]
    ids = [name for name in tables[0] if name in tables[1]]
    columns = [key for key in next(iter(tables[0].values())) if key in next(iter(tables[1].values()))]
    ids = [name for name in ids if all(table[name][key] is not None for table in tables for key in columns)]
    if not ids or not columns:
        raise DataError(f"{first} and {second}: no case with a number in both; expected runs on the same studies")
    one, two = ({key: np.array([table[name][key] for name in ids], float) for key in columns} for table in tables)
    return one, two, ids


def _cases(path: Path) -> dict[str, dict[str, float | None]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        found = {row.pop("id"): {key: float(value) if value else None for key, value in row.items()} for row in rows}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of cases, a column id and numbers ({error})") from None
    if not found:
        raise DataError(f"{path}: no case in it")
    return found


@dataclass(frozen=True)
class RankTable:
    """Models ranked by each measure, 1 the best, ties share their mean (CheXGenBench, Tables 8 and 9).

    ``values`` and ``ranks`` are (models, measures). ``mean_rank`` is the mean over measures, ``overall`` the rank of
    that ("normalized rank" in Table 8). ``left_out`` says why a measure of some record is not here.
    """

    models: tuple[str, ...]
    measures: tuple[str, ...]
    values: Array
    ranks: Array
    left_out: Mapping[str, str]

    @property
    def mean_rank(self) -> Array:
        return self.ranks.mean(axis=1)

    @property
    def overall(self) -> Array:
        from scipy.stats import rankdata

        return rankdata(np.round(self.mean_rank, 9))

    def as_csv(self) -> str:
        """One row a model: a rank a measure, then the mean and its rank."""
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["model", *self.measures, "mean rank", "rank"])
        table.writerows(self._rows())
        return stream.getvalue()

    def as_markdown(self) -> str:
        """The same as a table, with what was left out below."""
        heads = ["model", *self.measures, "mean rank", "rank"]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in self._rows()]
        lines += ["", *(f"- left out: {name}: {reason}" for name, reason in self.left_out.items())]
        return "\n".join(lines).strip() + "\n"

    def _rows(self) -> list[list[str]]:
        return [
            [model, *(f"{one:g}" for one in ranks), f"{mean:.2f}", f"{rank:g}"]
            for model, ranks, mean, rank in zip(self.models, self.ranks, self.mean_rank, self.overall, strict=True)
        ]


def rank(
    models: Sequence[str],
    values: Mapping[str, tuple[Sequence[float], bool]],
    left_out: Mapping[str, str] | None = None,
) -> RankTable:
    """Rank models by several measures.

    Args:
        values: by measure, the models' values in order and whether higher is better.

    Raises:
        InputError: no measure, fewer than two models, or a value that is not finite.
    """
    from scipy.stats import rankdata

    if len(models) < 2 or not values:
        raise InputError(f"{len(models)} models and {len(values)} measures: expected at least two and one")
    table = np.array([one for one, _ in values.values()], dtype=np.float64).reshape(len(values), -1).T
    if table.shape[0] != len(models) or not np.isfinite(table).all():
        raise InputError(f"values of {table.shape[0]} models: expected {len(models)} finite ones a measure")
    signs = np.array([-1.0 if higher else 1.0 for _, higher in values.values()])
    return RankTable(tuple(models), tuple(values), table, rankdata(table * signs, axis=0), left_out or {})


def rank_records(
    records: Mapping[str, Record], *, families: Sequence[str] | None = None, of: bool = False
) -> RankTable:
    """Rank the models of several records by every number that all of them have.

    Args:
        records: by model's name, as :func:`xgem.eval.schema.read_record` gives them.
        families: only these; by default all.
        of: rank by the numbers of single findings or subgroups too.

    A number that some record lacks or that has no better side is left out, with the reason. Numbers of different
    weights or n are not comparable (a Frechet distance grows as n falls), so they are left out as well.
    """
    found = {model: _numbers(record, families, of) for model, record in records.items()}
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    kept: dict[str, tuple[list[float], bool]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        numbers = {model: one.get(name) for model, one in found.items()}
        known = {model: one for model, one in numbers.items() if one is not None and one.value is not None}
        values = [one.value.value for one in known.values() if one.value is not None and one.value.value is not None]
        spaces = {f"{one.weights or 'no weights'}, n {one.value.n}" for one in known.values() if one.value is not None}
        better = next((one.higher_is_better for one in known.values()), None)
        if len(values) < len(numbers):
            left_out[name] = f"not computed for {', '.join(model for model in numbers if model not in known)}"
        elif len(spaces) > 1:
            left_out[name] = f"computed by different judges or at different n: {'; '.join(sorted(spaces))}"
        elif better is None:
            left_out[name] = "neither side is the better one"
        else:
            kept[name] = (values, better)
    if not kept:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise DataError(f"{', '.join(found)}: no number in common that ranks them ({reasons or 'no numbers at all'})")
    return rank(list(found), kept, left_out)


def _numbers(record: Record, families: Sequence[str] | None, of: bool) -> dict[str, MetricEntry]:
    """By family, route, metric, judge or space, and part of the set."""
    return {
        " ".join(filter(None, (family.family, family.route, metric.name, metric.extractor, metric.of))): metric
        for family in record.families
        if families is None or family.family in families
        for metric in family.metrics
        if of or not metric.of
    }
