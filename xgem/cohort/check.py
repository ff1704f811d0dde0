"""Checks that a model can do what a plan requests, and lists the requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from xgem.cohort.items import Cohort, Item
from xgem.cohort.plan import Plan
from xgem.configs.preset import Preset
from xgem.modalities import get_modality
from xgem.pipeline.options import CallOptions, SamplingOptions, option, renamed
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import InputError

_INLINE = {"report", "demographics", "severity"}
"""Inputs whose values stand in the plan or the manifest, and not in files."""
PLANNED = tuple(name for name in SamplingOptions.model_fields if option(name).recorded)
"""Options of a plan that decide what a study is."""


def stages(outputs: Sequence[str], inputs: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The stages of generation in order: (outputs, inputs) of each.

    If a report is both input and output, it is generated afterwards, from the generated images.
    """
    texts = tuple(name for name in outputs if name in inputs and not get_modality(name).is_image)
    if texts and len(outputs) > len(texts):
        images = tuple(name for name in outputs if name not in texts)
        return [(images, tuple(inputs)), (texts, images)]
    return [(tuple(outputs), tuple(inputs))]


def options(plan: Plan, outputs: Sequence[str], pipeline: XgemPipeline) -> CallOptions:
    """The options of the pipeline's call for one stage; its seeds come from the items."""
    planned = {name: getattr(plan, name) for name in SamplingOptions.model_fields}
    if isinstance(plan.guidance_scale, dict):
        planned["guidance_scale"] = {name: v for name, v in plan.guidance_scale.items() if name in outputs} or None
    joint = pipeline.aligned if plan.joint is None else plan.joint
    return CallOptions.parse({**planned, "joint": joint and len(outputs) > 1})


def check(cohort: Cohort, pipeline: XgemPipeline) -> list[dict[str, Any]]:
    """Reject a plan that the model cannot follow, before anything is generated.

    Returns:
        for each kind of request its outputs, inputs and options, with every default filled in.

    Raises:
        InputError: an output, view, input, annotation or setting that the model does not have, or that is not trained.
    """
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], Item] = {}
    for index in range(len(cohort.cells)):
        item = cohort.item(index)
        kinds.setdefault((item.cell.outputs, tuple(item.inputs)), item)
        for name in _INLINE & item.inputs.keys():
            get_modality(name).read(item.inputs[name], pipeline.preset)
    requests: list[dict[str, Any]] = []
    for (outputs, inputs), item in kinds.items():
        for stage_outputs, stage_inputs in stages(outputs, inputs):
            request = _check(cohort.plan, pipeline, item, stage_outputs, stage_inputs)
            if request not in requests:
                requests.append(request)
    return requests


def of_today(requests: Any) -> Any:
    """Requests as a cohort was started with, by today's names of the options, and with options that are newer."""
    defaults = {name: SamplingOptions.model_fields[name].default for name in PLANNED}
    return [{**defaults, **renamed(request, quietly=True)} for request in requests]


def _check(
    plan: Plan, pipeline: XgemPipeline, item: Item, outputs: tuple[str, ...], given: tuple[str, ...]
) -> dict[str, Any]:
    preset = pipeline.preset
    inputs = {name: item.inputs.get(name, f"{name}.png") for name in given}
    request = pipeline.checked(inputs, outputs, options(plan, outputs, pipeline))
    if request.options.joint and not pipeline.aligned:
        raise InputError(
            f"{pipeline.name}: has no trained alignment, so {', '.join(outputs)} cannot be sampled jointly; "
            "leave joint out"
        )
    trained = pipeline.trained
    for what, component in _needed(preset, outputs, given):
        if component not in trained:
            raise InputError(f"{pipeline.name}: has no trained {component!r}, which {what!r} needs")
    return {
        "outputs": list(outputs),
        "inputs": list(given),
        **{name: getattr(request.options, name) for name in PLANNED},
    }


def _needed(preset: Preset, outputs: Sequence[str], given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each modality of a request with each component that it needs."""
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
