"""The stage that trains the alignment on several outputs at once, with frozen generators (XGeM 2.3)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from xgem.alignment.environment import summary
from xgem.alignment.model import Alignment, TransformerAlignment
from xgem.checkpoints import store
from xgem.configs.preset import Preset
from xgem.encoders.contrastive import info_nce
from xgem.generators.latent_diffusion import LatentDiffusion
from xgem.train import needs
from xgem.train.context import DependentStage, StageContext
from xgem.train.corpus import draw_prompts
from xgem.train.share import Share, fixed_rngs
from xgem.train.source import Prompts, Source, Targets, studies_with
from xgem.train.stage import ComparingStage, Frozen, permuted, spread_over
from xgem.types import ConfigError, Encoded
from xgem.utils.devices import moved
from xgem.utils.random import mix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_VALIDATION = 96
_VALIDATION_TIMES = 4


class _Together(nn.Module):
    """The alignment and its frozen generators in one ``forward``, so that it is wrapped by DDP and compiled."""

    def __init__(self, alignment: Alignment | TransformerAlignment, generators: Frozen) -> None:
        super().__init__()
        self.alignment = alignment
        self.generators = generators

    def forward(
        self,
        z: Mapping[str, Tensor],
        t: Tensor,
        encoded: Mapping[str, Encoded],
        keep: Mapping[str, Tensor],
        contrasted: Mapping[str, Tensor],
        level: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predictions (b, ...) of all outputs in ``z``, each attending to the others (if empty, no generator runs), and
        environment vectors (b, d) of the noisy latents ``contrasted`` at the timesteps ``level``, () or (b,).
        """
        tokens = self.alignment.tokens(z, t)
        predictions = {}
        for name, latents in z.items():
            model = self.generators[name]
            with self.alignment.seeing(name, model.net, tokens):
                predictions[name] = model(latents, t, _context(model, encoded, keep, len(t)))
        return predictions, {name: summary(value) for name, value in self.alignment.tokens(contrasted, level).items()}


def _context(model: LatentDiffusion, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor], batch: int) -> Any:
    return model.fuse(encoded, keep) if encoded else model.null(batch)


class JointStage(DependentStage, ComparingStage):
    """Denoising losses of all outputs of a group, and InfoNCE between their environment vectors (XGeM 2.3).

    A step trains one group of outputs, drawn uniformly from all subsets of two or more; prompts are drawn from the
    other modalities by Multi-Prompt Training, null context included; all outputs share the timestep. ``config.loss``:
    ``contrastive``, weight of InfoNCE; ``temperature``; ``alone``, number of initial steps with InfoNCE only, on
    complete studies and four times the batch size (fast, as no generator runs, and it gives the attention informative
    tokens to start from); ``lowest``, minimum timestep of the denoising losses, as a latent with little noise gains
    nothing from the others; ``published``, 1 for InfoNCE as XGeM's published code computes it: from the first output to
    the second alone, of the latents that are denoised, each study's at its own timestep. There its weight and its
    temperature are 1.
    """

    name = "joint"
    losses: ClassVar[Mapping[str, float]] = {
        "contrastive": 0.02, "temperature": 0.1, "alone": 0, "lowest": 0, "published": 0,
    }  # fmt: skip
    switches: ClassVar[tuple[str, ...]] = ("published",)
    reads_shards = True

    @classmethod
    def needs(cls, name: str, preset: Preset) -> list[needs.Need]:
        outputs = tuple(getattr(preset.components[str(preset.alignment)], "outputs", ())) if preset.alignment else ()
        wanted = [needs.target(output, preset.report_sections) for output in outputs]
        return [needs.together(*wanted), *map(needs.prompt, outputs)] if wanted else []

    def __init__(self, context: StageContext) -> None:
        preset, device = context.preset, context.device
        self.config, self.seed, self.device = context.config(self.name), context.seed, device
        if preset.alignment is None:
            raise ConfigError(f"preset {preset.name!r} has no alignment to train")
        self.component = preset.alignment
        settings: Any = preset.components[self.component]
        self.outputs = tuple(settings.outputs)
        needed = [part(name) for name in self.outputs for part in (preset.codec, preset.generator)]
        parts = context.parts(needed, self.name, map(preset.encoder, self.outputs))
        context.seed_weights(self.name)
        weights = self.loss_weights(self.name, self.config)
        self.contrastive, self.temperature = weights["contrastive"], weights["temperature"]
        self.alone, self.lowest = weights["alone"], int(weights["lowest"])
        self.published = bool(weights["published"])
        if self.published and self.alone:
            raise ConfigError(
                f"stage joint: published 1 and alone {self.alone:g}: the published code has no such steps; set one"
            )
        self.generators = Frozen({n: parts[preset.generator(n)].to(device) for n in self.outputs})
        assert not any(p.requires_grad for model in self.generators.values() for p in model.parameters())
        self.model: Any = context.build(self.component)
        self.module = _Together(self.model, self.generators)
        self.groups = [
            group for k in range(2, len(self.outputs) + 1) for group in itertools.combinations(self.outputs, k)
        ]
        self.train, self.val = (self._banks(context.source(split), parts, preset) for split in ("train", "val"))
        self.null = max(model.config.null_probability for model in self.generators.values())
        self.steps = min(model.config.diffusion.num_train_timesteps for model in self.generators.values())
        if not 0 <= self.lowest < self.steps:
            raise ConfigError(f"stage joint: lowest timestep {self.lowest}, expected 0 to {self.steps - 1}")
        self.identify(settings, parts, context)

    def _banks(self, source: Source, parts: Mapping[str, Any], preset: Preset) -> dict[str, tuple[Targets, Prompts]]:
        return {
            name: (
                source.targets(name, parts[preset.codec(name)]),
                source.prompts(name, parts.get(preset.encoder(name))),
            )
            for name in self.outputs
        }

    def usable(self, banks: Mapping[str, tuple[Targets, Prompts]], group: Sequence[str]) -> NDArray[np.int32]:
        """The studies that have every output of the group."""
        return studies_with(*(banks[name][0] for name in group))

    def checkpoint_activations(self, on: bool = True) -> bool:
        for generator in self.generators.values():  # gradients pass through them to the alignment
            generator.checkpoint_activations(on)
        return True

    def batch(self, share: Share) -> dict[str, Any]:
        alone = share.step < self.alone
        group = self.groups[-1] if alone else share.of_step("group").choice(self.groups)
        share = share.times(4) if alone else share
        studies = self.usable(self.train, group)
        picked = permuted(len(studies), share.numbers, mix(self.seed, self.name, *group))
        return self._collate(self.train, group, [int(studies[i]) for i in picked], share.rngs("prompts")) | {
            "alone": alone,
            "t": share.integers(self.lowest, self.steps, "timestep"),  # (b,)
            # One for the whole batch: otherwise the timestep alone would identify matching vectors
            "level": torch.tensor(share.of_step("level").randrange(self.steps)),  # ()
            "noise": {name: self._noise(name, share, "noise") for name in group},  # (b, ...) each
            "contrasted": {name: self._noise(name, share, "contrasted") for name in group},
        }

    def _noise(self, name: str, share: Share, purpose: str) -> Tensor:
        return share.normal(self.generators[name].latent_shape, f"{purpose} of {name}")

    def _collate(
        self,
        banks: Mapping[str, tuple[Targets, Prompts]],
        group: Sequence[str],
        indices: list[int],
        rngs: Sequence[random.Random],
    ) -> dict[str, Any]:
        """Latents ``z0`` (b, ...) of the group; encodings of the prompts; ``keep`` (b,) bool, True where one was drawn.

        Prompts that were not drawn point to row 0, which is then masked.
        """
        rest = [name for name in self.outputs if name not in group]
        targets: dict[str, list[int]] = {name: [] for name in group}
        rows: dict[str, list[int]] = {name: [] for name in rest}
        keep: dict[str, list[bool]] = {name: [] for name in rest}
        for index, rng in zip(indices, rngs, strict=True):
            for name in group:
                targets[name].append(rng.choice(banks[name][0].rows[index]))
            present = [name for name in rest if banks[name][1].rows[index]]
            chosen = draw_prompts(present, group[0], rng, self.null)
            for name in rest:
                rows[name].append(rng.choice(banks[name][1].rows[index]) if name in chosen else 0)
                keep[name].append(name in chosen)
        return {
            "z0": {name: moved(banks[name][0].take(chosen), self.device) for name, chosen in targets.items()},
            "encoded": {name: banks[name][1].encoded(chosen, self.device) for name, chosen in rows.items()},
            "keep": {name: moved(torch.tensor(drawn), self.device) for name, drawn in keep.items()},
            "alone": False,
        }

    def per_sample(self, module: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        device = next(module.parameters()).device
        z0 = {name: value.to(device) for name, value in batch["z0"].items()}
        encoded = {name: item.to(device) for name, item in batch["encoded"].items()}
        t, level = batch["t"], batch["level"]  # (b,), ()
        # Noisy latents and targets for denoising, (b, ...) each; other noise for the contrastive loss
        makers = {name: self.generators[name].noisy for name in z0}
        noisy = {} if batch["alone"] else {name: makers[name](z0[name], batch["noise"][name], t) for name in z0}
        if self.published:
            contrasted, level = {name: latents for name, (latents, _) in noisy.items()}, t
        else:
            contrasted = {name: makers[name](z0[name], batch["contrasted"][name], level)[0] for name in z0}
        z = {name: latents for name, (latents, _) in noisy.items()}
        predictions, vectors = module(z, t, encoded, batch["keep"], contrasted, level)
        found = {"environments": torch.stack([vectors[name].float() for name in z0], dim=1)}  # (b, outputs, d)
        if noisy:
            errors = [(predictions[name].float() - noisy[name][1]).square().flatten(1).mean(dim=1) for name in z0]
            found["denoising"] = torch.stack(errors, dim=1)  # (b, outputs)
        return found

    def criterion(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        # InfoNCE between the environment vectors of every pair of outputs, (b, d) each
        vectors = values["environments"].unbind(dim=1)
        scale = vectors[0].new_tensor(1 / self.temperature)
        pairs = itertools.combinations(vectors, 2)
        contrast = torch.stack([info_nce(a, b, scale, both=not self.published) for a, b in pairs]).mean()
        logged = {"contrast": contrast.detach()}
        if "denoising" not in values:
            return contrast, logged
        denoising = values["denoising"].mean()
        return denoising + self.contrastive * contrast, {"denoising": denoising.detach()} | logged

    def validate(self, module: nn.Module) -> dict[str, float]:
        """The denoising loss of every group on fixed studies and evenly spaced timesteps."""
        device = next(module.parameters()).device
        figures = {"loss": 0.0, "contrast": 0.0}
        for group in self.groups:
            studies = self.usable(self.val, group)[:_VALIDATION].tolist()
            batch = self._collate(self.val, group, studies, fixed_rngs(self.seed, "validate", count=len(studies)))
            for k in range(_VALIDATION_TIMES):
                spread = spread_over(len(studies), k / _VALIDATION_TIMES, device)
                t = self.lowest + (spread * (self.steps - self.lowest)).long()
                level = torch.tensor((k + 0.5) / _VALIDATION_TIMES * self.steps, device=device).long()
                noise = {
                    key: {name: torch.randn_like(value) for name, value in batch["z0"].items()}
                    for key in ("noise", "contrasted")
                }
                _, logged = self.loss(module, batch | noise | {"t": t, "level": level})
                share = 1 / (_VALIDATION_TIMES * len(self.groups))
                figures["loss"] += float(logged["denoising"]) * share
                figures["contrast"] += float(logged["contrast"]) * share
                key = "+".join(group)
                figures[key] = figures.get(key, 0.0) + float(logged["denoising"]) / _VALIDATION_TIMES
        return figures

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, _Together)
        store.save_component(root, self.component, module.alignment)
