"""The schema of presets. A preset is saved beside the weights, so that a checkpoint explains itself."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xgem.types import ConfigError


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformConfig(_Config):
    """Preprocessing of pictures (XGeM 3.1), every step switchable.

    ``pixel_spacing`` in mm (None leaves the spacing alone); ``pad`` fills to a square with zeros instead of
    squashing; ``voi`` applies a DICOM window or LUT before MONOCHROME1 is inverted.
    """

    size: int = Field(default=256, ge=16)
    pixel_spacing: float | None = Field(default=None, gt=0)
    pad: bool = True
    voi: Literal["none", "window", "lut"] = "none"
    invert_monochrome1: bool = True
    interpolation: Literal["bicubic", "area", "bilinear"] = "area"


class ImageEncoderConfig(_Config):
    """One ViT for both views. ``pretrained``: an open_clip hub id or local directory; it then sets the sizes.

    ``resize`` lets it take pictures of another size than its own, resized with antialiasing.
    """

    kind: Literal["image_encoder"] = "image_encoder"
    pretrained: str | None = None
    image_size: int = 128
    patch_size: int = 16
    width: int = 192
    layers: int = 6
    heads: int = 3
    embed_dim: int = 256
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    resize: bool = False

    @property
    def size_is_fixed(self) -> bool:
        return not (self.resize or self.pretrained)


class TextEncoderConfig(_Config):
    """One text transformer with a padding mask. ``pretrained`` as for pictures."""

    kind: Literal["text_encoder"] = "text_encoder"
    pretrained: str | None = None
    vocab_size: int = 4096
    max_length: int = 128
    width: int = 192
    layers: int = 4
    heads: int = 3
    embed_dim: int = 256


class T5EncoderConfig(_Config):
    """T5's encoder (T5 v1.1-XXL by default), frozen. ``pretrained``: a transformers hub id or local directory with its
    tokenizer; it then sets the sizes.

    ``width`` is d_model, of which every head has its share; texts are cut after ``max_length`` tokens. ``lowercase``
    as PixArt and ChexGen do. On small devices: ``quantize`` "4bit" stores linear layers as 4-bit floats on a CUDA
    device; with ``on_cpu`` it runs on the CPU, wherever the rest is.
    """

    kind: Literal["t5_encoder"] = "t5_encoder"
    pretrained: str | None = None
    vocab_size: int = 32128
    max_length: int = Field(default=120, ge=1)
    width: int = 4096
    layers: int = 24
    heads: int = 64
    d_ff: int = 10240
    lowercase: bool = True
    quantize: Literal["none", "4bit"] = "none"
    on_cpu: bool = False

    @model_validator(mode="after")
    def _one_place(self) -> T5EncoderConfig:
        if self.on_cpu and self.quantize != "none":
            raise ValueError("on_cpu and quantize 4bit are both set: 4-bit layers need a CUDA device, choose one")
        return self

    @property
    def embed_dim(self) -> int:
        """Width of its pooled vector, which is a mean of its tokens."""
        return self.width


class ImageVAEConfig(_Config):
    """AutoencoderKL. ``patch`` folds p x p pixels into channels first, so the finest convolutions run at 1/p.

    ``pretrained``: a diffusers hub id or directory (3-channel Stable Diffusion VAEs load too).
    ``latent_mean`` and ``latent_std`` (one a channel) normalise latents; training measures them.
    """

    kind: Literal["image_vae"] = "image_vae"
    pretrained: str | None = None
    image_size: int = 128
    in_channels: int = 1
    patch: int = 2
    shortcut: bool = False
    """A linear block transform beside the network, started from principal components; one-channel codecs only."""
    block_out_channels: tuple[int, ...] = (32, 64, 128)
    layers_per_block: int = 1
    latent_channels: int = 8
    norm_num_groups: int = 8
    mid_block_add_attention: bool = False
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None

    @property
    def downscale(self) -> int:
        return self.patch * 2 ** (len(self.block_out_channels) - 1)


class ReportVAEConfig(_Config):
    """Optimus: BERT encoder, GPT-2 decoder with memory and embedding injection.

    ``pretrained_encoder`` / ``pretrained_decoder``: transformers hub ids or directories. ``latent_std`` makes the
    diffusion target's standard deviation 1 (4.3108 is the published scale, its reciprocal).
    """

    kind: Literal["report_vae"] = "report_vae"
    pretrained_encoder: str | None = None
    pretrained_decoder: str | None = None
    vocab_size: int = 4096
    max_length: int = 128
    width: int = 192
    layers: int = 3
    heads: int = 3
    latent_dim: int = 768
    dropout: float = 0.1
    latent_mean: float = 0.0
    latent_std: float = 1.0

    @model_validator(mode="after")
    def _both_or_none(self) -> ReportVAEConfig:
        if (self.pretrained_encoder is None) != (self.pretrained_decoder is None):
            raise ValueError("expected pretrained_encoder and pretrained_decoder, or neither")
        return self


class DiffusionConfig(_Config):
    """The forward process. Defaults are Stable Diffusion's, as XGeM uses them."""

    num_train_timesteps: int = Field(default=1000, ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False


class _GeneratorConfig(_Config):
    modality: str
    prompts: tuple[str, ...]
    context: Literal["pooled", "tokens"] = "tokens"
    context_dim: int = 192
    """Width of the prompt encoders' tokens."""
    pooled_dim: int = 256
    """Width of the shared space."""
    null_probability: float = Field(default=0.1, ge=0, le=1)
    diffusion: DiffusionConfig = DiffusionConfig()


class ImageGeneratorConfig(_GeneratorConfig):
    """A diffusers UNet2DConditionModel over picture latents."""

    kind: Literal["image_generator"] = "image_generator"
    pretrained: str | None = None
    latent_shape: tuple[int, int, int] = (8, 16, 16)
    block_out_channels: tuple[int, ...] = (96, 192, 256)
    attention: tuple[bool, ...] = (True, True, True)
    layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 32
    cross_attention_dim: int = 192
    norm_num_groups: int = 32


class DiTGeneratorConfig(_GeneratorConfig):
    """A diffusion transformer over picture latents (PixArt-alpha's, as ChexGen uses it).

    ``context_dim`` is the width of caption tokens (T5 v1.1-XXL: 4096), of which there are at most ``caption_tokens``.
    ``position_scale`` divides the patches' positions: a grid twice as large spans the same coordinates with scale 2.
    ``learned_sigma`` doubles the output channels: the second half, a variance, is read by no sampler and gets no loss.
    """

    kind: Literal["dit_generator"] = "dit_generator"
    context: Literal["pooled", "tokens"] = "tokens"
    latent_shape: tuple[int, int, int] = (4, 32, 32)
    patch_size: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    caption_tokens: int = Field(default=120, ge=1)
    position_scale: float = Field(default=1.0, gt=0)
    learned_sigma: bool = True
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _sizes_divide(self) -> DiTGeneratorConfig:
        if self.width % self.heads:
            raise ValueError(f"expected a width that {self.heads} heads divide, got {self.width}")
        if any(side % self.patch_size for side in self.latent_shape[1:]):
            raise ValueError(f"expected sides that patches of {self.patch_size} divide, got {self.latent_shape}")
        return self


class ReportGeneratorConfig(_GeneratorConfig):
    """The UNet of linear blocks over report latents (Versatile Diffusion's text UNet).

    ``fully_connected``: a block's linear layers join all tokens, as published; otherwise the tokens share them, whose
    weights are then fewer by the square of ``tokens``.
    """

    kind: Literal["report_generator"] = "report_generator"
    latent_dim: int = 768
    tokens: int = 4
    fully_connected: bool = True
    width: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    attention: tuple[bool, ...] | None = None
    """Which levels attend to their tokens and to the context; None: all."""
    layers_per_block: int = 2
    head_dim: int = 64
    cross_attention_dim: int | None = None
    """Width of the fused context; None: that of the first level."""
    dropout: float = 0.0
    norm_num_groups: int = 32

    @model_validator(mode="after")
    def _one_a_level(self) -> ReportGeneratorConfig:
        if self.attention is not None and len(self.attention) != len(self.channel_mult):
            raise ValueError(f"expected one attention flag a level, {len(self.channel_mult)}, got {self.attention}")
        return self

    @property
    def latent_shape(self) -> tuple[int]:
        return (self.latent_dim,)

    @property
    def joined_tokens(self) -> int:
        """How many tokens a linear layer takes at once."""
        return self.tokens if self.fully_connected else 1

    @property
    def context_width(self) -> int:
        return self.cross_attention_dim or self.width


class AlignedOutput(_Config):
    """What an alignment must know of one output's generator."""

    latent_shape: tuple[int, ...]
    sites: tuple[int, ...]
    """Hidden channels at the denoiser's attention sites, its transformer blocks in order."""


class AlignmentConfig(_Config):
    """Environment encoders and cross-attention between generators (XGeM 2.3).

    ``tokens`` unit tokens of ``dim`` numbers an output; ``width`` of the encoders; ``heads`` of the attention.
    ``guided``: the outputs in which classifier-free guidance treats the others as prompts; elsewhere its unconditional
    half sees them too.
    """

    kind: Literal["alignment"] = "alignment"
    outputs: dict[str, AlignedOutput]
    width: int = 64
    tokens: int = Field(default=4, ge=1)
    dim: int = 64
    heads: int = 2
    guided: tuple[str, ...] = ()


SHARED_WITH_CONTROL = ("latent_shape", "patch_size", "width", "heads", "position_scale")
"""What a ControlNet and its transformer have alike."""


class ControlNetConfig(_Config):
    """Trainable copies of a diffusion transformer's first ``blocks`` blocks (ChexGen), steered by ``annotations``.

    ``filled_boxes``: boxes are drawn as areas, not as outlines. The rest is the architecture of the transformer that it
    is made from.
    """

    kind: Literal["controlnet"] = "controlnet"
    annotations: tuple[str, ...]
    filled_boxes: bool = False
    blocks: int = Field(default=13, ge=1)
    latent_shape: tuple[int, int, int] = (4, 32, 32)
    patch_size: int = 2
    width: int = 1152
    heads: int = 16
    position_scale: float = Field(default=1.0, gt=0)

    def fits(self, transformer: DiTGeneratorConfig) -> bool:
        """Whether its blocks are copies of that transformer's first ones."""
        return self.blocks < transformer.depth and all(
            getattr(self, n) == getattr(transformer, n) for n in SHARED_WITH_CONTROL
        )


ENCODERS = ImageEncoderConfig | TextEncoderConfig | T5EncoderConfig
GENERATORS = ImageGeneratorConfig | DiTGeneratorConfig | ReportGeneratorConfig

ComponentConfig = Annotated[
    ImageEncoderConfig
    | TextEncoderConfig
    | T5EncoderConfig
    | ImageVAEConfig
    | ReportVAEConfig
    | ImageGeneratorConfig
    | DiTGeneratorConfig
    | ReportGeneratorConfig
    | ControlNetConfig
    | AlignmentConfig,
    Field(discriminator="kind"),
]


class ModalityConfig(_Config):
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


class SamplingConfig(_Config):
    """Defaults of ``generate``. ``guidance_scale`` by output; 1 is no guidance."""

    num_inference_steps: int = Field(default=25, ge=1)
    guidance_scale: dict[str, float] = {}
    sampler: Literal["dpmsolver++", "sde-dpmsolver++", "ddim", "unipc"] = "dpmsolver++"


class StageConfig(_Config):
    """How one stage is trained. ``loss`` holds the stage's own weights; each stage checks its keys."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    validate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    patience: int | None = Field(default=None, ge=1)
    """Stop rule: validations without a better loss before training stops; None trains all steps."""
    loss: dict[str, float] = {}


class Preset(_Config):
    """One model: preprocessing, components, how modalities use them, sampling defaults and training."""

    name: str
    description: str = ""
    transform: TransformConfig = TransformConfig()
    components: dict[str, ComponentConfig]
    modalities: dict[str, ModalityConfig]
    alignment: str | None = None
    """The component that lets outputs be sampled together; None: they are sampled independently."""
    sampling: SamplingConfig = SamplingConfig()
    report_sections: tuple[Literal["findings", "impression"], ...] = ("impression",)
    """The sections that make the report a generator learns to write, in this order."""
    prompt_sections: tuple[Literal["findings", "impression"], ...] | None = None
    """The sections whose text a report as prompt is, in training; None: any text that describes the study."""
    train: dict[str, StageConfig] = {}

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
    def _sizes_agree(self) -> Preset:
        """Parts of fresh weights fit together; pretrained ones have sizes of their own, seen when they are loaded."""
        size = self.transform.size
        for name, modality in self.modalities.items():
            if modality.encoder is not None:
                encoder = self.components[modality.encoder]
                if not isinstance(encoder, ENCODERS):
                    raise ValueError(
                        f"modality {name!r}: {modality.encoder!r} is a {encoder.kind}, expected an encoder"
                    )
                if isinstance(encoder, ImageEncoderConfig) and encoder.size_is_fixed and encoder.image_size != size:
                    raise ValueError(
                        f"{modality.encoder!r} takes pictures of {encoder.image_size}, the transform makes {size}: "
                        "change one, or set resize"
                    )
            if modality.codec is None or modality.generator is None:
                continue
            codec, generator = self.components[modality.codec], self.components[modality.generator]
            if not isinstance(codec, ImageVAEConfig | ReportVAEConfig):
                raise ValueError(f"modality {name!r}: {modality.codec!r} is a {codec.kind}, expected a VAE")
            if not isinstance(generator, GENERATORS):
                raise ValueError(
                    f"modality {name!r}: {modality.generator!r} is a {generator.kind}, expected a generator"
                )
            if generator.modality != name:
                raise ValueError(f"generator {modality.generator!r} makes {generator.modality!r}, used for {name!r}")
            if isinstance(codec, ImageVAEConfig) and codec.image_size != size:
                raise ValueError(f"{modality.codec!r} takes pictures of {codec.image_size}, the transform makes {size}")
            wanted = generator.latent_shape
            made: tuple[int, ...] = wanted
            if isinstance(codec, ReportVAEConfig):
                made = (codec.latent_dim,)
            elif codec.pretrained is None:
                made = (codec.latent_channels, *[codec.image_size // codec.downscale] * 2)
            if made != wanted:
                raise ValueError(f"{modality.codec!r} makes latents {made}, {modality.generator!r} expects {wanted}")
            for prompt in generator.prompts:
                self._context_agrees(modality.generator, generator, str(self.modalities[prompt].encoder))
            self._control_agrees(modality, generator)
        return self

    def _control_agrees(self, modality: ModalityConfig, generator: GENERATORS) -> None:
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
        if not isinstance(config, AlignmentConfig):
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

    def _context_agrees(self, name: str, generator: _GeneratorConfig, encoder_name: str) -> None:
        encoder = self.components[encoder_name]
        if not isinstance(encoder, ENCODERS) or encoder.pretrained is not None:
            return
        if encoder.embed_dim != generator.pooled_dim and not isinstance(generator, DiTGeneratorConfig):
            raise ValueError(
                f"{encoder_name!r} has embed_dim {encoder.embed_dim}, {name!r} pooled_dim {generator.pooled_dim}"
            )
        if generator.context == "tokens" and encoder.width != generator.context_dim:
            raise ValueError(
                f"{encoder_name!r} has width {encoder.width}, {name!r} context_dim {generator.context_dim}"
            )

    @classmethod
    def parse(cls, data: Any, origin: str) -> Preset:
        """Validate ``data``; ConfigError names ``origin``, the first wrong field and what was expected."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "preset"
            got = f" (got {first['input']!r:.80})" if first["loc"] else ""
            raise ConfigError(f"{origin}: {where}: {first['msg'].removeprefix('Value error, ')}{got}") from None


def preset_names() -> list[str]:
    """Names of the presets that ship with xgem."""
    folder = resources.files("xgem.configs") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name_or_path: str | Path) -> Preset:
    """A preset by name or from a YAML file; ConfigError lists the known names."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"preset file {path} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"preset file {path} cannot be read ({error}): expected YAML in UTF-8") from None
    elif str(name_or_path) in preset_names():
        text = (resources.files("xgem.configs") / "presets" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"unknown preset {name_or_path!s}: expected one of {', '.join(preset_names())} or a .yaml file"
        )
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name_or_path}: not valid YAML: {str(error).splitlines()[0]}") from None
    return Preset.parse(data, str(name_or_path))
