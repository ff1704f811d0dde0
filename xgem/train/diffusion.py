"""The stages that train one generator each, with Multi-Prompt Training (XGeM 2.2)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.configs.preset import Preset
from xgem.generators.latent_diffusion import LatentDiffusion
from xgem.generators.sampling import sample
from xgem.train import needs
from xgem.train.context import DependentStage, StageContext
from xgem.train.corpus import balanced, draw_prompts
from xgem.train.share import Share, fixed_rngs
from xgem.train.sheets import contact_sheet
from xgem.train.source import Prompts, Source, Targets, studies_with
from xgem.train.stage import permuted, spread_over
from xgem.types import Encoded
from xgem.utils.devices import moved
from xgem.utils.random import mix

_VALIDATION_TIMES = 8


class _Conditional(nn.Module):
    """Fusion and prediction in one ``forward``, so that both are wrapped by DDP and compiled."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, t: Tensor, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor]) -> Tensor:
        return self.model(z, t, self.model.fuse(encoded, keep))


@dataclass(frozen=True)
class _Split:
    """Targets and prompts of one split."""

    targets: Targets
    prompts: Mapping[str, Prompts]


class DiffusionStage(DependentStage):
    """Trains the generator of one modality on frozen encoders and codec, whose outputs are cached or in shards.

    ``config.loss``: ``known``, the fraction of samples drawn field by field: one of severity score, age, sex and race,
    then one of the studies whose texts say it. ``balanced``, the fraction drawn class by class: one of CheXpert's
    classes that 10 studies or more are annotated with, then one of these, so that rare findings are learned.
    ``single``: 1 gives every sample one prompt in place of a subset (XGeM's ablation CoDi_XR), 0 is Multi-Prompt
    Training.
    """

    losses: ClassVar[Mapping[str, float]] = {"known": 0.0, "balanced": 0.0, "single": 0}
    switches: ClassVar[tuple[str, ...]] = ("single",)
    reads_shards = True

    @classmethod
    def needs(cls, name: str, preset: Preset) -> list[needs.Need]:
        prompts: tuple[str, ...] = getattr(preset.components[preset.generator(name)], "prompts", ())
        share = cls.loss_weights(name, preset.train[name])["known"]
        wanted = [needs.target(name, preset.report_sections), *map(needs.prompt, prompts)]
        return [*wanted, needs.known()] if share else wanted

    def __init__(self, context: StageContext, target: str) -> None:
        preset = context.preset
        self.name, self.preset, self.config, self.seed = target, preset, context.config(target), context.seed
        self.target, self.component, self.device = target, preset.generator(target), context.device
        settings = preset.components[self.component]
        self.prompts: tuple[str, ...] = getattr(settings, "prompts", ())
        assert target not in self.prompts
        parts = context.parts({preset.codec(target)}, self.name, map(preset.encoder, self.prompts))
        context.seed_weights(self.name)
        self.codec = parts[preset.codec(target)]
        source = context.source("train")
        self.train, self.val = (self._split(one, parts) for one in (source, context.source("val")))
        self.usable = studies_with(self.train.targets)
        self.weights = self.loss_weights(target, self.config)
        self.known = source.by_field(self.usable, self.weights["known"])
        self.classes = source.by_class(self.usable)
        model = context.build(self.component)
        assert isinstance(model, LatentDiffusion)
        model.measure(self.train.targets.mean()[None])
        self.module, self.model = _Conditional(model), model
        self.identify(settings, parts, context)

    def _split(self, source: Source, parts: Mapping[str, Any]) -> _Split:
        limit = getattr(self.preset.components[self.component], "caption_tokens", None)
        encoders = {name: parts.get(self.preset.encoder(name)) for name in self.prompts}
        prompts = {name: source.prompts(name, encoder, limit) for name, encoder in encoders.items()}
        return _Split(source.targets(self.target, self.codec), prompts)

    def checkpoint_activations(self, on: bool = True) -> bool:
        self.model.checkpoint_activations(on)
        return True

    def batch(self, share: Share) -> dict[str, Any]:
        picked = permuted(len(self.usable), share.numbers, mix(self.seed, self.name))
        rngs = share.rngs("prompts")
        studies = balanced([int(self.usable[i]) for i in picked], self.known, self.weights["known"], rngs)
        studies = balanced(studies, self.classes, self.weights["balanced"], rngs)
        return self._collate(self.train, studies, rngs) | {
            "t": share.integers(0, self.model.config.diffusion.num_train_timesteps, "timestep"),  # (b,)
            "noise": share.normal(self.model.latent_shape),  # (b, *latent_shape)
        }

    def _collate(self, split: _Split, indices: Sequence[int], rngs: Sequence[random.Random]) -> dict[str, Any]:
        """Latents and, by prompt, rows to encode and the multi-prompt draw. Missing prompts point at row 0, unused."""
        rows: dict[str, list[int]] = {name: [] for name in self.prompts}
        keep: dict[str, list[bool]] = {name: [] for name in self.prompts}
        targets = []
        null = self.model.config.null_probability
        for index, rng in zip(indices, rngs, strict=True):
            targets.append(rng.choice(split.targets.rows[index]))
            present = [name for name in self.prompts if split.prompts[name].rows[index]]
            chosen = draw_prompts(present, self.target, rng, null, single=bool(self.weights["single"]))
            for name in self.prompts:
                rows[name].append(rng.choice(split.prompts[name].rows[index]) if name in chosen else 0)
                keep[name].append(name in chosen)
        return {
            "z0": split.targets.take(targets),  # (b, *latent_shape)
            "encoded": {name: split.prompts[name].encoded(rows[name], self.device) for name in self.prompts},
            "keep": {name: moved(torch.tensor(keep[name]), self.device) for name in self.prompts},  # (b,) bool
        }

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        z0, t = batch["z0"], batch["t"]  # (b, *latent_shape), (b,)
        encoded = {name: item.to(z0.device) for name, item in batch["encoded"].items()}
        z, target = self.model.noisy(z0, batch["noise"], t)  # (b, *latent_shape) each
        prediction = module(z, t, encoded, batch["keep"])
        return torch.nn.functional.mse_loss(prediction.float(), target), {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """The training loss on fixed studies, prompt subsets and evenly spaced timesteps."""
        device = next(module.parameters()).device
        usable = studies_with(self.val.targets)[:256].tolist()
        batch = self._collate(self.val, usable, fixed_rngs(self.seed, "validate", count=len(usable)))
        batch["z0"] = batch["z0"].to(device)
        steps = self.model.config.diffusion.num_train_timesteps
        total = 0.0
        for k in range(_VALIDATION_TIMES):
            spread = spread_over(len(usable), k / _VALIDATION_TIMES, device)
            timed = batch | {"t": (spread * steps).long(), "noise": torch.randn_like(batch["z0"])}
            total += float(self.loss(module, timed)[0]) / _VALIDATION_TIMES
        return {"loss": total}

    def sheet(self, module: nn.Module) -> Image.Image | str | None:
        assert isinstance(module, _Conditional)
        model = module.model
        device = next(module.parameters()).device
        complete = studies_with(self.val.targets, *self.val.prompts.values())[:8].tolist()
        if not complete:
            return None
        encoded = {
            name: self.val.prompts[name].encoded([self.val.prompts[name].rows[i][0] for i in complete]).to(device)
            for name in self.prompts
        }
        z0 = self.val.targets.take([self.val.targets.rows[i][0] for i in complete]).to(device)
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0)).to(device)
        scale = self.preset.sampling.guidance_scale.get(self.target, 1.0)
        generated = sample(model, model.fuse(encoded), noise, num_inference_steps=20, guidance_scale=scale)
        codec = self.codec.to(device)
        real, fake = codec.decode(z0), codec.decode(generated)
        if isinstance(real, Tensor):
            return contact_sheet([real, fake])
        return "\n".join(f"{a}\n  -> {b}" for a, b in zip(real, fake, strict=True))

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, _Conditional)
        store.save_component(root, self.component, module.model)
