"""The configuration of the alignment."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from xgem.configs.base import Config, Role


class AlignedOutput(Config):
    """What an alignment needs to know about one output's generator."""

    latent_shape: tuple[int, ...]
    sites: tuple[int, ...]
    """Hidden channels at the denoiser's attention sites in order: its transformer blocks, or its ``joint_sites`` for a
    ``transformer_alignment``."""


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


class TransformerAlignmentConfig(Config):
    """Environment encoders and joint attentions with the layers that CoDi and XGeM publish.

    V of an output is one unit token of ``dim`` numbers; its encoder has levels of ``width`` times ``channel_mult``
    channels, over ``report_tokens`` tokens for a report's latent. A spatial transformer with ``heads`` heads follows
    every layer of the denoisers that attends. ``attends``: to V of the other outputs (XGeM, Eq. 4), or to V of its own
    output, as the published code computes it. ``guided`` as for ``alignment``, with ``attends: others`` alone.
    """

    role: ClassVar[Role] = "alignment"
    kind: Literal["transformer_alignment"] = "transformer_alignment"
    outputs: dict[str, AlignedOutput]
    width: int = 320
    channel_mult: tuple[int, ...] = Field(default=(1, 2, 4), min_length=1)
    report_tokens: int = Field(default=4, ge=1)
    dim: int = 1280
    heads: int = Field(default=8, ge=1)
    norm_num_groups: int = Field(default=32, ge=1)
    attends: Literal["others", "own"] = "others"
    guided: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sizes_divide(self) -> TransformerAlignmentConfig:
        if self.width % 2 or (self.width // 2) % self.norm_num_groups:
            raise ValueError(
                f"expected half the width divisible by norm_num_groups {self.norm_num_groups}, got width {self.width}"
            )
        wrong = sorted({c for one in self.outputs.values() for c in one.sites if c % self.heads})
        if wrong:
            raise ValueError(f"expected channels of sites divisible by {self.heads} heads, got {wrong}")
        if self.guided and self.attends == "own":
            raise ValueError("guided is set: an output that attends to itself alone has nothing to be guided by")
        return self
