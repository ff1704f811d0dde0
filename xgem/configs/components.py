"""Configurations of a checkpoint's components, one class a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformConfig(Config):
    """Preprocessing of images (XGeM 3.1), every step switchable.

    ``pixel_spacing`` in mm (None leaves the spacing alone); ``pad`` fills to a square with zeros instead of
    squashing; ``voi`` applies a DICOM window or LUT before MONOCHROME1 is inverted.
    """

    size: int = Field(default=256, ge=16)
    pixel_spacing: float | None = Field(default=None, gt=0)
    pad: bool = True
    voi: Literal["none", "window", "lut"] = "none"
    invert_monochrome1: bool = True
    interpolation: Literal["bicubic", "area", "bilinear"] = "area"


class ImageEncoderConfig(Config):
    """One ViT for both views. ``pretrained``: an open_clip hub id or local directory; it then sets the sizes.

    ``resize`` lets it take images of another size than its own, resized with antialiasing.
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


class TextEncoderConfig(Config):
    """One text transformer with a padding mask. ``pretrained`` as for images."""

    kind: Literal["text_encoder"] = "text_encoder"
    pretrained: str | None = None
    vocab_size: int = 4096
    max_length: int = 128
    width: int = 192
    layers: int = 4
    heads: int = 3
    embed_dim: int = 256


class T5EncoderConfig(Config):
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


class ImageVAEConfig(Config):
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


class ReportVAEConfig(Config):
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


class DiffusionConfig(Config):
    """The forward process. Defaults are Stable Diffusion's, as XGeM uses them."""

    num_train_timesteps: int = Field(default=1000, ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False


class GeneratorConfig(Config):
    """What all latent diffusion generators have."""

    modality: str
    prompts: tuple[str, ...]
    context: Literal["pooled", "tokens"] = "tokens"
    context_dim: int = 192
    """Width of the prompt encoders' tokens."""
    pooled_dim: int = 256
    """Width of the shared space."""
    null_probability: float = Field(default=0.1, ge=0, le=1)
    diffusion: DiffusionConfig = DiffusionConfig()


class ImageGeneratorConfig(GeneratorConfig):
    """A diffusers UNet2DConditionModel over image latents."""

    kind: Literal["image_generator"] = "image_generator"
    pretrained: str | None = None
    latent_shape: tuple[int, int, int] = (8, 16, 16)
    block_out_channels: tuple[int, ...] = (96, 192, 256)
    attention: tuple[bool, ...] = (True, True, True)
    layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 32
    cross_attention_dim: int = 192
    norm_num_groups: int = 32


class DiTGeneratorConfig(GeneratorConfig):
    """A diffusion transformer over image latents (PixArt-alpha's, as ChexGen uses it).

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


class ReportGeneratorConfig(GeneratorConfig):
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


class AlignedOutput(Config):
    """What an alignment must know of one output's generator."""

    latent_shape: tuple[int, ...]
    sites: tuple[int, ...]
    """Hidden channels at the denoiser's attention sites, its transformer blocks in order."""


class AlignmentConfig(Config):
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


class ControlNetConfig(Config):
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
