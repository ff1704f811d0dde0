"""A self-contained HTML report of measures: tables, plots and images inside one file."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem._version import __version__
from xgem.eval.record import FORMAT, FORMAT_VERSION, Example, FamilyResult, Metric, finite
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import OutputError

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.missing { color: #888; }
figure { display: inline-block; margin: 0.5rem 1rem 0.5rem 0; max-width: 100%; vertical-align: top; }
figure img { max-width: 100%; }
figure.example img { height: 128px; image-rendering: pixelated; margin-right: 4px; }
figcaption { font-size: 0.85rem; max-width: 36rem; }
pre { background: #f5f5f5; overflow-x: auto; padding: 0.7rem; }
"""


_NOTE: Final = (
    "Synthetic radiographs, for research only, not for diagnosis. Intervals are 95 % bootstrap intervals unless the "
    "settings say otherwise. Images in this file may be of real patients: keep it where the data may lie."
)


def as_html(
    results: Sequence[FamilyResult], *, about: Mapping[str, Any] | None = None, title: str = "xgem: measures"
) -> str:
    """The report as one HTML document that loads nothing from elsewhere; ``about`` is what the families share."""
    links = " | ".join(f'<a href="#{html.escape(one.family)}">{html.escape(one.family)}</a>' for one in results)
    parts = [_folded("What was measured", about)] if about else []
    body = "\n".join([*parts, *map(_family, results)])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1><p>{_NOTE}</p>"
        f"<p>xgem {__version__}: {links}</p>\n{body}\n</body></html>\n"
    )


def _family(result: FamilyResult) -> str:
    parts = [f'<h2 id="{html.escape(result.family)}">{html.escape(result.family.capitalize())}</h2>']
    if result.metrics:
        rows = "\n".join(_row(metric) for metric in result.metrics)
        heads = "".join(f"<th>{name}</th>" for name in ("measure", "value [95 %]", "n", "beside", "space or judge"))
        parts.append(f"<table><tr>{heads}</tr>\n{rows}</table>")
    parts += [_figure(png, name) for name, png in result.plots.items()]
    if result.examples:
        parts.append("<h3>To look at</h3>" + "".join(_example(one) for one in result.examples))
    parts += [_folded(name, one) for name, one in (("Details", result.details), ("Settings", result.settings)) if one]
    return "\n".join(parts)


def _folded(title: str, values: Mapping[str, Any]) -> str:
    text = html.escape(json.dumps(finite(values), indent=2, ensure_ascii=False))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>\n"


def _row(metric: Metric) -> str:
    name = html.escape(f"{metric.name}, {metric.of}" if metric.of else metric.name)
    space = html.escape(" ".join(part for part in (metric.extractor, metric.weights[:12]) if part))
    if metric.value is None:
        why = f"not computed: {html.escape(metric.reason)}"
        return f'<tr class="missing"><td>{name}</td><td colspan="3">{why}</td><td>{space}</td></tr>'
    beside = "<br>".join(html.escape(f"{key} {one}") for key, one in metric.references.items())
    return (
        f'<tr><td>{name}</td><td class="number">{metric.value}</td><td class="number">{metric.value.n}</td>'
        f'<td class="number">{beside}</td><td>{space}</td></tr>'
    )


def _figure(png: bytes, caption: str) -> str:
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{_uri(png)}"><figcaption>{text}</figcaption></figure>'


def _example(example: Example) -> str:
    images = "".join(f'<img alt="" src="{_uri(_png(image))}">' for image in example.images)
    return f'<figure class="example">{images}<figcaption>{html.escape(example.caption)}</figcaption></figure>'


def _png(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


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
