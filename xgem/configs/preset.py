"""The schema of presets. A preset is saved beside the weights, so that a checkpoint explains itself."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

from pydantic import Field, model_validator

from xgem.configs.alignment import AlignmentConfig, TransformerAlignmentConfig
from xgem.configs.base import Config, Role, Section
from xgem.configs.components import (
    SHARED_WITH_CONTROL,
    ComponentConfig,
    ControlNetConfig,
    DiTGeneratorConfig,
    FCReportGeneratorConfig,
    GeneratorConfig,
    ImageEncoderConfig,
    ImageGeneratorConfig,
    ImageVAEConfig,
    ReportGeneratorConfig,
    ReportVAEConfig,
    T5EncoderConfig,
    TextEncoderConfig,
    TransformConfig,
)
from xgem.configs.yaml_text import parse_yaml, read_yaml
from xgem.labels.spatial import Vocabulary
from xgem.types import ConfigError

_T = TypeVar("_T")
_ENCODERS = (ImageEncoderConfig, TextEncoderConfig, T5EncoderConfig)
_GENERATORS = (ImageGeneratorConfig, DiTGeneratorConfig, ReportGeneratorConfig, FCReportGeneratorConfig)
_CODECS = (ImageVAEConfig, ReportVAEConfig)
_ALIGNMENTS = (AlignmentConfig, TransformerAlignmentConfig)


class ModalityConfig(Config):
    """How one modality takes part; all by name.

    ``encoder`` is the component that reads it as a prompt; ``codec`` and ``generator`` are those that make it.
    ``joins`` is the text prompt that its values are written in front of (demographics). ``control`` is the ControlNet
    that lets annotations steer its generator; annotations themselves name nothing.
    """

    encoder: str | None = None
    codec: str | None = None
    generator: str | None = None
    control: str | None = None
    joins: str | None = None

    @model_validator(mode="after")
    def _codec_with_generator(self) -> ModalityConfig:
        if (self.codec is None) != (self.generator is None):
            raise ValueError("expected codec and generator, or neither")
        if self.control is not None and self.generator is None:
            raise ValueError("expected a generator where there is a control")
        return self


class SamplingConfig(Config):
    """Defaults of ``generate``. ``guidance_scale`` by output; 1 is no guidance.

    Guidance is on between the fractions ``guidance_start`` and ``guidance_end`` of the steps; ``guidance_rescale`` as
    ``xgem.generators.sampling.guided`` takes it.
    """

    added: ClassVar[tuple[str, ...]] = ("guidance_start", "guidance_end", "guidance_rescale")
    num_inference_steps: int = Field(default=25, ge=1)
    guidance_scale: dict[str, float] = Field(default_factory=dict[str, float])
    sampler: Literal["dpmsolver++", "sde-dpmsolver++", "ddim", "unipc"] = "dpmsolver++"
    guidance_start: float = Field(default=0.0, ge=0, le=1)
    guidance_end: float = Field(default=1.0, ge=0, le=1)
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)


class StageConfig(Config):
    """How one stage is trained. ``batch_size`` counts the samples of all processes together; ``loss`` holds the stage's
    own weights, and each stage checks its keys. ``optimizer``: see :func:`xgem.train.optimizer.optimizer_of`.
    ``decayed``: weight decay is of matrices and kernels alone, not of norms, biases and single vectors, or of all.
    """

    added: ClassVar[tuple[str, ...]] = ("optimizer", "decayed")
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    validate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    patience: int | None = Field(default=None, ge=1)
    """Stop rule: validations without a better loss before training stops; None trains all steps."""
    workers: int = Field(default=0, ge=0)
    """Processes that make batches ahead, for stages that read images; they change no result."""
    loss: dict[str, float] = Field(default_factory=dict[str, float])
    optimizer: Literal["adam", "adamw"] = "adamw"
    decayed: Literal["matrices", "all"] = "matrices"

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, value: Any) -> Any:
        """Checkpoints of before have a number of parts, each of ``batch_size``, which made a batch together."""
        if not isinstance(value, dict) or "gradient_accumulation" not in value:
            return cast(Any, value)
        fields = dict(cast(dict[str, Any], value))
        parts, size = fields.pop("gradient_accumulation"), fields.get("batch_size")
        if not isinstance(parts, int) or parts < 1:
            raise ValueError(f"gradient_accumulation is {parts!r}, expected a number of parts: leave it out")
        return fields | ({"batch_size": size * parts} if isinstance(size, int) else {})


class Preset(Config):
    """One model: preprocessing, components, how modalities use them, sampling defaults and training."""

    added: ClassVar[tuple[str, ...]] = ("captions", "prefix", "deviations", "assumptions")
    name: str
    description: str = ""
    transform: TransformConfig = TransformConfig()
    components: dict[str, ComponentConfig]
    modalities: dict[str, ModalityConfig]
    alignment: str | None = None
    """The component that lets outputs be sampled together; None: they are sampled independently."""
    sampling: SamplingConfig = SamplingConfig()
    report_sections: tuple[Section, ...] = ("impression",)
    """The sections that make the report a generator learns to write; findings come first."""
    prompt_sections: tuple[Section, ...] | None = None
    """The sections whose text a report as prompt is, in training; None: any text that describes the study."""
    captions: Literal["none", "labels", "qualified"] = "labels"
    """Captions beside reports: of the labels; ``qualified`` adds those of findings with side, place and size."""
    prefix: Literal["optional", "always"] = "optional"
    """Demographics and severity in front of texts, in training: texts with and without, and every part of it alone; or
    ``always``, all that is known, in front of every text."""
    train: dict[str, StageConfig] = Field(default_factory=dict[str, StageConfig])
    deviations: tuple[str, ...] = ()
    """Where it differs from the paper that it follows."""
    assumptions: tuple[str, ...] = ()
    """What that paper does not state."""

    @model_validator(mode="after")
    def _names_exist(self) -> Preset:
        for name, modality in self.modalities.items():
            for part in (modality.encoder, modality.codec, modality.generator, modality.control):
                if part is not None and part not in self.components:
                    raise ValueError(f"modality {name!r} names component {part!r}, which the preset does not define")
            if modality.joins is not None and modality.joins not in self.modalities:
                raise ValueError(f"modality {name!r} joins {modality.joins!r}, which the preset does not have")
            if modality.generator is None:
                continue
            prompts = getattr(self.components[modality.generator], "prompts", ())
            if name in prompts:
                raise ValueError(f"generator {modality.generator!r} lists its own target {name!r} among its prompts")
            unknown = set(prompts) - set(self.modalities)
            if unknown:
                raise ValueError(f"generator {modality.generator!r} lists unknown prompts {sorted(unknown)}")
            silent = [prompt for prompt in prompts if self.modalities[prompt].encoder is None]
            if silent:
                raise ValueError(f"generator {modality.generator!r} lists prompts without an encoder: {silent}")
        return self

    @model_validator(mode="after")
    def _components_fit(self) -> Preset:
        """Components of fresh weights fit together; pretrained ones set their own sizes when they are loaded."""
        for name, modality in self.modalities.items():
            if modality.encoder is not None:
                encoder = self._in_role(name, modality.encoder, "encoder", _ENCODERS)
                self._check_size(modality.encoder, encoder.fixed_size)
            if modality.codec is None or modality.generator is None:
                continue
            codec = self._in_role(name, modality.codec, "codec", _CODECS)
            self._check_size(modality.codec, codec.fixed_size)
            generator = self._in_role(name, modality.generator, "generator", _GENERATORS)
            if generator.modality != name:
                raise ValueError(f"generator {modality.generator!r} makes {generator.modality!r}, used for {name!r}")
            made, wanted = codec.latent_shape, generator.latent_shape
            if made is not None and made != wanted:
                raise ValueError(f"{modality.codec!r} makes latents {made}, {modality.generator!r} expects {wanted}")
            for prompt in generator.prompts:
                self._check_context(modality.generator, generator, str(self.modalities[prompt].encoder))
            self._check_control(modality, generator)
        return self

    def _in_role(self, modality: str, component: str, role: Role, kinds: type[_T] | tuple[type[_T], ...]) -> _T:
        """The configuration of a component, which has to have that role."""
        config: Any = self.components[component]
        if not isinstance(config, kinds):
            article = "an" if role == "encoder" else "a"
            raise ValueError(f"modality {modality!r}: {component!r} is a {config.kind}, expected {article} {role}")
        return config

    def _check_size(self, name: str, fixed: int | None) -> None:
        """The transform makes images of the size that a component takes."""
        size = self.transform.size
        if fixed not in (None, size):
            hint = ": change one, or set resize" if self.components[name].role == "encoder" else ""
            raise ValueError(f"{name!r} takes images of {fixed}, the transform makes {size}{hint}")

    def _check_control(self, modality: ModalityConfig, generator: GeneratorConfig) -> None:
        """A ControlNet is made of copies of its generator's blocks, and its annotations are modalities."""
        if modality.control is None:
            return
        control = self.components[modality.control]
        if not isinstance(control, ControlNetConfig) or not isinstance(generator, DiTGeneratorConfig):
            raise ValueError(f"{modality.control!r} is a {control.kind}: a controlnet steers a dit_generator, no other")
        unknown = set(control.annotations) - set(self.modalities)
        if unknown:
            raise ValueError(f"{modality.control!r} lists unknown annotations {sorted(unknown)}")
        if not control.fits(generator):
            same = ", ".join(SHARED_WITH_CONTROL)
            raise ValueError(
                f"{modality.control!r} is of another architecture than {modality.generator!r}: expected fewer blocks, "
                f"and the same {same}"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The modalities that it generates."""
        return tuple(name for name, modality in self.modalities.items() if modality.generator is not None)

    def inputs(self, output: str) -> tuple[str, ...]:
        """The modalities that ``output`` is generated from: prompts, what is written in front of them, annotations."""
        prompts: tuple[str, ...] = getattr(self.components[self.generator(output)], "prompts", ())
        control = self.modalities[output].control
        annotations: tuple[str, ...] = () if control is None else getattr(self.components[control], "annotations", ())
        joined = [name for name, modality in self.modalities.items() if modality.joins in prompts]
        return tuple(dict.fromkeys((*prompts, *joined, *annotations)))

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The structures and box classes that its ControlNets know; None without a ControlNet."""
        parts = [part for part in self.components.values() if isinstance(part, ControlNetConfig)]
        if not parts:
            return None
        return Vocabulary(
            tuple(dict.fromkeys(name for part in parts for name in part.vocabulary.structures)),
            tuple(dict.fromkeys(name for part in parts for name in part.vocabulary.box_classes)),
        )

    def encoder(self, name: str) -> str:
        """The component that reads modality ``name`` as a prompt; ConfigError where it is none."""
        return self._part(name, "encoder")

    def codec(self, name: str) -> str:
        """The component that codes modality ``name``; ConfigError where it is no output."""
        return self._part(name, "codec")

    def generator(self, name: str) -> str:
        """The component that generates modality ``name``; ConfigError where it is no output."""
        return self._part(name, "generator")

    def _part(self, name: str, kind: str) -> str:
        part = getattr(self.modalities.get(name), kind, None)
        if part is None:
            raise ConfigError(f"preset {self.name!r} has no {kind} for {name!r}")
        return part

    @model_validator(mode="after")
    def _alignment_fits(self) -> Preset:
        if self.alignment is None:
            return self
        config = self.components.get(self.alignment)
        if not isinstance(config, _ALIGNMENTS):
            raise ValueError(f"alignment names component {self.alignment!r}, which is none of kind 'alignment'")
        strangers = set(config.guided) - set(config.outputs)
        if strangers:
            raise ValueError(f"{self.alignment!r} guides {sorted(strangers)}, which it does not align")
        for name, output in config.outputs.items():
            if name not in self.modalities:
                raise ValueError(f"{self.alignment!r} aligns {name!r}, which the preset does not have")
            wanted = getattr(self.components[self.generator(name)], "latent_shape", None)
            if output.latent_shape != wanted:
                raise ValueError(f"{self.alignment!r} takes {name} latents {output.latent_shape}, they are {wanted}")
        return self

    def _check_context(self, name: str, generator: GeneratorConfig, encoder_name: str) -> None:
        """A prompt's tokens and pooled vector have the widths that the generator attends to."""
        encoder = self._in_role(generator.modality, encoder_name, "encoder", _ENCODERS)
        tokens, pooled = encoder.token_dim, encoder.embed_dim
        if tokens is None:  # pretrained: its widths are known when it is loaded
            return
        if generator.reads_pooled and pooled != generator.pooled_dim:
            raise ValueError(f"{encoder_name!r} has embed_dim {pooled}, {name!r} pooled_dim {generator.pooled_dim}")
        if generator.context == "tokens" and tokens != generator.context_dim:
            raise ValueError(f"{encoder_name!r} has width {tokens}, {name!r} context_dim {generator.context_dim}")


def preset_names() -> list[str]:
    """Names of the presets that ship with xgem."""
    folder = resources.files("xgem.configs") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name_or_path: str | Path) -> Preset:
    """A preset by name or from a YAML file.

    A file that ``extends`` another preset (a name, or a path from the file's folder) takes from that every field of the
    top level that it does not have itself, except how that one differs from a paper.

    Raises:
        ConfigError: an unknown name (lists the known ones), a file that cannot be read, or a field that is not valid.
    """
    return Preset.parse(_values(name_or_path, ()), str(name_or_path))


def _values(name_or_path: str | Path, before: tuple[str, ...]) -> dict[str, Any]:
    """What stands in a preset, with what it extends; ``before``: the presets that extend it."""
    name, path = str(name_or_path), Path(name_or_path)
    if name in before:
        raise ConfigError(f"preset {before[0]} extends itself: {' extends '.join((*before, name))}")
    if path.suffix in {".yaml", ".yml"}:
        read = read_yaml(path)
    elif name in preset_names():
        read = parse_yaml((resources.files("xgem.configs") / "presets" / f"{name}.yaml").read_text("utf-8"), name)
    else:
        raise ConfigError(f"unknown preset {name!r}: expected one of {', '.join(preset_names())} or a .yaml file")
    if not isinstance(read, dict):
        raise ConfigError(f"{name}: expected the fields of a preset, got {type(read).__name__}")
    values = cast(dict[str, Any], read)
    if "extends" not in values:
        return values
    other = str(values.pop("extends"))
    if other.endswith((".yaml", ".yml")):
        other = str(path.parent / other)  # as it is named from the file's own folder
    taken = _values(other, (*before, name))
    return {key: value for key, value in taken.items() if key not in ("deviations", "assumptions")} | values
