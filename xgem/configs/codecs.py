"""The configurations of the codecs, between images or reports and their latents."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from xgem.configs.base import Config, Role, Section


class ImageVAEConfig(Config):
    """AutoencoderKL. ``patch`` folds p x p pixels into channels first, so the finest convolutions run at 1/p.

    ``pretrained``: a diffusers hub id or directory (3-channel Stable Diffusion VAEs load too).
    ``latent_mean`` and ``latent_std`` (one a channel) normalise latents; training measures them.
    """

    role: ClassVar[Role] = "codec"
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
        """Pixels per latent position, in each direction."""
        return self.patch * 2 ** (len(self.block_out_channels) - 1)

    @property
    def fixed_size(self) -> int | None:
        return self.image_size

    @property
    def latent_shape(self) -> tuple[int, ...] | None:
        """Shape of one image's latents; None where pretrained weights decide."""
        side = self.image_size // self.downscale
        return None if self.pretrained else (self.latent_channels, side, side)


class ReportVAEConfig(Config):
    """Optimus: BERT encoder, GPT-2 decoder with memory and embedding injection.

    ``pretrained_encoder`` / ``pretrained_decoder``: transformers hub ids or directories. ``latent_std`` makes the
    diffusion target's standard deviation 1 (4.3108 is the published scale, its reciprocal).

    ``sentences``: how many of each section have a latent vector of their own; None: the whole report has one, as in
    Optimus. ``memory_tokens``: keys and values that a latent vector becomes in every layer of the decoder (Optimus: 1).
    ``log_variance``: added to the encoder's, so that at a negative value training begins with narrow posteriors.
    ``shared_embeddings``: encoder and decoder have one table of token embeddings. ``known_sentences``: the codec keeps
    the latents of sentences of its training reports that recur or state a finding, and another latent becomes the
    nearest of them unless the decoder's text is much nearer; for codecs with ``sentences`` and an even ``latent_dim``.
    ``first_position``: position of a text's first token in the decoder; in Optimus' published code it is 1, as the
    memory takes position 0.
    """

    role: ClassVar[Role] = "codec"
    added: ClassVar[tuple[str, ...]] = (
        "sentences",
        "memory_tokens",
        "log_variance",
        "shared_embeddings",
        "known_sentences",
        "first_position",
    )
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
    sentences: dict[Section, Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    memory_tokens: int = Field(default=1, ge=1)
    log_variance: float = 0.0
    shared_embeddings: bool = False
    known_sentences: bool = False
    first_position: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _both_or_none(self) -> ReportVAEConfig:
        if (self.pretrained_encoder is None) != (self.pretrained_decoder is None):
            raise ValueError("expected pretrained_encoder and pretrained_decoder, or neither")
        if self.pretrained_encoder is not None and self.shared_embeddings:
            raise ValueError("shared_embeddings is set: pretrained towers have vocabularies of their own")
        if self.known_sentences and self.sentences is None:
            raise ValueError("known_sentences is set: expected sentences, the number of each section, too")
        if self.known_sentences and self.latent_dim % 2:
            raise ValueError(f"known_sentences is set: expected an even latent_dim, got {self.latent_dim}")
        return self

    @property
    def fixed_size(self) -> int | None:
        return None

    @property
    def latent_shape(self) -> tuple[int, ...] | None:
        """Shape of one report's latents: those of its sentences, in their order."""
        return (self.latent_dim * sum((self.sentences or {"impression": 1}).values()),)
