"""The configuration of the alignment."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from xgem.configs.base import Config, Role


class AlignedOutput(Config):
    """What an alignment needs to know about one output's generator."""

    latent_shape: tuple[int, ...]
    sites: tuple[int, ...]
    """Hidden channels at the denoiser's attention sites, its transformer blocks in order."""


class AlignmentConfig(Config):
    """Environment encoders and cross-attention between generators (XGeM 2.3).

    ``tokens`` unit tokens of ``dim`` numbers per output; ``width`` of the encoders; ``heads`` of the attention.
    ``guided``: the outputs for which classifier-free guidance treats the others as prompts; elsewhere its unconditional
    half sees them too.
    """

    role: ClassVar[Role] = "alignment"
    kind: Literal["alignment"] = "alignment"
    outputs: dict[str, AlignedOutput]
    width: int = 64
    tokens: int = Field(default=4, ge=1)
    dim: int = 64
    heads: int = 2
    guided: tuple[str, ...] = ()
