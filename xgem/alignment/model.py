"""The alignment of a checkpoint's generators, which couples the outputs that are sampled jointly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xgem.alignment.cross_attention import EnvironmentAttentions
from xgem.alignment.environment import EnvironmentEncoder
from xgem.alignment.transformers import JointTransformers, LevelledEncoder
from xgem.checkpoints.component import Component
from xgem.configs.alignment import AlignmentConfig, TransformerAlignmentConfig


class Alignment(Component):
    """An environment encoder V for every output, and every generator's attention to the V tokens of the others.

    Source: XGeM 2.3, Eq. 4: V of an output never enters its own generator, where in the published code it is the only
    one that does (``TransformerAlignment``). Fresh weights change nothing: all attentions start at zero.
    """

    kind = "alignment"

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        outputs = config.outputs
        self.environment = nn.ModuleDict(
            {
                name: EnvironmentEncoder(output.latent_shape, config.width, config.tokens, config.dim)
                for name, output in outputs.items()
            }
        )
        self.attention = nn.ModuleDict(
            {
                name: EnvironmentAttentions(
                    output.sites, tuple(other for other in outputs if other != name), config.dim, config.heads
                )
                for name, output in outputs.items()
            }
        )

    def tokens(self, latents: Mapping[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """Environment tokens (b, n, d) of noisy ``latents`` (b, ...) by output, all at timesteps (b,) or ()."""
        return {name: self.environment[name](z, t) for name, z in latents.items()}

    @contextmanager
    def seeing(self, name: str, denoiser: nn.Module, tokens: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this block ``denoiser``, that of output ``name``, attends to the ``tokens`` of all other outputs."""
        attention = self.attention[name]
        assert isinstance(attention, EnvironmentAttentions)
        others = {other: value for other, value in tokens.items() if other != name}
        with attention.attached(denoiser, attention.marked(others), guided=name in self.config.guided):
            yield


class TransformerAlignment(Component):
    """As ``Alignment``, with the layers that CoDi and XGeM publish (``transformer_alignment``).

    ``config.attends``: the published code lets a generator attend to V of its own output ("own"), so that nothing
    crosses between outputs; "others" is the paper's Eq. 4.
    """

    kind = "transformer_alignment"

    def __init__(self, config: TransformerAlignmentConfig) -> None:
        super().__init__()
        self.config = config
        self.environment = nn.ModuleDict(
            {name: LevelledEncoder(output.latent_shape, config) for name, output in config.outputs.items()}
        )
        self.attention = nn.ModuleDict(
            {name: JointTransformers(output.sites, config) for name, output in config.outputs.items()}
        )

    def tokens(self, latents: Mapping[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """Environment tokens (b, 1, d) of noisy ``latents`` (b, ...) by output, all at timesteps (b,) or ()."""
        return {name: self.environment[name](z, t) for name, z in latents.items()}

    @contextmanager
    def seeing(self, name: str, denoiser: nn.Module, tokens: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this block ``denoiser``, that of output ``name``, attends to ``tokens``, by ``config.attends``."""
        attention = self.attention[name]
        assert isinstance(attention, JointTransformers)
        own = self.config.attends == "own"
        seen = torch.cat([value for other, value in tokens.items() if (other == name) == own], dim=1)  # (b, m, d)
        with attention.attached(denoiser, seen, guided=name in self.config.guided):
            yield
