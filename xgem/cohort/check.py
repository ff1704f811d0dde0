"""Whether a model can do what a plan asks, and what each request to it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xgem.checkpoints.store import read_index
from xgem.cohort.items import Cohort, Item
from xgem.cohort.plan import Plan
from xgem.configs.preset import Preset
from xgem.generators.sampling import SAMPLERS
from xgem.modalities import MODALITIES, get_modality
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.request import make_request
from xgem.types import InputError

_SAID = {"report", "demographics", "severity"}
"""Inputs whose values stand in the plan or the manifest, and not in files."""


def stages(outputs: Sequence[str], inputs: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What is made from what, in turn: (outputs, inputs).

    A report that is asked for beside a report as prompt is written afterwards, from the images.
    """
    if "report" in outputs and "report" in inputs and len(outputs) > 1:
        images = tuple(name for name in outputs if name != "report")
        return [(images, tuple(inputs)), (("report",), images)]
    return [(tuple(outputs), tuple(inputs))]


def options(plan: Plan, outputs: Sequence[str], pipeline: XgemPipeline) -> dict[str, Any]:
    """The keyword arguments of the pipeline's call for one stage, but for the seeds."""
    scale = plan.guidance_scale
    if isinstance(scale, dict):
        scale = {name: value for name, value in scale.items() if name in outputs} or None
    joint = pipeline.aligned if plan.joint is None else plan.joint
    return {
        "num_inference_steps": plan.num_inference_steps,
        "guidance_scale": scale,
        "sampler": plan.sampler,
        "joint": joint and len(outputs) > 1,
        "control_scale": plan.control_scale,
        "control_end": plan.control_end,
        "greedy": plan.greedy,
        "batch_size": plan.batch_size,
    }


def check(cohort: Cohort, pipeline: XgemPipeline) -> list[dict[str, Any]]:
    """Refuse a plan that the model cannot follow, before anything is made.

    Returns:
        for each kind of request its outputs, inputs and settings, with every default filled in.

    Raises:
        InputError: an output, view, input, annotation or setting that the model does not have, or has untrained.
    """
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], Item] = {}
    for index in range(len(cohort.cells)):
        item = cohort.item(index)
        kinds.setdefault((item.cell.outputs, tuple(item.inputs)), item)
        for name in _SAID & item.inputs.keys():
            get_modality(name).read(item.inputs[name], pipeline.preset)
    found: list[dict[str, Any]] = []
    for (outputs, inputs), item in kinds.items():
        for made, given in stages(outputs, inputs):
            found.append(_check(cohort.plan, pipeline, item, made, given))
    return [one for k, one in enumerate(found) if one not in found[:k]]


def _check(
    plan: Plan, pipeline: XgemPipeline, item: Item, outputs: tuple[str, ...], given: tuple[str, ...]
) -> dict[str, Any]:
    preset = pipeline.preset
    request: Any = make_request(
        preset,
        list(MODALITIES),
        list(SAMPLERS),
        {name: item.inputs.get(name, f"{name}.png") for name in given},
        outputs,
        seed=0,
        num_samples=1,
        keep=None,
        strength=None,
        output_type="pil",
        **options(plan, outputs, pipeline),
    )
    if request.joint and not pipeline.aligned:
        raise InputError(
            f"{pipeline.name}: has no trained alignment, so {', '.join(outputs)} cannot be joint; leave joint out"
        )
    there = read_index(pipeline.root).components
    for what, component in _needed(preset, outputs, given):
        if component not in there:
            raise InputError(f"{pipeline.name}: has no trained {component!r}, which {what!r} needs")
    return {
        "outputs": list(outputs),
        "inputs": list(given),
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": dict(request.guidance_scale),
        "sampler": request.sampler,
        "joint": request.joint,
        "greedy": request.greedy,
        "control_scale": request.control_scale,
        "control_end": request.control_end,
    }


def _needed(preset: Preset, outputs: Sequence[str], given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each modality of a request with each component that it takes."""
    for output in outputs:
        yield output, preset.generator(output)
        yield output, preset.codec(output)
        control = preset.modalities[output].control
        steering: tuple[str, ...] = () if control is None else getattr(preset.components[control], "annotations", ())
        yield from ((name, str(control)) for name in given if name in steering)
    for name in given:
        modality = preset.modalities[name]
        if modality.encoder is not None or modality.joins is not None:
            yield name, preset.encoder(modality.joins or name)
