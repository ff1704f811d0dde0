"""Results of an evaluation as plain data: measures, their JSON, CSV, Markdown and terminal tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgem.eval.record import finite
from xgem.metrics.bootstrap import Comparison, Estimate, Sampled, average

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1


def _no_baselines() -> dict[str, Sampled]:
    return {}


@dataclass(frozen=True)
class Measure:
    """One measure of one route.

    ``shuffled`` is the same with the prompts of other studies, ``baselines`` are other yardsticks on the same studies
    (each with its paired difference in the JSON), ``reference`` what real data reach (a floor or a ceiling).
    """

    value: Sampled
    shuffled: Sampled | None = None
    baselines: Mapping[str, Sampled] = field(default_factory=_no_baselines)
    reference: Mapping[str, Sampled] = field(default_factory=_no_baselines)
    higher_is_better: bool = True
    space: str = ""

    @classmethod
    def of(cls, comparison: Comparison, **options: Any) -> Measure:
        return cls(comparison.matched, comparison.shuffled, **options)

    @property
    def difference(self) -> Estimate | None:
        """Matched less shuffled prompts, with the paired interval."""
        return None if self.shuffled is None else (self.value - self.shuffled).estimate()

    def as_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"matched": self.value.estimate().as_dict()}
        if self.shuffled is not None:
            data["shuffled"] = self.shuffled.estimate().as_dict()
            data["difference"] = (self.value - self.shuffled).estimate().as_dict()
        for name, baseline in self.baselines.items():
            data[f"baseline:{name}"] = baseline.estimate().as_dict()
            data[f"difference:{name}"] = (self.value - baseline).estimate().as_dict()
        for name, reference in self.reference.items():
            data[f"real:{name}"] = reference.estimate().as_dict()
        data["higher_is_better"] = self.higher_is_better
        if self.space:
            data["space"] = self.space
        return data


def average_measures(parts: list[dict[str, Measure]]) -> dict[str, Measure]:
    """Mean over samples of the same studies; references are the first's."""
    if len(parts) == 1:
        return parts[0]
    result: dict[str, Measure] = {}
    for name, first in parts[0].items():
        own = [part[name] for part in parts]
        shuffled = [one.shuffled for one in own if one.shuffled is not None]
        result[name] = Measure(
            average([one.value for one in own]),
            average(shuffled) if shuffled else None,
            first.baselines,
            first.reference,
            first.higher_is_better,
            first.space,
        )
    return result


@dataclass(frozen=True)
class RouteResult:
    """All measures of one route; ``details`` holds what is no single number (curves, classes, counts)."""

    inputs: tuple[str, ...]
    output: str
    short: str
    n: int
    measures: Mapping[str, Measure]
    details: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{'+'.join(self.inputs)}->{self.output}"

    def as_dict(self) -> dict[str, Any]:
        measures = {name: measure.as_dict() for name, measure in self.measures.items()}
        return {"inputs": list(self.inputs), "output": self.output, "short": self.short, "n": self.n} | {
            "measures": measures,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Evaluation:
    """The whole run: settings, routes, two-prompt routes beside their better single one, what was measured on reals."""

    settings: Mapping[str, Any]
    routes: tuple[RouteResult, ...]
    several_prompts: Mapping[str, Any]
    real: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": "xgem-eval-routes",
            "format_version": FORMAT_VERSION,
            "settings": dict(self.settings),
            "routes": {route.name: route.as_dict() for route in self.routes},
            "several_prompts": dict(self.several_prompts),
            "real": dict(self.real),
        }

    def json(self) -> str:
        return json.dumps(finite(self.as_dict()), indent=2, ensure_ascii=False)

    def csv(self) -> str:
        """One line a number: route, measure, what, value, low, high, n."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["route", "measure", "what", "value", "low", "high", "n"])
        for route in self.routes:
            for name, measure in route.measures.items():
                for what, number in measure.as_dict().items():
                    if isinstance(number, dict):
                        writer.writerow(
                            [route.name, name, what, *(number[key] for key in ("value", "low", "high", "n"))]
                        )
        return buffer.getvalue()

    def write(self, folder: Path) -> None:
        """``routes.json``, ``routes.csv`` and ``routes.md`` into an existing folder."""
        (folder / "routes.json").write_text(self.json() + "\n", encoding="utf-8")
        (folder / "routes.csv").write_text(self.csv(), encoding="utf-8")
        (folder / "routes.md").write_text(self.markdown(), encoding="utf-8")

    def tables(self) -> list[Table]:
        """The tables of :meth:`grids` for a terminal."""
        from rich.table import Table

        result: list[Table] = []
        for title, header, rows in self.grids():
            table = Table(title=title, title_justify="left", show_lines=True)
            for i, column in enumerate(header):
                table.add_column(column, no_wrap=i == 0, overflow="fold")
            for row in rows:
                table.add_row(*row)
            result.append(table)
        return result

    def markdown(self) -> str:
        """The same tables for a model card."""
        parts: list[str] = []
        for title, header, rows in self.grids():
            lines = ["| " + " | ".join(row).replace("\n", "<br>") + " |" for row in [header, *rows]]
            lines.insert(1, "|" + "---|" * len(header))
            parts.append(f"{title}\n\n" + "\n".join(lines) + "\n")
        return "\n".join(parts)

    def grids(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, header and rows of each table: images, reports, several prompts, reconstructions, power curves."""
        images = [route for route in self.routes if "frechet_classifier" in route.measures]
        reports = [route for route in self.routes if "micro_f1_14" in route.measures]
        run = self.settings
        grids: list[tuple[str, list[str], list[list[str]]]] = []
        said = f"seed {run['seed']}, {run['bootstrap']} bootstrap draws; value (shuffled prompts; difference [95 %])"
        if run.get("sampler"):
            scale = run["guidance_scale"]
            scales = ", ".join(f"{k} {v:g}" for k, v in scale.items()) if isinstance(scale, Mapping) else f"{scale:g}"
            said = f"{run['num_inference_steps']} steps of {run['sampler']}, guidance {scales}; {said}"
        samples = run.get("num_samples", 1), run.get("report_samples") or run.get("num_samples", 1)
        counted = [f", mean of {count} samples a study" if count > 1 else "" for count in samples]
        for title, routes, columns in (
            (f"Images{counted[0]}", images, _IMAGE_COLUMNS),
            (f"Reports{counted[1]}", reports, _REPORT_COLUMNS),
        ):
            if routes:
                rows = [[route.short, str(route.n), *(_cell(route, name) for name in columns)] for route in routes]
                grids.append((f"{title}, {said}", ["route", "n", *columns.values()], rows))
        if self.several_prompts:
            rows = [
                [
                    route,
                    name,
                    one["best_single"],
                    f"{one['value']['value']:.3f}",
                    f"{one['single']['value']:.3f}",
                    _interval(one["difference"]),
                ]
                for route, measures in self.several_prompts.items()
                for name, one in measures.items()
            ]
            header = ["route", "measure", "better single prompt", "both", "single", "difference"]
            grids.append(("Two prompts beside the better of their single ones", header, rows))
        rows = [
            [view, _interval(one["reconstruction_band_ratio"]), _interval(one["label_auc"]["mean"]), one["classifier"]]
            for view, one in self.real.items()
        ]
        if rows:
            header = ["view", "band power of reconstructions / real", "label AUC on real images", "classifier"]
            grids.append(("Real images", header, rows))
        curves = {f"reconstructed {view}": one["reconstruction_radial_power_ratio"] for view, one in self.real.items()}
        curves |= {route.short: route.details["radial_power_ratio"] for route in images}
        if curves:
            frequencies = [f"{one:.2f}" for one in next(iter(curves.values()))["frequency_nyquist"][::_EVERY]]
            rows = [[name, *(f"{one:.2f}" for one in curve["ratio"][::_EVERY])] for name, curve in curves.items()]
            grids.append(("Radial power / real, by frequency in units of Nyquist", ["images", *frequencies], rows))
        return grids


_EVERY = 4  # rings of the power curves that the table shows; the JSON holds all


_IMAGE_COLUMNS = {
    "prompt_agreement": "agreement with prompts (cosine)",
    "target_agreement": "agreement with target (cosine)",
    "one_minus_own_rank": "1 - own-patient rank",
    "pixel_correlation": "pixel correlation 16 x 16",
    "classifier_agreement": "classifier logits (r)",
    "label_auc": "label AUC",
    "frechet_classifier": "Frechet, classifier",
    "frechet_encoder": "Frechet, encoder",
    "diversity": "diversity (1 - SSIM)",
    "band_ratio": "band power / real",
}
_REPORT_COLUMNS = {
    "prompt_agreement": "agreement with prompts (cosine)",
    "target_agreement": "agreement with target (cosine)",
    "micro_f1_14": "micro F1, 14",
    "macro_f1_14": "macro F1, 14",
    "micro_f1_findings": "micro F1, findings",
    "macro_f1_findings": "macro F1, findings",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "distinct": "distinct reports",
}


def _cell(route: RouteResult, name: str) -> str:
    measure = route.measures.get(name)
    if measure is None:
        return str(route.details.get(name, "not computed"))
    value = measure.value.estimate()
    lines = [f"{value.value:.3f}"]
    if measure.shuffled is None:
        lines = [f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"]
    elif (difference := measure.difference) is not None:
        lines.append(
            f"({measure.shuffled.value:.3f}; {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}])"
        )
    lines += [f"{other} {sampled.value:.3f}" for other, sampled in measure.baselines.items()]
    lines += [f"real {other} {sampled.value:.3f}" for other, sampled in measure.reference.items()]
    return "\n".join(lines)


def _interval(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
