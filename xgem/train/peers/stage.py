"""The stage that trains a peer on frontals and their reports, by its family's own objective."""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.checkpoints.training import writable
from xgem.peers.adapter import add_fresh, save_adapter
from xgem.peers.families import family_of
from xgem.peers.loading import without_bars
from xgem.peers.locate import PeerLocation
from xgem.peers.preset import VIEW
from xgem.peers.record import ADAPTER_NAME, PeerRecord, write_record
from xgem.train.corpus import Corpus
from xgem.train.peers.modules import FullDenoiser, LoraDenoiser
from xgem.train.peers.settings import Kind, LoraTraining, PeerTraining
from xgem.train.share import Share
from xgem.train.stage import Stage, permuted, spread_over
from xgem.types import DataError
from xgem.utils.random import mix

log = logging.getLogger(__name__)

_VALIDATION_STUDIES = 64
_VALIDATION_BATCH = 8
_VALIDATION_TIMES = 4


class PeerStage(Stage):
    """Trains a LoRA, or all of the denoiser; autoencoder and text encoders are frozen, and in bfloat16 if ``half``."""

    def __init__(
        self,
        kind: Kind,
        pipe: Any,
        location: PeerLocation,
        config: PeerTraining,
        corpora: tuple[Corpus, Corpus],
        resolution: int,
        seed: int,
        *,
        half: bool = False,
    ) -> None:
        self.name, self.config, self.seed = kind, config, seed
        self.kind: Kind = kind
        self.half = half
        self.pipe, self.location, self.training, self.resolution = pipe, location, config, resolution
        self.family = family_of(location.folder)(
            pipe, location.folder, guidance=config.guidance, mean=config.logit_mean, std=config.logit_std
        )
        self.latent_shape = self.family.latent_shape(resolution)
        self.train, self.val = corpora
        self.usable, self.held_out = (_usable(corpus) for corpus in corpora)
        torch.manual_seed(mix(seed, kind, "initialise"))
        denoiser = self.family.denoiser
        if isinstance(config, LoraTraining):
            rank = config.rank
            weights = add_fresh(denoiser, rank=rank, alpha=config.alpha or rank, targets=config.targets)
            for value in weights.values():
                value.data = value.data.float()
            self.module: nn.Module = LoraDenoiser(denoiser, weights)
        else:
            self.module = FullDenoiser(denoiser)
        self.data = hashlib.sha256(f"{self.train.fingerprint()}{self.val.fingerprint()}".encode()).hexdigest()
        self.origin = f"{location.folder.hash} {resolution} {self.data}"

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {}

    def checkpoint_activations(self, on: bool = True) -> bool:
        denoiser: Any = self.family.denoiser
        if not getattr(denoiser, "_supports_gradient_checkpointing", False):
            return False
        (denoiser.enable_gradient_checkpointing if on else denoiser.disable_gradient_checkpointing)()
        return True

    def batch(self, share: Share) -> dict[str, Any]:
        picked = permuted(len(self.usable), share.numbers, mix(self.seed, self.name))
        rngs = share.rngs("prompts")
        texts = [self.train.texts(self.usable[place])[0] for place in picked]
        return {
            "images": self._images(self.train, [self.usable[place] for place in picked], rngs),
            "texts": [
                "" if rng.random() < self.training.null_probability else text
                for rng, text in zip(rngs, texts, strict=True)
            ],
            "u": share.uniform((), "timestep"),  # (b,)
            "noise": share.normal(self.latent_shape),  # (b, *latent_shape)
            "posterior": share.normal(self.latent_shape, "posterior"),
        }

    @staticmethod
    def _images(corpus: Corpus, studies: Sequence[int], rngs: Sequence[random.Random]) -> Tensor:
        """A frontal of each study, (b, 1, s, s) uint8."""
        rows = [rng.choice(corpus.rows(index, VIEW)) for index, rng in zip(studies, rngs, strict=True)]
        return corpus.images.bytes(rows)

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        noise, family = batch["noise"], self.family
        with torch.no_grad():
            conditions = family.encode(batch["texts"])
            with torch.autocast(noise.device.type, enabled=False):  # autoencoders overflow in half precision
                images = (batch["images"].float() / 127.5 - 1).expand(-1, 3, -1, -1)
                z = family.latents(images, batch["posterior"]).float()
        time = family.time(batch["u"])
        noisy, target = family.noisy(z, noise, time)
        prediction = family.predict(module, noisy, time, conditions)
        return F.mse_loss(prediction.float(), target.float()), {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """The training loss on fixed studies, with their whole prompts, at evenly spaced times."""
        device = next(module.parameters()).device
        studies = self.held_out[:_VALIDATION_STUDIES]
        rngs = [random.Random(mix(self.seed, "validate", index)) for index in studies]
        images = self._images(self.val, studies, rngs)
        texts = [self.val.texts(index)[0] for index in studies]
        shape, total, count = (len(studies), *self.latent_shape), 0.0, 0
        for k in range(_VALIDATION_TIMES):
            whole = {
                "images": images.to(device),
                "u": spread_over(len(studies), k / _VALIDATION_TIMES, device),
                "noise": torch.randn(shape).to(device),
                "posterior": torch.randn(shape).to(device),
            }
            for start in range(0, len(studies), _VALIDATION_BATCH):
                part = {name: value[start : start + _VALIDATION_BATCH] for name, value in whole.items()}
                own: dict[str, Any] = {**part, "texts": texts[start : start + _VALIDATION_BATCH]}
                with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
                    total += float(self.loss(module, own)[0]) * len(own["texts"])
                count += len(own["texts"])
        return {"loss": total / count}

    def finish(self, module: nn.Module, root: Path) -> None:
        """Write the LoRA, or the whole pipeline, and then the record, which says that all of it is there."""
        with writable(root):
            temporary = Path(tempfile.mkdtemp(prefix=".peer.", dir=root))
            try:
                if isinstance(module, LoraDenoiser):
                    name, record = self.location.folder.denoiser, self.record
                    assert record.rank is not None
                    assert record.alpha is not None
                    save_adapter(self.pipe, temporary, module.named, name, rank=record.rank, alpha=record.alpha)
                    (temporary / ADAPTER_NAME).replace(root / ADAPTER_NAME)
                else:
                    setattr(self.pipe, self.location.folder.denoiser, cast(FullDenoiser, module).denoiser)
                    with without_bars():
                        self.pipe.save_pretrained(temporary, safe_serialization=True)
                    for part in sorted(temporary.iterdir()):
                        if (root / part.name).is_dir():
                            shutil.rmtree(root / part.name)
                        part.replace(root / part.name)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        write_record(root, self.record)

    @property
    def record(self) -> PeerRecord:
        """What is written beside the weights."""
        config, location = self.training, self.location
        lora = config if isinstance(config, LoraTraining) else None
        return PeerRecord(
            kind=self.kind,
            base=location.base,
            base_hash=location.folder.hash,
            revision=location.revision,
            pipeline=location.folder.kind.__name__,
            resolution=self.resolution,
            sections=config.sections,
            rank=lora.rank if lora else None,
            alpha=(lora.alpha or lora.rank) if lora else None,
            targets=lora.targets if lora else (),
            steps=config.steps,
            seed=self.seed,
            settings=config.model_dump(mode="json"),
            data=self.data,
        )


def _usable(corpus: Corpus) -> list[int]:
    """The studies with a frontal and a text; DataError where there are none."""
    found = [index for index in range(len(corpus.studies)) if corpus.rows(index, VIEW) and corpus.texts(index)]
    if not found:
        raise DataError(f"no study of a split has both a {VIEW} and a text ({' or '.join(corpus.sections)}, or labels)")
    return found
