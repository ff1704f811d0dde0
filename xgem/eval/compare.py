"""Comparison of models by their results: paired tests over cases, and ranks from records."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from xgem.eval.schema import FamilyEntry, MetricEntry, Record
from xgem.metrics.bootstrap import Array
from xgem.metrics.significance import NOTE_ON_MANY, PairedTest, holm, wilcoxon
from xgem.types import DataError, InputError
from xgem.utils.tables import csv_text, markdown_table

CASES: Final = "_cases.csv"
"""Suffix of tables of cases, such as ``text_cases.csv``: a column ``id``, and one column per metric."""


def compare_cases(
    first: Mapping[str, ArrayLike], second: Mapping[str, ArrayLike], *, draws: int = 1000, seed: int = 0
) -> dict[str, PairedTest]:
    """:func:`wilcoxon` for every metric that both runs have, by name, with ``p_holm`` over all of them.

    Raises:
        InputError: no metric in common.
    """
    names = [name for name in first if name in second]
    if not names:
        raise InputError(f"metrics {', '.join(first)} and {', '.join(second)}: expected one that both have")
    tests = {name: wilcoxon(first[name], second[name], draws=draws, seed=seed) for name in names}
    adjusted = holm([test.p for test in tests.values()])
    return {name: replace(test, p_holm=p) for (name, test), p in zip(tests.items(), adjusted, strict=True)}


def compare_runs(first: Path, second: Path, *, draws: int = 1000, seed: int = 0) -> dict[str, PairedTest]:
    """Paired tests of two runs on the same studies, with ``p_holm`` over all of them.

    Args:
        first, second: two tables of cases, or two run folders, whose common tables are all compared.

    Raises:
        DataError: not such tables, or no table or no case in common.
    """
    tests: dict[str, PairedTest] = {}
    for name, tables in _tables(first, second).items():
        a, b, _ = read_cases(*tables)
        prefix = name.removesuffix(CASES) + ": " if first.is_dir() else ""
        tests |= {prefix + key: test for key, test in compare_cases(a, b, draws=draws, seed=seed).items()}
    adjusted = holm([test.p for test in tests.values()])
    return {name: replace(test, p_holm=p) for (name, test), p in zip(tests.items(), adjusted, strict=True)}


def _tables(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """Both runs' tables of cases by file name."""
    if not first.is_dir() and not second.is_dir():
        return {first.name: (first, second)}
    if not first.is_dir() or not second.is_dir():
        raise DataError(f"{first} and {second}: expected two tables of cases or two run folders")
    names = sorted(path.name for path in first.glob(f"*{CASES}") if (second / path.name).is_file())
    if not names:
        raise DataError(f"{first} and {second}: no table *{CASES} in both; expected run folders of `xgem eval`")
    return {name: (first / name, second / name) for name in names}


def comparison_table(tests: Mapping[str, PairedTest]) -> str:
    """A Markdown table of paired tests, with the smallest possible p of each and the note on multiple tests."""
    heads = ("metric", "difference [95 %]", "n", "n that differ", "p", "p (Holm)", "smallest possible p")
    rows = [
        [
            *(name, test.difference, test.difference.n, test.n_used, f"{test.p:.2g}"),
            *("" if test.p_holm is None else f"{test.p_holm:.2g}", f"{test.smallest_p:.2g}"),
        ]
        for name, test in tests.items()
    ]
    return f"{markdown_table(heads, rows)}\n\n{NOTE_ON_MANY}\n"


def comparison_json(tests: Mapping[str, PairedTest]) -> dict[str, Any]:
    """Paired tests as JSON values."""
    return {name: asdict(test) | {"difference": test.difference.as_dict()} for name, test in tests.items()}


def read_cases(first: str | Path, second: str | Path) -> tuple[dict[str, Array], dict[str, Array], list[str]]:
    """Two runs' tables of cases (``text_cases.csv``, ...): values by metric for the common ids, and these ids.

    A case with an empty cell in either table is left out for all metrics.

    Raises:
        DataError: not such a table, or no case in both.
    """
    tables = [_cases(Path(path)) for path in (first, second)]
    ids = [name for name in tables[0] if name in tables[1]]
    columns = [key for key in next(iter(tables[0].values())) if key in next(iter(tables[1].values()))]
    ids = [name for name in ids if all(table[name][key] is not None for table in tables for key in columns)]
    if not ids or not columns:
        raise DataError(f"{first} and {second}: no case with a number in both; expected runs on the same studies")
    a, b = ({key: np.array([table[name][key] for name in ids], float) for key in columns} for table in tables)
    return a, b, ids


def _cases(path: Path) -> dict[str, dict[str, float | None]]:
    """A table's values by id and metric; None for an empty cell."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        cases = {row.pop("id"): {key: float(value) if value else None for key, value in row.items()} for row in rows}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of cases, with a column id and numbers ({error})") from None
    if not cases:
        raise DataError(f"{path}: the table has no cases")
    return cases


@dataclass(frozen=True)
class RankTable:
    """Models ranked by each metric, 1 is the best, ties get their mean rank (CheXGenBench, Tables 8 and 9).

    ``values`` and ``ranks`` are (models, metrics). ``mean_rank`` is the mean over metrics, ``overall`` the rank of
    that mean ("normalized rank" in Table 8). ``left_out`` gives the reasons why metrics are not included.
    """

    models: tuple[str, ...]
    metrics: tuple[str, ...]
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

    @property
    def heads(self) -> list[str]:
        return ["model", *self.metrics, "mean rank", "rank"]

    def as_csv(self) -> str:
        """One row per model: a rank for each metric, then the mean and its rank."""
        return csv_text(self.heads, self._rows())

    def as_markdown(self) -> str:
        """The same as a Markdown table, followed by the metrics that were left out."""
        left_out = [f"- left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join([markdown_table(self.heads, self._rows()), "", *left_out]).strip() + "\n"

    def _rows(self) -> list[list[str]]:
        return [
            [model, *(f"{rank:g}" for rank in ranks), f"{mean:.2f}", f"{overall:g}"]
            for model, ranks, mean, overall in zip(self.models, self.ranks, self.mean_rank, self.overall, strict=True)
        ]


def rank(
    models: Sequence[str],
    values: Mapping[str, tuple[Sequence[float], bool]],
    left_out: Mapping[str, str] | None = None,
) -> RankTable:
    """Rank models by several metrics.

    Args:
        values: by metric, the values of the models in order, and whether higher is better.

    Raises:
        InputError: no metric, fewer than two models, or a value that is not finite.
    """
    from scipy.stats import rankdata

    if len(models) < 2 or not values:
        raise InputError(f"{len(models)} models and {len(values)} metrics: expected at least 2 models and 1 metric")
    table = np.array([numbers for numbers, _ in values.values()], dtype=np.float64).reshape(len(values), -1).T
    if table.shape[0] != len(models) or not np.isfinite(table).all():
        raise InputError(f"values of {table.shape[0]} models: expected {len(models)} finite values for each metric")
    signs = np.array([-1.0 if higher else 1.0 for _, higher in values.values()])
    return RankTable(tuple(models), tuple(values), table, rankdata(table * signs, axis=0), left_out or {})


def rank_records(
    records: Mapping[str, Record], *, families: Sequence[str] | None = None, parts: bool = False
) -> RankTable:
    """Rank the models of several records by every metric that all of them have.

    Args:
        records: by the model's name, as returned by :func:`xgem.eval.schema.read_record`.
        families: only these; by default all.
        parts: rank also by the values of single findings, subgroups and protocols.

    A metric that is missing in a record, or without a better direction, is left out, with the reason. So are values
    with different weights or different n, which are not comparable (a Frechet distance grows as n falls).

    Raises:
        DataError: no metric in common.
    """
    metrics = {model: dict(_numbers(record, families, parts)) for model, record in records.items()}
    kept: dict[str, tuple[list[float], bool]] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(name for numbers in metrics.values() for name in numbers):
        entries = [numbers.get(name) for numbers in metrics.values()]
        values = [_value(entry) for entry in entries]
        known = [entry for entry in entries if entry is not None]
        lacking = [model for model, value in zip(metrics, values, strict=True) if value is None]
        weights = sorted({entry.weights for entry in known})
        counts = sorted({entry.value.n for entry in known if entry.value is not None})
        higher = known[0].higher_is_better
        if lacking:
            left_out[name] = f"not computed for {', '.join(lacking)}"
        elif len(weights) > 1 or len(counts) > 1:
            left_out[name] = f"weights {', '.join(weights)}, n {', '.join(map(str, counts))}: expected one of each"
        elif higher is None:
            left_out[name] = "neither direction is better"
        else:
            kept[name] = ([value for value in values if value is not None], higher)
    # Ranks by the metrics that are comparable
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise DataError(f"{', '.join(metrics)}: no metric in common to rank by ({reasons or 'no metrics at all'})")
    return rank(list(metrics), kept, left_out)


def _value(entry: MetricEntry | None) -> float | None:
    return None if entry is None or entry.value is None else entry.value.value


def _numbers(record: Record, families: Sequence[str] | None, parts: bool) -> Iterator[tuple[str, MetricEntry]]:
    """Every metric by family, route, name, extractor and part."""
    chosen: list[FamilyEntry] = [entry for entry in record.families if families is None or entry.family in families]
    for family in chosen:
        for metric in family.metrics:
            if parts or not metric.of:
                names = (family.family, family.route, metric.name, metric.extractor, metric.of)
                yield " ".join(name for name in names if name), metric
