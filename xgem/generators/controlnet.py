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

    Copy i takes the output of copy i - 1, with the transformer's own captions and timesteps; the first takes the sum of
    the annotation's patches and the output of the transformer's first block. The output of copy i is added to the input
    of the transformer's block i + 1 through a zero-initialised linear layer, so that fresh weights change nothing.
    """

    kind = "controlnet"

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        same = config.model_dump(include=set(SHARED_WITH_CONTROL))
        donor = DiT(DiTGeneratorConfig(modality="", prompts=("",), depth=config.blocks, **same)).pixart
        self.patches, self.blocks = donor.pos_embed, donor.transformer_blocks
        self.enter, *leave = (nn.Linear(config.width, config.width) for _ in range(config.blocks + 1))
        nn.init.eye_(self.enter.weight)  # not zero: the copies see the annotation from the first step
        nn.init.zeros_(self.enter.bias)
        self.leave = nn.ModuleList(leave)
        for layer in self.leave:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def copying(cls, config: ControlNetConfig, transformer: DiT) -> Self:
        """A ControlNet whose blocks are initialised from those of ``transformer``."""
        control = cls(config)
        control.patches.load_state_dict(transformer.pixart.pos_embed.state_dict())
        for copy, block in zip(control.blocks, transformer.pixart.transformer_blocks, strict=False):
            copy.load_state_dict(block.state_dict())
        return control

    @torch.no_grad()
    def standardise(self, annotations: Tensor) -> None:
        """Adapt the fresh patch layer to ``annotations`` (n, c, h, w): by channel, mean 0, deviation between them 1.

        It was trained on radiographs. Drawings differ from one another far less, and copies would hardly see them.
        """
        mean = annotations.float().mean(dim=(0, 2, 3))  # (c,)
        deviation = annotations.float().std(dim=0, correction=0).square().mean(dim=(1, 2)).sqrt()  # (c,)
        layer = self.patches.proj
        assert layer.bias is not None
        layer.weight /= deviation.clamp(min=0.05)[:, None, None]  # (d, c, p, p)
        layer.bias -= (layer.weight * mean[:, None, None]).sum(dim=(1, 2, 3))

    @contextmanager
    def steering(self, transformer: DiT, annotation: Tensor, scale: float | Tensor = 1.0) -> Iterator[None]:
        """Within this block ``transformer`` follows ``annotation`` (b, c, h, w), the latents of annotation images.

        In a larger batch, only the first b rows are controlled. Under classifier-free guidance these are the
        conditional half, so that guidance amplifies the annotation as it does the context. ``scale``: conditioning
        scale, one number or (b,).
        """
        if annotation.shape[1:] != self.config.latent_shape:
            raise ShapeError(f"ControlNet: expected (b, {self.config.latent_shape}), got {tuple(annotation.shape)}")
        blocks = transformer.pixart.transformer_blocks
        if len(blocks) <= len(self.blocks):
            raise CheckpointError(
                f"the ControlNet controls blocks 1 to {len(self.blocks)}, but this transformer has {len(blocks)}: "
                "they are not of the same model"
            )
        # n patches, d width of the transformer; b annotations, b' rows of the transformer's batch
        inputs: list[Tensor] = [self.enter(self.patches(annotation))]  # (b, n, d), one per copy
        strength = scale.view(-1, 1, 1) if isinstance(scale, Tensor) else scale
        b = len(annotation)

        def hook(index: int) -> Any:
            def steer(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
                del block
                hidden, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())  # (b', n, d)
                kwargs = {key: value for key, value in kwargs.items() if key != "hidden_states"}

                def controlled(value: Any) -> Any:
                    return value[:b] if isinstance(value, Tensor) and len(value) == len(hidden) else value

                # Copy `index` runs first; its output is added to the input of this block
                c = inputs[index] + hidden[:b] if index == 0 else inputs[index]  # (b, n, d)
                output = self.blocks[index](c, *map(controlled, rest), **{k: controlled(v) for k, v in kwargs.items()})
                del inputs[index + 1 :]  # those of the previous step
                inputs.append(output)
                steered = hidden[:b] + self.leave[index](output) * strength
                return (torch.cat([steered, hidden[b:]]), *rest), kwargs  # (b', n, d)

            return steer

        places = {block: index for index, block in enumerate(list(blocks)[1 : len(self.blocks) + 1])}
        pixart: Any = transformer.pixart
        if pixart.gradient_checkpointing and torch.is_grad_enabled():
            # Blocks run again in the backward pass, when hooks are gone: what steers them runs again with them
            checkpoint = pixart._gradient_checkpointing_func

            def steered_checkpoint(block: nn.Module, *args: Any) -> Any:
                if block not in places:
                    return checkpoint(block, *args)

                def steered(*args: Any) -> Any:
                    args, kwargs = hook(places[block])(block, args, {})
                    return block(*args, **kwargs)

                return checkpoint(steered, *args)

            pixart._gradient_checkpointing_func = steered_checkpoint
            try:
                yield
            finally:
                pixart._gradient_checkpointing_func = checkpoint
            return
        handles = [block.register_forward_pre_hook(hook(index), with_kwargs=True) for block, index in places.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
