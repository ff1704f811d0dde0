"""Control of a diffusion transformer by an annotation image (ChexGen; Zhang et al. 2023; Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from xgem.checkpoints.component import Component
from xgem.configs.components import SHARED_WITH_CONTROL, ControlNetConfig, DiTGeneratorConfig
from xgem.generators.dit import DiT
from xgem.types import CheckpointError, ShapeError


class ControlNet(Component):
    """Trainable copies of a transformer's first blocks, which read an annotation image's latents.

    Copy i reads what copy i - 1 made of the annotation, with the transformer's own captions and times; the first adds
    the annotation to what the transformer's first block made of the noisy latents. What copy i makes enters the
    transformer's block i + 1 through a linear layer that starts at zero, so that fresh weights change nothing.
    """

    kind = "controlnet"

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        same = config.model_dump(include=set(SHARED_WITH_CONTROL))
        donor = DiT(DiTGeneratorConfig(modality="", prompts=("",), depth=config.blocks, **same)).pixart
        self.patches, self.blocks = donor.pos_embed, donor.transformer_blocks
        self.enter = nn.Linear(config.width, config.width)  # not zero: what it lets in is what the rest learns from
        self.leave = nn.ModuleList([nn.Linear(config.width, config.width) for _ in range(config.blocks)])
        for layer in self.leave:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def copying(cls, config: ControlNetConfig, transformer: DiT) -> Self:
        """Start as copies of ``transformer``'s blocks."""
        control = cls(config)
        control.patches.load_state_dict(transformer.pixart.pos_embed.state_dict())
        for own, block in zip(control.blocks, transformer.pixart.transformer_blocks, strict=False):
            own.load_state_dict(block.state_dict())
        return control

    @contextmanager
    def steering(self, transformer: DiT, annotation: Tensor, scale: float | Tensor = 1.0) -> Iterator[None]:
        """Within this block ``transformer`` follows the ``annotation`` (b, c, h, w), latents of an annotation image.

        Of a longer batch the first b follow. Under classifier-free guidance those are the ones with a context, so that
        guidance strengthens the annotation as it does the context. ``scale``: how strongly, one number or one a sample.
        """
        if annotation.shape[1:] != self.config.latent_shape:
            raise ShapeError(f"ControlNet: expected (b, {self.config.latent_shape}), got {tuple(annotation.shape)}")
        blocks = transformer.pixart.transformer_blocks
        if len(blocks) <= len(self.blocks):
            raise CheckpointError(
                f"the ControlNet steers blocks 1 to {len(self.blocks)}, this transformer has {len(blocks)} blocks: "
                "they are not of the same model"
            )
        # n patches, d width of the transformer; b annotations, b' rows of the transformer's batch
        entered: list[Tensor] = [self.enter(self.patches(annotation))]  # (b, n, d)
        strength = scale.view(-1, 1, 1) if isinstance(scale, Tensor) else scale
        b = len(annotation)

        def hook(index: int) -> Any:
            def steer(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
                del block
                hidden, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())  # (b', n, d)
                kwargs = {key: value for key, value in kwargs.items() if key != "hidden_states"}

                def following(value: Any) -> Any:
                    return value[:b] if isinstance(value, Tensor) and len(value) == len(hidden) else value

                # Copy `index` reads the annotation; what it makes is added in front of this block
                c = entered[index] + hidden[:b] if index == 0 else entered[index]
                made = self.blocks[index](c, *map(following, rest), **{k: following(v) for k, v in kwargs.items()})
                del entered[index + 1 :]
                entered.append(made)
                steered = hidden[:b] + self.leave[index](made) * strength
                return (torch.cat([steered, hidden[b:]]), *rest), kwargs

            return steer

        handles = [
            block.register_forward_pre_hook(hook(index), with_kwargs=True)
            for index, block in enumerate(list(blocks)[1 : len(self.blocks) + 1])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
