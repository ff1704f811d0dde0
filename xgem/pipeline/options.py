"""The options of a request, each written once: its name, type, default, range and help text. Imports no torch.

A field of :class:`CallOptions` is what ``XgemPipeline.__call__`` takes, ``xgem generate`` offers, metadata record and
``xgem replay`` restores. A cohort's plan has the fields of :class:`SamplingOptions` too. A new option is a field here,
a line in :class:`CallKeywords`, which type checkers and editors read, and the code that uses it.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypedDict, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from xgem.configs.base import Rescale, Section, Voi
from xgem.configs.reading import ReadOptions, read_help
from xgem.pipeline.limits import MAX_SEED, Limits
from xgem.types import InputError, OptionError

if TYPE_CHECKING:
    import torch

    from xgem.pipeline.privacy_gate import PrivacyGate

OutputType = Literal["pil", "np", "pt", "latent"]
Format = Literal["png", "dicom"]
"""Of saved images; with ``png``, reports are text and annotations PNG or JSON."""
Inputs = Mapping[str, Any]
"""From modality to value."""
StepCallback = Callable[[Any, int, int, dict[str, Any]], None]
"""Called as ``f(pipeline, step, timestep, values)`` after every step of every output.

``values``: ``latents`` (b, *latent_shape); ``estimate``, of the same shape, what they are expected to become, for a
preview by ``pipeline.decode(output, estimate)``; ``output``, its modality; ``rows``, by sample of the batch its item,
its index and its seed. An exception that it raises ends the request."""

MAX_STEPS: Final = 1000
MAX_GUIDANCE_SCALE: Final = 100
LARGE_GUIDANCE_SCALE: Final = 20
"""Above it, pictures are saturated."""
MAX_CONTROL_SCALE: Final = 10
MAX_CANDIDATES: Final = 64
DEFAULT_BATCH_SIZE: Final = 16
DEFAULT_STRENGTH: Final = 0.5

RENAMED: Final = {
    "keep": "image",
    "control_scale": "controlnet_conditioning_scale",
    "control_end": "control_guidance_end",
}
"""Options by the names that they had in 0.1.0, which are accepted until 0.3."""


DIFFERENT_NAMES: Final = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "n_samples": "num_samples",
    "num_images_per_prompt": "num_samples",
    "scheduler": "sampler",
    "callback": "callback_on_step_end",
}
"""What other libraries call our options, to suggest them."""


FORMER_LIMITS: Final = {"guidance_scale": Limits(0), "controlnet_conditioning_scale": Limits(0)}
"""What scales were accepted before there were bounds: of recorded ones, so that every file replays."""


@dataclass(frozen=True)
class Option:
    """What an option is beside its type and default.

    Attributes:
        help: one or two sentences, for the command line and ``help()``.
        limits: the numbers that it accepts.
        unset: what None stands for.
        recorded: whether it decides what a sample is, so that metadata hold it and a replay restores it; ``"given"``:
            only where it is not None, as metadata of before have it.
        command_line: whether ``xgem generate`` takes it as it is; a text gives the flags.
    """

    help: str
    limits: Limits | None = None
    unset: str = ""
    recorded: bool | Literal["given"] = False
    command_line: bool | str = True


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @field_validator("*", mode="before")
    @classmethod
    def _within_limits(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        limits = next((part.limits for part in field.metadata if isinstance(part, Option)), None)
        if limits is None or (value is None and field.default is None):
            return value
        if info.context is not None:
            limits = cast(Mapping[str, Limits], info.context).get(str(info.field_name), limits)
        return limits.check(str(info.field_name), value)


class SamplingOptions(_Options):
    """How outputs are sampled: what a request and the plan of a cohort have in common."""

    num_inference_steps: Annotated[
        int | None, Option("Number of sampling steps.", Limits(1, MAX_STEPS, whole=True), "the preset's", recorded=True)
    ] = None
    guidance_scale: Annotated[
        float | dict[str, float] | None,
        Option(
            "Classifier-free guidance scale; 1 disables it. One number, or one per output: lateral=2,report=1.5",
            Limits(0, MAX_GUIDANCE_SCALE),
            "the preset's",
            recorded=True,
        ),
    ] = None
    guidance_start: Annotated[
        float | None,
        Option("Fraction of the sampling steps at which guidance begins.", Limits(0, 1), "the preset's", "given"),
    ] = None
    guidance_end: Annotated[
        float | None,
        Option("Fraction of the sampling steps after which guidance ends.", Limits(0, 1), "the preset's", "given"),
    ] = None
    guidance_rescale: Annotated[
        float | None,
        Option(
            "How far guided predictions get the standard deviation of those without, against saturation.",
            Limits(0, 1),
            "the preset's",
            "given",
        ),
    ] = None
    sampler: Annotated[
        str | None,
        Option("Sampler: dpmsolver++, sde-dpmsolver++, ddim or unipc.", unset="the preset's", recorded=True),
    ] = None
    joint: Annotated[
        bool | None,
        Option(
            "Sample several outputs jointly (XGeM 2.3), so that they agree, or each one independently.",
            unset="joint where the checkpoint has a trained alignment",
            recorded=True,
            command_line="--joint/--independent",
        ),
    ] = None
    controlnet_conditioning_scale: Annotated[
        float, Option("ControlNet conditioning scale; 0 disables it.", Limits(0, MAX_CONTROL_SCALE), recorded=True)
    ] = 1.0
    control_guidance_end: Annotated[
        float, Option("Fraction of the sampling steps after which the ControlNet stops.", Limits(0, 1), recorded=True)
    ] = 1.0
    greedy: Annotated[
        bool, Option("Decode reports greedily (most likely token), or sample tokens, seeded.", recorded=True)
    ] = True
    report_section: Annotated[
        Section | None,
        Option(
            "Only this section of a report, findings or impression, without its heading.",
            unset="all that the preset writes",
            recorded="given",
        ),
    ] = None
    num_candidates: Annotated[
        int,
        Option(
            "Candidates for each sample, of which the one that agrees best with the inputs (and joint outputs with "
            "each other) is kept: so many times the cost.",
            Limits(1, MAX_CANDIDATES, whole=True),
        ),
    ] = 1
    batch_size: Annotated[int, Option("Maximum batch size.", Limits(1, whole=True))] = DEFAULT_BATCH_SIZE


class CallOptions(SamplingOptions):
    """Every option of a request, as ``XgemPipeline.__call__`` takes them."""

    seed: Annotated[
        int | tuple[int, ...] | None,
        Option(
            "Random seed; in Python also one seed per item. A sample depends on its own seed, output and index only.",
            Limits(0, MAX_SEED, whole=True),
            "random, recorded in the metadata",
        ),
    ] = None
    generator: Annotated[
        Any, Option("torch.Generator, or one per item, from which the seed is drawn.", command_line=False)
    ] = None
    num_samples: Annotated[int, Option("Samples per input.", Limits(1, whole=True), recorded=True)] = 1
    image: Annotated[
        Any,
        Option(
            "Output to start from an image instead of from noise alone (SDEdit); changed towards the inputs.",
            unset="noise alone",
        ),
    ] = None
    strength: Annotated[
        float | None,
        Option(
            "How much an output that starts from an image is changed; 1 ignores the image.",
            Limits(0, 1, open=True),
            f"{DEFAULT_STRENGTH:g}",
            recorded=True,
        ),
    ] = None
    mask_image: Annotated[
        Any,
        Option(
            "Where an output that starts from an image may change (white); elsewhere it keeps the image's pixels.",
            unset="everywhere",
        ),
    ] = None
    device: Annotated[Any, Option("Device: cpu, cuda, cuda:1 ...", unset="a GPU if there is one, or cpu")] = None
    dtype: Annotated[Any, Option("Number format: float32, bfloat16 or float16.", unset="float32")] = None
    progress: Annotated[bool, Option("Show progress bars (on stderr).")] = True
    callback_on_step_end: Annotated[
        Any,
        Option(
            'Called as f(pipeline, step, timestep, {"latents": ..., "estimate": ..., "output": ..., "rows": ...}) '
            "after every step; pipeline.decode makes a preview of an estimate, and an exception ends the request.",
            command_line=False,
        ),
    ] = None
    output_type: Annotated[
        OutputType,
        Option(
            'Images as "pil", "np" ((h, w) float32 in [0, 1]) or "pt" ((1, h, w) in [0, 1]); "latent" leaves all '
            "outputs undecoded.",
            command_line=False,
        ),
    ] = "pil"
    allow_any: Annotated[
        bool,
        Option(read_help("allow_any"), command_line="--allow-any"),
    ] = False
    voi: Annotated[Voi | None, Option(read_help("voi"), unset="the preset's", recorded="given")] = None
    rescale: Annotated[Rescale | None, Option(read_help("rescale"), unset="the preset's", recorded="given")] = None
    invert: Annotated[bool | None, Option(read_help("invert"), unset="the preset's", recorded="given")] = None
    privacy_gate: Annotated[
        Any,
        Option(
            "Resample images that are too close to a training image, with all outputs that are sampled jointly.",
            command_line=False,  # a file there, with options of its own
        ),
    ] = None

    @classmethod
    def parse(cls, given: Mapping[str, Any], limits: Mapping[str, Limits] | None = None) -> Self:
        """The options among keyword arguments; ``limits`` take the place of an option's own.

        Raises:
            InputError: a value that cannot be used; says what came and what was expected.
            OptionError: a keyword that is no option.
        """
        unknown = next((name for name in given if name not in cls.model_fields), None)
        if unknown is not None:
            nearest = difflib.get_close_matches(unknown, (*cls.model_fields, *DIFFERENT_NAMES), 1)
            meant = [DIFFERENT_NAMES.get(name, name) for name in nearest]
            hint = f" (did you mean {meant[0]}?)" if meant else ""
            raise OptionError(
                f"unexpected keyword argument {unknown!r}{hint}; options are: {', '.join(cls.model_fields)}"
            )
        try:
            return cls.model_validate(dict(given), context=limits)
        except ValidationError as error:
            raise InputError(error_line(error)) from None

    @classmethod
    def recorded(cls, metadata: Mapping[str, Any]) -> Self:
        """The options that metadata hold (of today's format); the default where an option is newer than they are.

        Raises:
            InputError: a value that cannot be used.
        """
        return cls.parse({name: metadata[name] for name in RECORDED if name in metadata}, FORMER_LIMITS)

    def replaced(self, **changes: Any) -> Self:
        """With some options changed to values that are known to be good."""
        return self.model_copy(update=changes)

    def record(self) -> dict[str, Any]:
        """What metadata hold, as JSON values."""
        values = {name: getattr(self, name) for name in RECORDED}
        return {name: value for name, value in values.items() if value is not None or option(name).recorded != "given"}

    @property
    def reading(self) -> ReadOptions:
        """How the given radiographs are read, those to start from too."""
        return ReadOptions(voi=self.voi, rescale=self.rescale, invert=self.invert, allow_any=self.allow_any or None)


class CallKeywords(TypedDict, total=False):
    """The keyword arguments of a call for type checkers and editors; what each means stands in :class:`CallOptions`."""

    num_inference_steps: int | None
    guidance_scale: float | Mapping[str, float] | None
    guidance_start: float | None
    guidance_end: float | None
    guidance_rescale: float | None
    sampler: str | None
    joint: bool | None
    controlnet_conditioning_scale: float
    control_guidance_end: float
    greedy: bool
    report_section: Section | None
    num_candidates: int
    batch_size: int
    seed: int | Sequence[int] | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    num_samples: int
    image: Inputs | Sequence[Inputs] | None
    strength: float | None
    mask_image: Inputs | Sequence[Inputs] | None
    device: str | torch.device | None
    dtype: str | torch.dtype | None
    progress: bool
    callback_on_step_end: StepCallback | None
    output_type: str
    allow_any: bool
    voi: Voi | None
    rescale: Rescale | None
    invert: bool | None
    privacy_gate: PrivacyGate | None


def option(name: str) -> Option:
    """What the field ``name`` of :class:`CallOptions` says of itself."""
    return next(part for part in CallOptions.model_fields[name].metadata if isinstance(part, Option))


RECORDED: Final = tuple(name for name in CallOptions.model_fields if option(name).recorded)
"""Options that metadata hold, beside the seed and the images to start from."""


def renamed(given: Mapping[str, Any], *, quietly: bool = False, stacklevel: int = 3) -> dict[str, Any]:
    """Options by their names of today, whichever names they came by; old ones with a ``DeprecationWarning``.

    Raises:
        InputError: one option was given by both names.
    """
    values = dict(given)
    for old in [name for name in given if name in RENAMED]:
        new = RENAMED[old]
        if new in given:
            raise InputError(f"{old} is the old name of {new}, and both were given; give {new} alone")
        if not quietly:
            warnings.warn(f"{old} is deprecated, use {new}", DeprecationWarning, stacklevel=stacklevel)
        values[new] = values.pop(old)
    return values


def error_line(error: ValidationError) -> str:
    """What is wrong, in a line: the option, what came, what was expected."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        return f"{name} {first['input']!r} is not known, expected {first.get('ctx', {}).get('expected')}"
    return f"{name} is {first['input']!r}: {first['msg']}"


_F = TypeVar("_F", bound=Callable[..., Any])


def documented(function: _F) -> _F:
    """Show every option in ``help()`` of a function that takes them as keyword arguments, ``**options``."""
    signature = inspect.signature(function)
    own = [part for part in signature.parameters.values() if part.kind is not inspect.Parameter.VAR_KEYWORD]
    types = inspect.get_annotations(CallKeywords)
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[name])
        for name, field in CallOptions.model_fields.items()
    ]
    lines = [inspect.cleandoc(function.__doc__ or ""), "", "Options:"]
    for name, field in CallOptions.model_fields.items():
        about = option(name)
        limits = "" if about.limits is None else f" Expected {about.limits}."
        lines.append(f"    {name}: {about.help}{limits} Default: {about.unset or repr(field.default)}.")
    function.__doc__ = "\n".join(lines)
    vars(function)["__signature__"] = signature.replace(parameters=[*own, *keywords])
    return function
