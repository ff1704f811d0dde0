"""The stage that trains a ControlNet on a frozen diffusion transformer with annotated images (ChexGen)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.configs.components import ControlNetConfig, DiTGeneratorConfig
from xgem.configs.preset import Preset
from xgem.generators.controlnet import ControlNet
from xgem.generators.latent_diffusion import DiTLatentDiffusion
from xgem.generators.sampling import Control, Output, sample_together
from xgem.train import needs
from xgem.train.annotated import KINDS, AnnotatedBank, annotated_bank
from xgem.train.banks import PromptBank, prompt_bank
from xgem.train.context import DependentStage, StageContext
from xgem.train.share import Share, fixed_rngs
from xgem.train.sheets import contact_sheet
from xgem.train.stage import Frozen, spread_over
from xgem.types import ConfigError, DataError, Encoded

_VALIDATION_TIMES = 8
_SHEET = 12


class _Steered(nn.Module):
    """The ControlNet and its frozen transformer in one ``forward``."""

    def __init__(self, control: ControlNet, generator: DiTLatentDiffusion) -> None:
        super().__init__()
        self.control = control
        self.frozen = Frozen(generator=generator)

    def forward(
        self, z: Tensor, t: Tensor, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor], annotation: Tensor
    ) -> Tensor:
        generator = self.frozen["generator"]
        with self.control.steering(generator.net, annotation):
            return generator(z, t, generator.fuse(encoded, keep))


def _controlled(preset: Preset) -> str:
    """The output whose generator a ControlNet steers."""
    controlled = [name for name in preset.outputs if preset.modalities[name].control is not None]
    if len(controlled) != 1:
        raise ConfigError(f"preset {preset.name!r} has {len(controlled)} outputs with a control, expected one to train")
    return controlled[0]


class ControlStage(DependentStage):
    """The denoising loss of annotated images under control; only the ControlNet is trained.

    ``config.loss``: ``masks``, ``boxes``, ``severity``, relative sampling frequencies of these annotations (structures
    of masks and classes of boxes are drawn equally often); ``caption``, fraction of samples that keep their text, so
    that annotations are also followed without text; ``vary``, a switch that is on: random parts of a study's annotation
    and, of rare ones, shifted and scaled variants of image and annotation are trained on too.
    """

    name = "control"
    losses: ClassVar[Mapping[str, float]] = {"masks": 2, "boxes": 1, "severity": 1, "caption": 0.7, "vary": 1}
    switches = ("vary",)

    @classmethod
    def needs(cls, name: str, preset: Preset) -> list[needs.Need]:
        generator = preset.components[preset.generator(_controlled(preset))]
        weights = cls.loss_weights(name, preset.train[name])
        weighted = [kind for kind in KINDS if weights[kind] > 0]
        prompts: tuple[str, ...] = getattr(generator, "prompts", ())
        return [needs.annotation(weighted, ("train",)), needs.annotation(KINDS, ("val",)), *map(needs.prompt, prompts)]

    def __init__(self, context: StageContext) -> None:
        preset, device, cache = context.preset, context.device, context.cache
        self.config, self.seed = context.config(self.name), context.seed
        target = _controlled(preset)
        self.component = str(preset.modalities[target].control)
        settings, generator = preset.components[self.component], preset.components[preset.generator(target)]
        assert isinstance(settings, ControlNetConfig)
        assert isinstance(generator, DiTGeneratorConfig)
        (self.prompt,) = generator.prompts
        needed = preset.encoder(self.prompt), preset.codec(target), preset.generator(target)
        parts = context.parts(needed, self.name)
        self.generator: DiTLatentDiffusion = parts[preset.generator(target)].to(device)
        assert not any(p.requires_grad for p in self.generator.parameters())
        weights = self.loss_weights(self.name, self.config)
        self.caption = weights["caption"]
        encoder, codec = parts[preset.encoder(self.prompt)], parts[preset.codec(target)]
        self.codec = codec
        self.train, self.val = (
            (
                annotated_bank(
                    corpus, preset.transform, codec, cache, device, control=settings, vary=vary, seed=self.seed
                ),
                prompt_bank(self.prompt, encoder, corpus, cache, device, self.generator.config.caption_tokens),
            )
            for corpus, vary in ((context.train, bool(weights["vary"])), (context.val, False))
        )
        self.kinds = {kind: weights[kind] for kind in KINDS if self.train[0].kinds[kind] and weights[kind] > 0}
        if not self.kinds:
            raise DataError("stage control: the training split has no annotation of a kind with a positive loss weight")

        def copying() -> ControlNet:
            model = ControlNet.copying(settings, self.generator.net)
            model.standardise(self.train[0].annotations)
            return model

        self.model: ControlNet = context.build(self.component, copying)
        self.model.checkpoint_activations(generator.gradient_checkpointing)  # as its transformer's
        self.module = _Steered(self.model, self.generator)
        self.identify(settings, parts, context)

    def checkpoint_activations(self, on: bool = True) -> bool:
        self.model.checkpoint_activations(on)
        self.generator.checkpoint_activations(on)  # gradients pass through it to the ControlNet
        return True

    def batch(self, share: Share) -> dict[str, Any]:
        bank, rngs = self.train[0], share.rngs("annotations")
        kinds, weights = list(self.kinds), list(self.kinds.values())
        drawn = [rng.choices(kinds, weights)[0] for rng in rngs]
        # Structures and classes are drawn equally often, so that rare ones are not lost among the many lung masks
        studies = [
            rng.choice(rng.choice(list(bank.kinds[kind].values()))) for kind, rng in zip(drawn, rngs, strict=True)
        ]
        return self._collate(self.train, studies, drawn, rngs) | {
            "t": share.integers(0, self.generator.config.diffusion.num_train_timesteps, "timestep"),  # (b,)
            "noise": share.normal(self.generator.latent_shape),  # (b, c, h, w)
        }

    def _collate(
        self,
        split: tuple[AnnotatedBank, PromptBank],
        studies: list[int],
        kinds: list[str],
        rngs: Sequence[random.Random],
    ) -> dict[str, Any]:
        """Each study with an annotation of its kind, or with any annotation if ``kinds`` is empty."""
        bank, prompts = split
        candidates = [bank.pairs[study] for study in studies]
        if kinds:
            candidates = [
                [pair for pair in pairs if kind in bank.holds[pair[1]]]
                for pairs, kind in zip(candidates, kinds, strict=True)
            ]
        pairs = [rng.choice(pairs) for pairs, rng in zip(candidates, rngs, strict=True)]
        texts = [prompts.rows[study] for study in studies]
        keep = [bool(rows) and rng.random() < self.caption for rows, rng in zip(texts, rngs, strict=True)]
        chosen = [rng.choice(rows) if kept else 0 for rows, kept, rng in zip(texts, keep, rngs, strict=True)]
        return {
            "z0": bank.targets[[image for image, _ in pairs]],  # (b, c, h, w)
            "annotation": bank.annotations[[row for _, row in pairs]],  # (b, c, h, w)
            "encoded": {self.prompt: prompts.encoded(chosen)},
            "keep": {self.prompt: torch.tensor(keep)},  # (b,) bool
        }

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        z0, t = batch["z0"], batch["t"]  # (b, c, h, w), (b,)
        encoded = {name: item.to(z0.device) for name, item in batch["encoded"].items()}
        z, target = self.generator.noisy(z0, batch["noise"], t)
        return F.mse_loss(module(z, t, encoded, batch["keep"], batch["annotation"]).float(), target), {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """The loss of all annotated studies, and with annotations shifted to the next study (``shuffled``)."""
        device = next(module.parameters()).device
        studies = list(self.val[0].pairs)
        batch = self._collate(self.val, studies, [], fixed_rngs(self.seed, "validate", count=len(studies)))
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        steps = self.generator.config.diffusion.num_train_timesteps
        figures = {"loss": 0.0, "shuffled": 0.0}
        for k in range(_VALIDATION_TIMES):
            spread = spread_over(len(studies), k / _VALIDATION_TIMES, device)
            timed = batch | {"t": (spread * steps).long(), "noise": torch.randn_like(batch["z0"])}
            for name, annotation in (("loss", batch["annotation"]), ("shuffled", batch["annotation"].roll(1, 0))):
                value = self.loss(module, timed | {"annotation": annotation})[0]
                figures[name] += float(value.detach()) / _VALIDATION_TIMES
        return figures

    def sheet(self, module: nn.Module) -> Image.Image:
        """Annotations, their real images, and images generated from the annotations without text."""
        assert isinstance(module, _Steered)
        bank = self.val[0]
        image, annotation = (list(rows) for rows in zip(*(pairs[0] for pairs in bank.pairs.values()), strict=True))
        device = next(module.parameters()).device
        z0, drawn = bank.targets[image[:_SHEET]].to(device), bank.annotations[annotation[:_SHEET]].to(device)
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0)).to(device)
        output = Output(self.generator, self.generator.null(len(z0)), noise, control=Control(module.control, drawn))
        generated = sample_together({"": output}, num_inference_steps=20)[""]
        return contact_sheet([self.codec.decode(latents) for latents in (drawn, z0, generated)])

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, _Steered)
        store.save_component(root, self.component, module.control)
