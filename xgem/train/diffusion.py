"""The stages that train one generator each, with Multi-Prompt Training (XGeM 2.2)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from xgem import checkpoint as components
from xgem.component import component_class
from xgem.configs.schema import Preset, StageConfig
from xgem.data.cache import ArrayCache, module_hash
from xgem.generators.latent_diffusion import LatentDiffusion
from xgem.generators.sampling import sample
from xgem.train.corpus import Corpus
from xgem.train.loop import Stage, mix, permuted
from xgem.train.sheets import contact_sheet
from xgem.train.subsets import draw_prompts
from xgem.types import DataError, Encoded

_VALIDATION_TIMES = 8


@dataclass(frozen=True)
class Bank:
    """Everything of one modality that frozen components made of a corpus, by row.

    ``pooled`` (n, d), ``tokens`` (n, t, c) float16, ``mask`` (n, t): the prompt encoder's answers. ``prompts`` lists the
    rows that each study offers as a prompt, ``targets`` those it offers as a target; ``latents`` (m, ...) are the
    targets' latents.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    prompts: list[list[int]]
    targets: list[list[int]]
    latents: Tensor

    def encoded(self, rows: list[int]) -> Encoded:
        return Encoded(self.pooled[rows].float(), self.tokens[rows].float(), self.mask[rows])


@torch.no_grad()
def _encode_all(encoder: Any, batches: list[Any], device: torch.device) -> dict[str, Tensor]:
    parts = [encoder.encode(batch.to(device) if isinstance(batch, Tensor) else batch) for batch in batches]
    width = max(part.tokens.shape[1] for part in parts)

    return {
        "pooled": torch.cat([part.pooled.cpu() for part in parts]),
        "tokens": torch.cat([_pad(part.tokens.cpu().half(), width) for part in parts]),
        "mask": torch.cat([_pad(part.mask.cpu(), width) for part in parts]),
    }


def _pad(x: Tensor, width: int) -> Tensor:
    return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], dim=1)


def build_bank(
    modality: str, preset: Preset, corpus: Corpus, parts: Mapping[str, Any], cache: ArrayCache, device: torch.device
) -> Bank:
    """Encode a corpus once, or take it from the cache; the key holds the data's and the components' hashes."""
    config = preset.modalities[modality]
    encoder, codec = parts[config.encoder], parts[config.codec]
    studies = range(len(corpus.studies))
    if modality in {view for study in corpus.studies for view in study.pictures}:
        rows = [row for index in studies for row in corpus.rows(index, modality)]
        offset = {row: i for i, row in enumerate(rows)}
        prompts = [[offset[row] for row in corpus.rows(index, modality)] for index in studies]
        targets = prompts
        chunks = torch.tensor(rows).split(64)
        prompt_batches: list[Any] = [corpus.pictures.floats(chunk) for chunk in chunks]
        target_batches = prompt_batches
    else:
        texts: list[str] = []
        prompts, targets, reports = [], [], []
        for index in studies:
            own = corpus.texts(index)
            prompts.append(list(range(len(texts), len(texts) + len(own))))
            texts += own
            report = corpus.reports[index]
            targets.append([len(reports)] if report else [])
            reports += [report] if report else []
        prompt_batches = [texts[i : i + 64] for i in range(0, len(texts), 64)]
        target_batches = [reports[i : i + 64] for i in range(0, len(reports), 64)]
    if not prompt_batches or not target_batches:
        raise DataError(f"no {modality} in this split: train on a manifest that has some")
    data = {"modality": modality, "data": corpus.fingerprint()}

    def make_prompts() -> dict[str, Tensor]:
        return _encode_all(encoder.to(device), prompt_batches, device)

    @torch.no_grad()
    def make_latents() -> dict[str, Tensor]:
        codec.to(device)
        chunks = [codec.encode(b.to(device) if isinstance(b, Tensor) else b).cpu() for b in target_batches]
        return {"latents": torch.cat(chunks)}

    encodings = cache.get_or_make("prompts", data | {"encoder": module_hash(encoder)}, make_prompts)
    statistics = codec.config.model_dump(mode="json")
    latents = cache.get_or_make("latents", data | {"codec": module_hash(codec), "config": statistics}, make_latents)
    return Bank(**encodings, prompts=prompts, targets=targets, latents=latents["latents"])


class _Conditional(nn.Module):
    """Fuse and predict in one call, so that all of it can be wrapped and compiled."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, t: Tensor, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor]) -> Tensor:
        return self.model(z, t, self.model.fuse(encoded, keep))


class DiffusionStage(Stage):
    """Trains the generator of one modality on frozen encoders and codec, whose answers are cached."""

    def __init__(
        self,
        preset: Preset,
        config: StageConfig,
        train: Corpus,
        val: Corpus,
        target: str,
        parts: Mapping[str, Any],
        cache: Path,
        device: torch.device,
        seed: int,
    ) -> None:
        self.name, self.preset, self.config, self.seed, self.target = target, preset, config, seed, target
        self.component = preset.modalities[target].generator
        self.prompts = preset.components[self.component].prompts  # type: ignore[union-attr]
        assert target not in self.prompts
        self.codec = parts[preset.modalities[target].codec]
        store = ArrayCache(cache)
        names = (target, *self.prompts)
        self.train = {name: build_bank(name, preset, train, parts, store, device) for name in names}
        self.val = {name: build_bank(name, preset, val, parts, store, device) for name in names}
        self.usable = [i for i, rows in enumerate(self.train[target].targets) if rows]
        settings = preset.components[self.component]
        model = component_class(settings.kind).from_config(settings)
        assert isinstance(model, LatentDiffusion)
        self.module, self.model = _Conditional(model), model
        self.hash = train.fingerprint() + "".join(module_hash(parts[name]) for name in sorted(parts))

    def fingerprint(self) -> str:
        return super().fingerprint() + self.hash

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        size = self.config.batch_size
        picked = permuted(len(self.usable), (step * world + rank) * size, size, mix(self.seed, self.name))
        rng = random.Random(mix(self.seed, self.name, "prompts", step, rank))
        return self._collate(self.train, [self.usable[i] for i in picked], rng)

    def _collate(self, banks: Mapping[str, Bank], indices: list[int], rng: random.Random) -> dict[str, Any]:
        """Latents and, by prompt, the rows to encode and the multi-prompt draw. Missing prompts point at row 0, unused."""
        rows: dict[str, list[int]] = {name: [] for name in self.prompts}
        keep: dict[str, list[bool]] = {name: [] for name in self.prompts}
        targets = []
        null = self.model.config.null_probability
        for index in indices:
            targets.append(rng.choice(banks[self.target].targets[index]))
            present = [name for name in self.prompts if banks[name].prompts[index]]
            chosen = draw_prompts(present, self.target, rng, null)
            for name in self.prompts:
                rows[name].append(rng.choice(banks[name].prompts[index]) if name in chosen else 0)
                keep[name].append(name in chosen)
        return {
            "z0": banks[self.target].latents[targets],
            "encoded": {name: banks[name].encoded(rows[name]) for name in self.prompts},
            "keep": {name: torch.tensor(keep[name]) for name in self.prompts},
        }

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        z0 = batch["z0"]
        encoded = {name: _to(item, z0.device) for name, item in batch["encoded"].items()}
        t = batch.get("t")
        if t is None:
            t = torch.randint(self.model.config.diffusion.num_train_timesteps, (len(z0),), device=z0.device)
        z, target = self.model.noisy(z0, torch.randn_like(z0), t)
        prediction = module(z, t, encoded, batch["keep"])
        return torch.nn.functional.mse_loss(prediction.float(), target), {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """The training loss on fixed studies, subsets, noise and evenly spaced timesteps."""
        device = next(module.parameters()).device
        usable = [i for i, rows in enumerate(self.val[self.target].targets) if rows][:256]
        batch = self._collate(self.val, usable, random.Random(mix(self.seed, "validate")))
        batch["z0"] = batch["z0"].to(device)
        steps = self.model.config.diffusion.num_train_timesteps
        total = 0.0
        for k in range(_VALIDATION_TIMES):
            spread = (torch.arange(len(usable), device=device) * 0.6180339887 + k / _VALIDATION_TIMES) % 1
            total += float(self.loss(module, batch | {"t": (spread * steps).long()})[0]) / _VALIDATION_TIMES
        return {"loss": total}

    def sheet(self, module: nn.Module) -> Image.Image | str:
        assert isinstance(module, _Conditional)
        model = module.model
        device = next(module.parameters()).device
        complete = [
            i
            for i, rows in enumerate(self.val[self.target].targets)
            if rows and all(self.val[name].prompts[i] for name in self.prompts)
        ][:8]
        encoded = {
            name: _to(self.val[name].encoded([self.val[name].prompts[i][0] for i in complete]), device)
            for name in self.prompts
        }
        z0 = self.val[self.target].latents[[self.val[self.target].targets[i][0] for i in complete]].to(device)
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0)).to(device)
        scale = self.preset.sampling.guidance_scale.get(self.target, 1.0)
        made = sample(model, model.fuse(encoded), noise, num_inference_steps=20, guidance_scale=scale)
        codec = self.codec.to(device)
        real, fake = codec.decode(z0), codec.decode(made)
        if isinstance(real, Tensor):
            return contact_sheet([real, fake])
        return "\n".join(f"{a}\n  -> {b}" for a, b in zip(real, fake, strict=True))

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, _Conditional)
        components.save_component(root, self.component, module.model)


def _to(encoded: Encoded, device: torch.device) -> Encoded:
    return Encoded(encoded.pooled.to(device), encoded.tokens.to(device), encoded.mask.to(device))
