"""Configurations of a checkpoint's components, one class per kind.

How components fit together is checked by what they have in common: a ``role``, and sizes (``fixed_size``,
``token_dim``, ``latent_shape``) that are None where pretrained weights or the data decide. The order of fields is part
of a training run's fingerprint: new ones go last, and are left out of the record where they are empty.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from xgem.configs.alignment import AlignmentConfig, TransformerAlignmentConfig
from xgem.configs.base import Config, Rescale, Role, Voi
from xgem.configs.codecs import ImageVAEConfig, ReportVAEConfig
from xgem.labels.spatial import BOX_CLASSES, STRUCTURES, Vocabulary, check_added


class TransformConfig(Config):
    """Preprocessing of images (XGeM 3.1), every step switchable.

    ``pixel_spacing`` in mm (None keeps the file's); ``pad`` pads to a square with zeros instead of stretching;
    ``voi`` applies a DICOM window or LUT before MONOCHROME1 is inverted; ``rescale`` says which values become 0 and 1,
    and ``invert`` turns every image around (``xgem.data.read.read_image``).
    """

    added: ClassVar[tuple[str, ...]] = ("rescale", "invert")
    size: int = Field(default=256, ge=16)
    pixel_spacing: float | None = Field(default=None, gt=0)
    pad: bool = True
    voi: Voi = "none"
    invert_monochrome1: bool = True
    interpolation: Literal["bicubic", "area", "bilinear"] = "area"
    rescale: Rescale = "auto"
    invert: bool = False


class EncoderConfig(Config):
    """What all prompt encoders have: ``embed_dim`` is the width of their pooled vector."""

    role: ClassVar[Role] = "encoder"

    @property
    def fixed_size(self) -> int | None:
        """The side of the images that it takes; None where it resizes them, or reads text."""
        return None

    @property
    def token_dim(self) -> int | None:
        """Width of its tokens; None where pretrained weights decide."""
        fields = vars(self)  # each kind declares its own, in an order of its own
        return None if fields["pretrained"] else fields["width"]


class ImageEncoderConfig(EncoderConfig):
    """One ViT for all views. ``pretrained``: an open_clip hub id or local directory; it then sets the sizes.

    ``stem``: patches are embedded by one convolution as large as they are, as published, or by a pyramid of small ones,
    which learns more from few images (Xiao et al. 2021). ``resize`` accepts images of another size than its own,
    resized with antialiasing.
    """

    added: ClassVar[tuple[str, ...]] = ("stem",)
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
    stem: Literal["patch", "pyramid"] = "patch"

    @model_validator(mode="after")
    def _stem_fits(self) -> ImageEncoderConfig:
        if self.stem == "pyramid" and self.pretrained is not None:
            raise ValueError("stem 'pyramid' is of fresh weights, a pretrained tower has its own")
        if self.stem == "pyramid" and self.patch_size & (self.patch_size - 1):
            raise ValueError(f"stem 'pyramid' halves the image at each level, patch_size is {self.patch_size}")
        return self

    @property
    def fixed_size(self) -> int | None:
        return None if self.resize or self.pretrained else self.image_size


class TextEncoderConfig(EncoderConfig):
    """One text transformer with a padding mask. ``pretrained`` as for images."""

    kind: Literal["text_encoder"] = "text_encoder"
    pretrained: str | None = None
    vocab_size: int = 4096
    max_length: int = 128
    width: int = 192
    layers: int = 4
    heads: int = 3
    embed_dim: int = 256


class T5EncoderConfig(EncoderConfig):
    """T5's encoder (T5 v1.1-XXL by default), frozen. ``pretrained``: a transformers hub id or local directory with its
    tokenizer; it then sets the sizes.

    ``width`` is d_model, shared out among the heads; texts are truncated to ``max_length`` tokens. ``lowercase``
    as PixArt and ChexGen do. On small devices: ``quantize`` "4bit" stores linear layers as 4-bit floats on a CUDA
    device; ``on_cpu`` runs it on the CPU, wherever the rest is.
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


class DiffusionConfig(Config):
    """The forward process. Defaults are Stable Diffusion's, as XGeM uses them."""

    num_train_timesteps: int = Field(default=1000, ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False


class GeneratorConfig(Config):
    """What all latent diffusion generators have.

    ``latents_mean``: it keeps the mean of its training latents, and samples start from what noise leaves of that
    (:meth:`xgem.generators.latent_diffusion.LatentDiffusion.start`).
    """

    added: ClassVar[tuple[str, ...]] = ("latents_mean",)
    role: ClassVar[Role] = "generator"
    reads_pooled: ClassVar[bool] = True
    """Whether it attends to the prompts' pooled vectors too, or to their tokens alone."""
    modality: str
    prompts: tuple[str, ...]
    context: Literal["pooled", "tokens"] = "tokens"
    context_dim: int = 192
    """Width of the prompt encoders' tokens."""
    pooled_dim: int = 256
    """Width of the shared space."""
    null_probability: float = Field(default=0.1, ge=0, le=1)
    diffusion: DiffusionConfig = DiffusionConfig()
    latents_mean: bool = False


class ImageGeneratorConfig(GeneratorConfig):
    """A diffusers UNet2DConditionModel over image latents.

    ``repeat_middle``: the first block of the way up takes the middle's output twice, the second time in place of the
    last skip connection, as the published code of CoDi and XGeM computes it.
    """

    added: ClassVar[tuple[str, ...]] = ("latents_mean", "repeat_middle")
    kind: Literal["image_generator"] = "image_generator"
    pretrained: str | None = None
    latent_shape: tuple[int, int, int] = (8, 16, 16)
    block_out_channels: tuple[int, ...] = (96, 192, 256)
    attention: tuple[bool, ...] = (True, True, True)
    layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 32
    cross_attention_dim: int = 192
    norm_num_groups: int = 32
    repeat_middle: bool = False


class DiTGeneratorConfig(GeneratorConfig):
    """A diffusion transformer over image latents (PixArt-alpha's, as ChexGen uses it).

    ``context_dim`` is the width of caption tokens (T5 v1.1-XXL: 4096), of which there are at most ``caption_tokens``.
    ``position_scale`` divides the patches' positions: a grid twice as large spans the same coordinates with scale 2.
    ``learned_sigma`` doubles the output channels: the second half, a variance, is used by no sampler and has no loss.
    """

    reads_pooled: ClassVar[bool] = False
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
            raise ValueError(f"expected a width divisible by {self.heads} heads, got {self.width}")
        if any(side % self.patch_size for side in self.latent_shape[1:]):
            raise ValueError(f"expected sides divisible by the patch size {self.patch_size}, got {self.latent_shape}")
        return self


class ReportGeneratorConfig(GeneratorConfig):
    """The UNet of linear blocks over report latents (Versatile Diffusion's text UNet).

    ``fully_connected``: a block's linear layers join all tokens, as published; otherwise the tokens share them, whose
    weights are then fewer by the square of ``tokens``. ``separate``: each token is a part of the latent of its own (a
    sentence's vector) at a learned position; otherwise linear layers spread the latent over the tokens.
    """

    added: ClassVar[tuple[str, ...]] = ("separate", "latents_mean")
    kind: Literal["report_generator"] = "report_generator"
    latent_dim: int = 768
    tokens: int = Field(default=4, ge=1)
    separate: bool = False
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
    def _one_per_level(self) -> ReportGeneratorConfig:
        if self.attention is not None and len(self.attention) != len(self.channel_mult):
            raise ValueError(f"expected one attention flag per level ({len(self.channel_mult)}), got {self.attention}")
        if self.separate and self.latent_dim % self.tokens:
            raise ValueError(f"latent_dim {self.latent_dim} does not divide into {self.tokens} separate tokens")
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


class FCReportGeneratorConfig(GeneratorConfig):
    """The UNet of fully connected blocks over report latents, as CoDi and XGeM publish it.

    It differs from ``report_generator`` in that normalisation has weights for every token, transformers stand between
    two linear layers, and no pooled vector enters the time embedding. ``heads`` of every attention; ``repeat_middle``
    as for images.
    """

    kind: Literal["fc_report_generator"] = "fc_report_generator"
    latent_dim: int = 768
    tokens: int = Field(default=4, ge=1)
    width: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    attention: tuple[bool, ...] = (True, True, True, False)
    """Which levels attend to their tokens and to the context."""
    layers_per_block: int = Field(default=2, ge=1)
    heads: int = Field(default=8, ge=1)
    cross_attention_dim: int = 768
    norm_num_groups: int = Field(default=32, ge=1)
    repeat_middle: bool = False

    @model_validator(mode="after")
    def _sizes_divide(self) -> FCReportGeneratorConfig:
        if len(self.attention) != len(self.channel_mult):
            raise ValueError(f"expected one attention flag per level ({len(self.channel_mult)}), got {self.attention}")
        for name in ("heads", "norm_num_groups"):
            if self.width % getattr(self, name):
                raise ValueError(f"expected a width divisible by {name} {getattr(self, name)}, got {self.width}")
        return self

    @property
    def latent_shape(self) -> tuple[int]:
        return (self.latent_dim,)


SHARED_WITH_CONTROL = ("latent_shape", "patch_size", "width", "heads", "position_scale")
"""What a ControlNet and its transformer have in common."""


class ControlNetConfig(Config):
    """Trainable copies of a diffusion transformer's first ``blocks`` blocks (ChexGen), steered by ``annotations``.

    ``filled_boxes``: boxes are drawn as areas, not as outlines. ``structures`` and ``box_classes`` are names that its
    masks and boxes may have beside the built-in ones (``xgem.labels.spatial``); their order decides their grey levels,
    so new ones are appended. The rest is the architecture of the transformer that it is made from.
    """

    role: ClassVar[Role] = "control"
    added: ClassVar[tuple[str, ...]] = ("structures", "box_classes")
    kind: Literal["controlnet"] = "controlnet"
    annotations: tuple[str, ...]
    filled_boxes: bool = False
    blocks: int = Field(default=13, ge=1)
    latent_shape: tuple[int, int, int] = (4, 32, 32)
    patch_size: int = 2
    width: int = 1152
    heads: int = 16
    position_scale: float = Field(default=1.0, gt=0)
    structures: tuple[str, ...] = ()
    box_classes: tuple[str, ...] = ()

    @field_validator("structures", "box_classes")
    @classmethod
    def _are_new(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        check_added(value, STRUCTURES if info.field_name == "structures" else BOX_CLASSES)
        return value

    @property
    def vocabulary(self) -> Vocabulary:
        """The structures and box classes that it can draw, with their grey levels."""
        return Vocabulary.extended(self.structures, self.box_classes)

    def fits(self, generator: GeneratorConfig) -> bool:
        """Whether its blocks are copies of that generator's first ones, which only a diffusion transformer has."""
        depth = getattr(generator, "depth", 0)
        return self.blocks < depth and all(
            getattr(self, name) == getattr(generator, name, None) for name in SHARED_WITH_CONTROL
        )


ComponentConfig = Annotated[
    ImageEncoderConfig
    | TextEncoderConfig
    | T5EncoderConfig
    | ImageVAEConfig
    | ReportVAEConfig
    | ImageGeneratorConfig
    | DiTGeneratorConfig
    | ReportGeneratorConfig
    | FCReportGeneratorConfig
    | ControlNetConfig
    | AlignmentConfig
    | TransformerAlignmentConfig,
    Field(discriminator="kind"),
]
