"""Checks of what is asked of a pipeline, before anything is loaded or computed. Imports no torch."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

from xgem.types import InputError

if TYPE_CHECKING:
    import torch

    from xgem.configs.preset import Preset
    from xgem.pipeline.privacy_gate import PrivacyGate


OutputType = Literal["pil", "np", "pt"]


Inputs = Mapping[str, Any]


StepCallback = Callable[[Any, int, int, dict[str, Any]], None]

MAX_SEED = 2**63 - 1


MAX_STEPS = 1000


DEFAULT_STRENGTH = 0.5


class CallOptions(TypedDict, total=False):
    """The keyword arguments of a pipeline's call, explained at ``XgemPipeline.__call__``."""

    seed: int | Sequence[int] | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    num_samples: int
    num_inference_steps: int | None
    guidance_scale: float | Mapping[str, float] | None
    sampler: str | None
    joint: bool | None
    keep: Inputs | Sequence[Inputs] | None
    strength: float | None
    control_scale: float
    control_end: float
    greedy: bool
    device: str | torch.device | None
    dtype: str | torch.dtype | None
    progress: bool
    callback_on_step_end: StepCallback | None
    output_type: str
    batch_size: int
    allow_any: bool
    privacy_gate: PrivacyGate | None


@dataclass(frozen=True)
class Request:
    """A request with every default filled in: one seed an item, one guidance scale an output."""

    items: tuple[Inputs, ...]
    outputs: tuple[str, ...]
    seeds: tuple[int, ...]
    num_samples: int
    num_inference_steps: int
    guidance_scale: Mapping[str, float]
    sampler: str
    joint: bool
    keep: tuple[Inputs, ...]
    strength: float
    control_scale: float
    control_end: float
    greedy: bool
    output_type: OutputType
    batch_size: int

    @property
    def first_step(self) -> int:
        """Where kept outputs join: all steps but ``strength`` of them are behind it."""
        return self.num_inference_steps - round(self.strength * self.num_inference_steps)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Outputs that are sampled together."""
        return (self.outputs,) if self.joint else tuple((name,) for name in self.outputs)


def make_request(
    preset: Preset,
    known: Sequence[str],
    samplers: Sequence[str],
    inputs: Inputs | Sequence[Inputs] | None,
    outputs: str | Sequence[str],
    *,
    seed: int | Sequence[int] | None,
    num_samples: int,
    num_inference_steps: int | None,
    guidance_scale: float | Mapping[str, float] | None,
    sampler: str | None,
    joint: bool,
    keep: Inputs | Sequence[Inputs] | None,
    strength: float | None,
    control_scale: float,
    control_end: float,
    greedy: bool,
    output_type: str,
    batch_size: int,
) -> Request:
    """Check a call's arguments against ``preset`` and fill in its defaults.

    Args:
        preset: the checkpoint's preset.
        known: names of all modalities that xgem has, for messages and for telling apart unknown from unsupported.
        samplers: names of the samplers.
        inputs: one mapping from modality to value, or a sequence of them; None counts as an empty mapping.
        outputs: one or more modalities to generate.

    Raises:
        InputError: what came, what was expected.
    """
    items = _items(inputs)
    wanted = _outputs(outputs)
    for name in {*wanted, *(name for item in items for name in item)}:
        check_modality(name, known)
    for name in wanted:
        if name not in preset.outputs:
            raise InputError(
                f"preset {preset.name!r} cannot generate {name!r}, only: {', '.join(preset.outputs)}; leave it out, or "
                "name another model (--model)"
            )
    for item in items:
        _check_item(preset, item, wanted)
    steps = preset.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
    name_of_sampler = preset.sampling.sampler if sampler is None else sampler
    if name_of_sampler not in samplers:
        raise InputError(f"sampler {name_of_sampler!r} is not known, expected one of: {', '.join(samplers)}")
    if output_type not in get_args(OutputType):
        raise InputError(f"output_type {output_type!r} is not known, expected one of: pil, np, pt")
    together = bool(joint) and len(wanted) > 1
    if together:
        _check_aligned(preset, wanted)
    steps = _count("num_inference_steps", steps, MAX_STEPS)
    kept = _keep(keep, len(items), wanted)
    return Request(
        items=items,
        outputs=wanted,
        seeds=_seeds(seed, len(items)),
        num_samples=_count("num_samples", num_samples),
        num_inference_steps=steps,
        guidance_scale=_guidance(preset, guidance_scale, wanted),
        sampler=name_of_sampler,
        joint=together,
        keep=kept,
        strength=_strength(strength, steps, any(kept)),
        control_scale=_number("control_scale", control_scale),
        control_end=_number("control_end", control_end, 1.0),
        greedy=bool(greedy),
        output_type=cast(OutputType, output_type),
        batch_size=_count("batch_size", batch_size),
    )


def check_modality(name: object, known: Sequence[str]) -> None:
    """Raise ``InputError`` that lists the known modalities unless ``name`` is one of them."""
    if name not in known:
        raise InputError(f"modality {name!r} is not known, expected one of: {', '.join(known)}")


def _items(inputs: Inputs | Sequence[Inputs] | None) -> tuple[Inputs, ...]:
    if inputs is None:
        return ({},)
    if isinstance(inputs, Mapping):
        return (cast(Inputs, inputs),)
    values: Any = inputs
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InputError(f"inputs are {_kind(values)}, expected a mapping from modality to value, or a list of them")
    items = tuple(cast(Sequence[Any], values))
    if not items:
        raise InputError("inputs are an empty list, expected at least one mapping (an empty mapping is allowed)")
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InputError(f"inputs[{number}] is {_kind(item)}, expected a mapping from modality to value")
    return items


def _outputs(outputs: str | Sequence[str]) -> tuple[str, ...]:
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs or ())
    if not names or not any(names):
        raise InputError("no outputs were asked for, name at least one modality, like 'lateral'")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"output {name!r} is asked for twice; use num_samples for several samples of it")
    return names


def _check_item(preset: Preset, item: Inputs, outputs: Sequence[str]) -> None:
    for name, value in item.items():
        if name in outputs:
            raise InputError(f"{name!r} is an input and an output; a modality is generated from the others only")
        if name not in preset.modalities:
            raise InputError(
                f"preset {preset.name!r} takes no {name!r}, only: {', '.join(preset.modalities)}; leave it out, or "
                "name another model (--model)"
            )
        for output in outputs:
            takes = preset.inputs(output)
            if name not in takes:
                raise InputError(
                    f"output {output!r} takes no {name!r} as input, only: {', '.join(takes)}; leave it out"
                )
        if value is None:
            raise InputError(f"input {name!r} is None; leave out what there is none of")
        if isinstance(value, str | PurePath) and not str(value).isascii():
            try:
                str(value).encode()
            except UnicodeEncodeError:  # bytes of another encoding: they could not be written into metadata
                raise InputError(f"input {name!r} is not valid UTF-8 text; convert or rename it") from None


def _check_aligned(preset: Preset, outputs: Sequence[str]) -> None:
    if preset.alignment is None:
        raise InputError(
            f"preset {preset.name!r} has no alignment, so {', '.join(outputs)} cannot be sampled jointly: "
            "use joint=False (--independent), or train one"
        )
    aligned: Mapping[str, Any] = getattr(preset.components[preset.alignment], "outputs", {})
    for name in outputs:
        if name not in aligned:
            raise InputError(
                f"preset {preset.name!r} has no environment encoder for {name!r}, only for: {', '.join(aligned)}; "
                "use joint=False (--independent)"
            )


def _keep(keep: Inputs | Sequence[Inputs] | None, count: int, outputs: Sequence[str]) -> tuple[Inputs, ...]:
    if keep is None:
        return ({},) * count
    given = _items(keep)
    if len(given) == 1 and isinstance(keep, Mapping):
        given *= count
    if len(given) != count:
        raise InputError(f"keep has {len(given)} items for {count} inputs, expected one, or one for each input")
    for item in given:
        if item.keys() != given[0].keys():
            raise InputError("keep names other outputs for some inputs than for others; ask for them separately")
        for name in item:
            if name not in outputs:
                raise InputError(f"keep names {name!r}, which is not among the outputs: {', '.join(outputs)}")
    return given


def _strength(strength: float | None, steps: int, keeps: bool) -> float:
    if strength is None:
        strength = DEFAULT_STRENGTH
    elif not keeps:
        raise InputError("strength was given, but nothing to keep: name an output and its image with keep")
    try:
        if isinstance(strength, bool | str):
            raise TypeError
        number = float(strength)
    except (TypeError, ValueError):
        raise InputError(f"strength is {strength!r}, expected a number above 0, up to 1") from None
    if not 0 < number <= 1:
        raise InputError(f"strength is {number}, expected a number above 0, up to 1")
    if keeps and round(number * steps) < 1:
        raise InputError(f"strength {number} of {steps} steps is no step: give more of either")
    return number


def _seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if seed is None:
        # 32 bits are enough to differ and short enough to be typed again.
        return tuple(secrets.randbelow(2**32) for _ in range(count))
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise InputError(f"{len(seed)} seeds came for {count} inputs, expected one seed or one for each input")
        return tuple(_seed(value) for value in seed)
    return (_seed(seed),) * count


def _seed(value: Any) -> int:
    number = _integer("seed", value)
    if not 0 <= number <= MAX_SEED:
        raise InputError(f"seed is {number}, expected a whole number from 0 to 2**63 - 1")
    return number


def _count(name: str, value: Any, most: int | None = None) -> int:
    number = _integer(name, value)
    if number < 1 or (most is not None and number > most):
        raise InputError(f"{name} is {number}, expected " + ("1 or more" if most is None else f"1 to {most}"))
    return number


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}, expected a whole number") from None


def _guidance(preset: Preset, scale: float | Mapping[str, float] | None, outputs: Sequence[str]) -> Mapping[str, float]:
    default = preset.sampling.guidance_scale
    if scale is None:
        chosen: dict[str, Any] = {}
    elif isinstance(scale, Mapping):
        strangers = [name for name in scale if name not in outputs]
        if strangers:
            raise InputError(f"guidance_scale names {strangers[0]!r}, which is not among the outputs asked for")
        chosen = dict(scale)
    else:
        chosen = dict.fromkeys(outputs, scale)
    return {name: _number(f"guidance_scale for {name!r}", chosen.get(name, default.get(name, 1.0))) for name in outputs}


def _number(what: str, value: Any, most: float = math.inf) -> float:
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{what} is {value!r}, expected a number") from None
    if not math.isfinite(number) or not 0 <= number <= most:
        expected = "a finite number, 0 or more" if most == math.inf else f"a number from 0 to {most:g}"
        raise InputError(f"{what} is {number}, expected {expected}")
    return number


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"


# (pipeline, step, timestep, {"latents": (rows, *latent), "output": its name})
