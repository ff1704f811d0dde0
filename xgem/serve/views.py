"""What the API says of a request, of checkpoints and of options, as JSON values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from xgem.configs.base import Rescale, Section, Voi
from xgem.generators.sampling import SAMPLERS
from xgem.labels.spatial import BOX_CLASSES, STRUCTURES
from xgem.pipeline.generation import RECORD_NAME
from xgem.pipeline.options import CallOptions, option
from xgem.serve.requests import OPTIONS
from xgem.serve.tables import DONE, Job

if TYPE_CHECKING:
    from pathlib import Path

    from xgem.pipeline.pipeline import XgemPipeline

_CHOICES: dict[str, tuple[str, ...]] = {
    "sampler": tuple(SAMPLERS),
    "report_section": get_args(Section),
    "voi": get_args(Voi),
    "rescale": get_args(Rescale),
}


def request_view(job: Job, position: int | None, results: Path) -> dict[str, Any]:
    """A request: its state and progress, and its samples when it is done."""
    view: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "position": position,
        "output": job.output,
        "step": job.step,
        "steps": job.steps,
        "error": job.error,
        "seed": job.seed,
        "request": job.request,
    }
    if job.state == DONE:
        view["samples"] = samples_view(results)
    return view


def samples_view(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Samples by output, with their metadata; reports with their text."""
    folder = results / "png"
    record: dict[str, Any] = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    files = record.pop("files")
    samples: dict[str, list[dict[str, Any]]] = {}
    for output, entries in files.items():
        for index, entry in enumerate(entries):
            sample: dict[str, Any] = {"index": index, "metadata": {**record, **entry}}
            if entry["file"].endswith(".txt"):
                sample["text"] = (folder / entry["file"]).read_text(encoding="utf-8").strip()
            samples.setdefault(output, []).append(sample)
    return samples


def checkpoint_view(pipeline: XgemPipeline, loaded: bool) -> dict[str, Any]:
    """What a checkpoint takes and gives."""
    preset, known = pipeline.preset, pipeline.preset.vocabulary
    takes = "mask" in preset.modalities
    return {
        "name": pipeline.name,
        "hash": pipeline.hash,
        "inputs": list(preset.modalities),
        "outputs": list(preset.outputs),
        "takes": {output: list(preset.inputs(output)) for output in preset.outputs},
        "size": preset.transform.size,
        "joint": pipeline.aligned,
        "structures": list(STRUCTURES if known is None else known.structures) if takes else [],
        "box_classes": list(BOX_CLASSES if known is None else known.box_classes) if takes else [],
        "loaded": loaded,
    }


def options_view() -> list[dict[str, Any]]:
    """Every option that a request may have."""
    views: list[dict[str, Any]] = []
    for name in OPTIONS:
        field, about = CallOptions.model_fields[name], option(name)
        choices = _CHOICES.get(name)
        view: dict[str, Any] = {
            "name": name,
            "help": about.help,
            "type": "choice" if choices else _kind(field.annotation),
        }
        if choices:
            view["choices"] = list(choices)
        view |= {"default": field.default, "unset": about.unset}
        if about.limits is not None:
            high = about.limits.high
            view["limits"] = {"low": about.limits.low, "high": None if high == float("inf") else high}
        views.append(view)
    return views


def _kind(annotation: Any) -> str:
    kinds = {part for part in (get_args(annotation) or (annotation,)) if part is not type(None)}
    for kind, name in ((bool, "boolean"), (float, "number"), (int, "integer")):
        if kind in kinds:
            return name
    return "text"
