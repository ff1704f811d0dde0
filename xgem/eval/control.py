"""Does a model do what it is asked for? Masks, boxes, severity, demographics and text (``xgem eval control``).

What a generated image shows is judged by networks trained on real training images, beside two yardsticks on the
same studies: the shuffled control (what was asked for another study) and the ceiling (the study's own real image).
ChexGen shows its annotated generations and trains on them; whether they obey their annotations is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.eval.asked import FAMILIES
from xgem.eval.control_run import ControlSettings, Family, NotComputed, Run
from xgem.eval.record import finite
from xgem.eval.results import Measure
from xgem.eval.routes import prepare_folder, settled
from xgem.metrics.bootstrap import Sampled
from xgem.pipeline.embedding import Evaluated
from xgem.types import OutputError
from xgem.utils import sheets

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest

RESULTS: Final = "control.json"
SHOWN_OF_TEXT: Final = ("prompt_agreement", "target_agreement", "classifier_agreement", "label_auc")
"""The measures of the text route that the table shows; the JSON holds all."""


def reached(measure: Measure) -> Sampled | None:
    """The share of the way from the shuffled control (0) to the ceiling (1); None where either is missing."""
    ceiling, low = measure.reference.get("ceiling"), measure.shuffled
    if ceiling is None or low is None:
        return None
    own, way = measure.value - low, ceiling - low
    draws = np.divide(own.draws, way.draws, out=np.full(len(own.draws), np.nan), where=way.draws != 0)
    return Sampled(own.value / way.value if way.value else float("nan"), draws, own.n)


@dataclass(frozen=True)
class ControlEvaluation:
    """The whole run: settings, the families of measures, and why others were not computed."""

    settings: Mapping[str, Any]
    families: Mapping[str, Family]
    not_computed: Mapping[str, str]

    def json(self) -> str:
        record = {
            "format": "xgem-eval-control",
            "format_version": 1,
            "settings": dict(self.settings),
            "families": {name: _described(family) for name, family in self.families.items()},
            "not_computed": dict(self.not_computed),
        }
        return json.dumps(finite(record), indent=2, ensure_ascii=False)

    def markdown(self) -> str:
        """The table, as the model card has it."""
        lines = [
            "What was asked for beside what is seen, each input alone: "
            f"seed {self.settings['seed']}, mean of {self.settings['num_samples']} samples a study; [95 %]",
            "",
            "| input | measure | n | value | shuffled | difference | real | share reached |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, family in self.families.items():
            for title, measure in family.measures.items():
                difference = measure.difference
                if difference is None or (name == "text" and title not in SHOWN_OF_TEXT):
                    continue
                ceiling, share = measure.reference.get("ceiling"), reached(measure)
                cells = [str(measure.value.estimate()), f"{measure.shuffled.value:.3f}" if measure.shuffled else "-"]
                cells += [f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"]
                cells += [f"{ceiling.value:.3f}" if ceiling else "-", str(share.estimate()) if share else "-"]
                lines.append(f"| {name} | {title} | {measure.value.n} | {' | '.join(cells)} |")
        lines += ["", *(f"Not computed: {name} ({reason})." for name, reason in self.not_computed.items())]
        return "\n".join(lines).strip() + "\n"

    def write(self, out: Path) -> None:
        """control.json, control.md and a contact sheet of each family into the run folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            (out / RESULTS).write_text(self.json() + "\n", encoding="utf-8")
            (out / "control.md").write_text(self.markdown(), encoding="utf-8")
            for name, family in self.families.items():
                sheets.write_sheet(out / f"control_{name}.png", family.columns, rows=self.settings["sheet_rows"])
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None


def _described(family: Family) -> dict[str, Any]:
    measures: dict[str, Any] = {}
    for name, measure in family.measures.items():
        share = reached(measure)
        measures[name] = measure.as_dict() | ({"reached": share.estimate().as_dict()} if share else {})
    return {
        "n": family.n,
        "measures": measures,
        "details": dict(family.details),
        "not_computed": dict(family.left_out),
    }


def evaluate_control(
    evaluated: Evaluated,
    judge: Evaluated,
    manifest: Manifest,
    *,
    split: str = "val",
    out: Path,
    settings: ControlSettings | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> ControlEvaluation:
    """Ask for what the studies of a split are annotated with, measure what comes, and write to the folder ``out``.

    Args:
        evaluated: makes a ``frontal``; its ``inputs`` say which of ``mask``, ``boxes``, ``severity``, ``demographics``
            and ``report`` it takes, ``pipe([{"mask": {...}}, ...], ["frontal"], ...)`` gets one of them at a time.
        judge: a checkpoint whose encoders of frontals and reports embed what was made, as ``eval routes`` does with
            the model's own.
        cache: folder for prepared images and trained judges; ``out/cache`` by default.
        overwrite: replace the results of an earlier run in ``out``.
        device: where the judges train and run.

    Raises:
        OutputError: ``out`` holds results already or cannot be written. ImageError: an annotation cannot be read.
        DataError: a split has no images.
    """
    settings = settings or ControlSettings()
    prepare_folder(out, RESULTS, overwrite=overwrite)
    run = Run(evaluated, judge, manifest, split, settings, cache or out / "cache", device, progress)
    families: dict[str, Family] = {}
    not_computed: dict[str, str] = {}
    for name, measured in FAMILIES.items():
        try:
            families[name] = measured(run)
        except NotComputed as reason:
            not_computed[name] = str(reason)
    own = settled(settings, evaluated, split) | {
        "judge": {"name": judge.name, "hash": judge.hash},
        "report_sections": list(evaluated.sections),
    }
    evaluation = ControlEvaluation(own, families, not_computed)
    evaluation.write(out)
    return evaluation
