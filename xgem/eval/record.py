"""What a family of measures found, as plain data: every number with its n, interval, extractor and settings."""

from __future__ import annotations

import csv
import io
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem import __version__
from xgem.eval.statistics import Estimate
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import OutputError

FORMAT: Final = "xgem-measures"
FORMAT_VERSION: Final = 1


class NotComputed(Exception):
    """Weights, a package or enough data are missing; the message is the reason that stands in place of the number."""


@dataclass(frozen=True)
class Metric:
    """One number.

    ``value`` is None where it could not be computed; ``reason`` then says why. ``of`` is what it is of, where that is
    not the whole set (a finding, a subgroup). ``extractor`` names the feature space or the judge, ``weights`` its
    weights' hash. ``references`` are yardsticks on real data (``floor``, ``ceiling``) or controls (``shuffled``).
    """

    name: str
    value: Estimate | None
    reason: str = ""
    of: str = ""
    extractor: str = ""
    weights: str = ""
    higher_is_better: bool | None = None
    references: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def missing(cls, name: str, reason: object, **options: Any) -> Metric:
        """The number that could not be computed."""
        return cls(name, None, reason=str(reason), **options)

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name}
        found |= {key: value for key in ("of", "extractor", "weights") if (value := getattr(self, key))}
        if self.value is None:
            return found | {"value": None, "not_computed": self.reason}
        found |= {"value": self.value.value, "interval": list(self.value.interval), "n": self.value.n}
        if self.higher_is_better is not None:
            found["higher_is_better"] = self.higher_is_better
        if self.references:
            found["references"] = {name: one.as_dict() for name, one in self.references.items()}
        return found | ({"settings": dict(self.settings)} if self.settings else {})


@dataclass(frozen=True)
class Example:
    """Pictures to look at, side by side: (h, w) uint8 each, with one line of text."""

    caption: str
    pictures: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class FamilyResult:
    """All numbers of one family (fidelity, text, ...), with what the report shows beside them.

    ``settings`` holds the seed, the sets' names, sizes and hashes; ``details`` what is no single number, as JSON
    values; ``plots`` maps titles to PNG files' bytes; ``tables`` maps file names to CSV text in others' columns.
    """

    family: str
    metrics: Sequence[Metric]
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    plots: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    examples: Sequence[Example] = ()
    tables: Mapping[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, name: str) -> Metric:
        """The metric of the whole set by name, or ``name/of``."""
        for metric in self.metrics:
            if name == (f"{metric.name}/{metric.of}" if metric.of else metric.name):
                return metric
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "settings": dict(self.settings),
            "metrics": [metric.as_dict() for metric in self.metrics],
            "details": dict(self.details),
        }


def as_json(results: Sequence[FamilyResult], about: Mapping[str, Any] | None = None) -> str:
    """One JSON document of several families; NaN becomes null. ``about`` is what they have in common."""
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "xgem": __version__,
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **({"settings": dict(about)} if about else {}),
        "families": [result.as_dict() for result in results],
    }
    return json.dumps(finite(record), indent=2, ensure_ascii=False)


def as_csv(results: Sequence[FamilyResult]) -> str:
    """One row a number."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["family", "metric", "of", "value", "low", "high", "n", "extractor", "weights", "not_computed"])
    for result in results:
        for one in result.metrics:
            number = ["", "", "", ""] if one.value is None else [one.value.value, *one.value.interval, one.value.n]
            table.writerow([result.family, one.name, one.of, *number, one.extractor, one.weights, one.reason])
    return stream.getvalue()


def as_markdown(results: Sequence[FamilyResult]) -> str:
    """One table a family; the numbers of single findings are left to CSV and HTML."""
    parts: list[str] = []
    for result in results:
        parts += ["", f"### {result.family.capitalize()}", "", "| measure | value [95 %] | n | beside | space |"]
        parts.append("|---|---|---|---|---|")
        for one in result.metrics:
            if one.of.rpartition(", ")[2] in CHEXPERT_CLASSES:
                continue
            name = f"{one.name}, {one.of}" if one.of else one.name
            value = f"not computed: {one.reason}" if one.value is None else str(one.value)
            beside = "; ".join(f"{key} {reference}" for key, reference in one.references.items())
            parts.append(
                f"| {name} | {value} | {'' if one.value is None else one.value.n} | {beside} | {one.extractor} |"
            )
    return "\n".join(parts).strip() + "\n"


def check_results_folder(out: Path, stem: str, *, overwrite: bool = False) -> None:
    """Refuse a folder that holds results of this name already, unless they are to be replaced.

    Raises:
        OutputError: it does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder; choose another")
    if (out / f"{stem}.json").exists() and not overwrite:
        raise OutputError(f"{out / stem}.json: exists already; choose another folder or pass --overwrite")


def write_results(
    results: Sequence[FamilyResult],
    out: Path,
    stem: str,
    *,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``stem.json``, ``.csv``, ``.md``, ``.html`` and the families' own tables into ``out``.

    Raises:
        OutputError: results of an earlier run lie there and not ``overwrite``, or the place cannot be written.
    """
    from xgem.eval.report import as_html

    check_results_folder(out, stem, overwrite=overwrite)
    record = out / f"{stem}.json"
    files = {f"{stem}.csv": as_csv(results), f"{stem}.md": as_markdown(results)}
    files[f"{stem}.html"] = as_html(results, about=about)
    for result in results:
        files |= result.tables
    files[record.name] = as_json(results, about)  # last: where it is, the rest is whole
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            temporary = out / f".{name}.part"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(out / name)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return record


def finite(value: Any) -> Any:
    """The same as JSON values: NaN and infinities become None, numpy's numbers Python's."""
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
