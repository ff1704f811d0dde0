"""Checks of a request, before anything is loaded or computed. Imports no torch."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from xgem.pipeline.options import DEFAULT_STRENGTH, CallOptions, Inputs
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.configs.preset import Preset


@dataclass(frozen=True)
class Request:
    """A checked request.

    ``items`` are its inputs, ``seeds``, ``images`` (to start from) and ``areas`` (of them, that may change) of each.
    ``options`` have the preset's defaults
    filled in: ``num_inference_steps``, ``sampler``, ``joint``, ``guidance_start``, ``guidance_end`` and
    ``guidance_rescale`` are set, ``guidance_scale`` has every output, and
    ``strength`` is set where there is an image to start from.
    """

    items: tuple[Inputs, ...]
    outputs: tuple[str, ...]
    seeds: tuple[int, ...]
    images: tuple[Inputs, ...]
    areas: tuple[Inputs, ...]
    options: CallOptions

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return cast(int, self.options.num_inference_steps)

    @property
    def guidance_scale(self) -> Mapping[str, float]:
        """Guidance scale by output."""
        return cast(Mapping[str, float], self.options.guidance_scale)

    @property
    def first_step(self) -> int:
        """The step at which outputs that start from an image begin (SDEdit, Meng et al. 2022)."""
        strength = DEFAULT_STRENGTH if self.options.strength is None else self.options.strength
        return self.steps - round(strength * self.steps)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Outputs that are sampled together."""
        return (self.outputs,) if self.options.joint else tuple((name,) for name in self.outputs)


def make_request(
    preset: Preset,
    known: Sequence[str],
    samplers: Sequence[str],
    inputs: Inputs | Sequence[Inputs] | None,
    outputs: str | Sequence[str],
    options: CallOptions,
) -> Request:
    """Check a request against ``preset`` and fill in its defaults.

    Args:
        preset: the checkpoint's preset.
        known: names of all modalities that xgem has, to tell unknown from unsupported ones.
        samplers: names of the samplers.
        inputs: one mapping from modality to value, or a sequence of them; None counts as an empty mapping.
        outputs: one or more modalities to generate.
        options: of the call.

    Raises:
        InputError: what came, what was expected.
    """
    # Inputs and outputs against the registry, then against the preset.
    items = _items(inputs)
    names = _outputs(outputs)
    for name in {*names, *(name for item in items for name in item)}:
        check_modality(name, known)
    for name in names:
        if name not in preset.outputs:
            raise InputError(
                f"preset {preset.name!r} cannot generate {name!r}, only: {', '.join(preset.outputs)}; leave it out, or "
                "name another model (--model)"
            )
    for item in items:
        _check_item(preset, item, names)
    # Options that the preset decides unless given.
    sampler = preset.sampling.sampler if options.sampler is None else options.sampler
    if sampler not in samplers:
        raise InputError(f"sampler {sampler!r} is not known, expected one of: {', '.join(samplers)}")
    if options.report_section not in (None, *preset.report_sections):
        written = " and ".join(preset.report_sections)
        raise InputError(f"report_section {options.report_section!r}: preset {preset.name!r} writes {written}")
    joint = bool(options.joint) and len(names) > 1
    if joint:
        _check_aligned(preset, names)
    defaults = ("num_inference_steps", "guidance_start", "guidance_end", "guidance_rescale")
    given = {name: getattr(options, name) for name in defaults}
    chosen = {name: getattr(preset.sampling, name) if value is None else value for name, value in given.items()}
    steps = chosen["num_inference_steps"]
    # Options that depend on the items.
    images = _images("image", options.image, len(items), names)
    areas = _images("mask_image", options.mask_image, len(items), tuple(images[0]))
    filled = options.replaced(
        **chosen,
        guidance_scale=_guidance(preset, options.guidance_scale, names),
        sampler=sampler,
        joint=joint,
        strength=_strength(options.strength, steps, any(images)),
    )
    return Request(items, names, _seeds(options.seed, len(items)), images, areas, filled)


def check_modality(name: object, known: Sequence[str]) -> None:
    """Raise ``InputError`` that lists the known modalities unless ``name`` is one of them."""
    if name not in known:
        raise InputError(f"modality {name!r} is not known, expected one of: {', '.join(known)}")


def _items(inputs: Inputs | Sequence[Inputs] | None, what: str = "inputs") -> tuple[Inputs, ...]:
    if inputs is None:
        return ({},)
    if isinstance(inputs, Mapping):
        return (cast(Inputs, inputs),)
    values: Any = inputs
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InputError(f"{what}: {_kind(values)}, expected a mapping from modality to value, or a list of them")
    items = tuple(cast(Sequence[Any], values))
    if not items:
        raise InputError(f"{what}: an empty list, expected at least one mapping (an empty mapping is allowed)")
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InputError(f"{what}[{number}] is {_kind(item)}, expected a mapping from modality to value")
    return items


def _outputs(outputs: str | Sequence[str]) -> tuple[str, ...]:
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs or ())
    if not names or not any(names):
        raise InputError("no outputs were requested, name at least one modality, like 'lateral'")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"output {name!r} is requested twice; use num_samples for several samples of it")
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
            raise InputError(f"input {name!r} is None; leave it out")
        _check_text(f"input {name!r}", value)


def _check_text(what: str, value: Any) -> None:
    """InputError where a text or file name in ``value`` could not be written into metadata."""
    if isinstance(value, Mapping):
        value = [*cast(Mapping[Any, Any], value).keys(), *cast(Mapping[Any, Any], value).values()]
    if isinstance(value, list | tuple):
        for part in cast(Sequence[Any], value):
            _check_text(what, part)
    elif isinstance(value, str | PurePath) and not str(value).isascii():
        try:
            str(value).encode()
        except UnicodeEncodeError:  # bytes of another encoding
            raise InputError(f"{what} is not valid UTF-8 text; convert or rename it") from None


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


def _images(
    option: str, images: Inputs | Sequence[Inputs] | None, count: int, outputs: Sequence[str]
) -> tuple[Inputs, ...]:
    """The values of an option that is a mapping from output to image: one mapping per item."""
    if images is None:
        return ({},) * count
    given = _items(images, option)
    if len(given) == 1 and isinstance(images, Mapping):
        given *= count
    if len(given) != count:
        raise InputError(f"{option} has {len(given)} items for {count} inputs, expected one, or one per input")
    for item in given:
        if item.keys() != given[0].keys():
            raise InputError(f"{option} has different outputs for different inputs; send them as separate requests")
        for name, value in item.items():
            _check_text(f"{option} of {name!r}", value)
            if name not in outputs:
                what = "the outputs" if option == "image" else "the outputs that start from an image (image)"
                raise InputError(f"{option} is for {name!r}, which is not among {what}: {', '.join(outputs) or 'none'}")
    return given


def _strength(strength: float | None, steps: int, has_image: bool) -> float | None:
    if not has_image:
        if strength is not None:
            raise InputError(
                "strength was given without an image to start from: give image (--image) too, or leave it out"
            )
        return None
    strength = DEFAULT_STRENGTH if strength is None else strength
    if round(strength * steps) < 1:
        raise InputError(f"strength {strength:g} of {steps} steps is less than one step; increase either")
    return strength


def _seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if seed is None:
        # 32 bits are enough to differ and short enough to be typed again.
        return tuple(secrets.randbelow(2**32) for _ in range(count))
    if isinstance(seed, int):
        return (seed,) * count
    if len(seed) != count:
        raise InputError(f"{len(seed)} seeds for {count} inputs, expected one seed, or one per input")
    return tuple(seed)


def _guidance(preset: Preset, scale: float | Mapping[str, float] | None, outputs: Sequence[str]) -> dict[str, float]:
    default = preset.sampling.guidance_scale
    given: Mapping[str, float]
    if isinstance(scale, Mapping):
        unknown = [name for name in scale if name not in outputs]
        if unknown:
            raise InputError(f"guidance_scale names {unknown[0]!r}, which is not among the outputs")
        given = scale
    else:
        given = {} if scale is None else dict.fromkeys(outputs, scale)
    return {name: float(given.get(name, default.get(name, 1.0))) for name in outputs}


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"
