"""Training of the re-identification network on data with several images per patient.

Batches are balanced between pairs of one patient and pairs of two. Both kinds start from the same patients, and the
second image of both kinds comes from the same sources: otherwise the network could distinguish data sets instead of
patients. A network on frozen features (``mobilenet``) is fitted in closed form (:mod:`xgem.train.reid_fit`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.configs.preset import StageConfig
from xgem.data.augment import augmented
from xgem.data.manifest import Manifest
from xgem.judges.reid import (
    MOBILENET,
    PUBLISHED,
    ReidConfig,
    SiameseNetwork,
    load_reid,
    to_input,
)
from xgem.train.loop import LoopOptions, TrainState, train
from xgem.train.reid_fit import fit
from xgem.train.reid_pairs import Judged, Patients, judge_pairs, write_reid
from xgem.train.share import Share
from xgem.train.stage import Stage
from xgem.types import ConfigError, InputError
from xgem.utils.random import mix

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReidPreset:
    """A network and how it is trained; None: it is fitted (:mod:`xgem.train.reid_fit`)."""

    network: ReidConfig
    train: StageConfig | None


PRESETS: Final[dict[str, ReidPreset]] = {
    "published": ReidPreset(
        PUBLISHED, StageConfig(steps=20_000, batch_size=32, learning_rate=1e-4, weight_decay=0.0, validate_every=1000)
    ),
    "small": ReidPreset(
        ReidConfig(block="basic", layers=(2, 2, 2, 2), size=128),
        StageConfig(steps=3000, batch_size=32, learning_rate=3e-4, weight_decay=1e-3, validate_every=250),
    ),
    "mobilenet": ReidPreset(MOBILENET, None),
    "debug": ReidPreset(
        ReidConfig(block="basic", layers=(1, 1, 1, 1), size=32),
        StageConfig(steps=6, batch_size=8, learning_rate=1e-3, warmup_steps=1, validate_every=3, checkpoint_every=2),
    ),
}
"""``published``: network, batch (32 pairs) and optimiser (Adam, 1e-4) of Packhaeuser et al., who start from ImageNet's
weights (here random ones, or ``init``) and do not augment images; ``small``: ResNet-18 at 128 pixels; ``mobilenet``:
ImageNet's MobileNetV2, frozen, with a projection that is fitted, not trained: for few patients."""


class ReidStage(Stage):
    """Binary cross-entropy on balanced pairs."""

    name = "reid"

    def __init__(
        self, preset: ReidPreset, patients: Patients, held_out: Patients, seed: int, init: Path | None = None
    ) -> None:
        assert preset.train is not None
        self.config, self.network, self.seed = preset.train, preset.network, seed
        self.settings = (preset.network,)
        self.patients, self.held_out = patients, held_out
        torch.manual_seed(mix(seed, self.name, "initialise"))
        self.module = SiameseNetwork(preset.network)
        self.origin = f"{patients.sha256}{held_out.sha256}"
        if init is not None:
            source = load_reid(init)
            if source.config != preset.network:
                raise ConfigError(
                    f"--init {init}: its network configuration ({source.config}) differs from the preset's"
                )
            self.module.load_state_dict(source.network.state_dict())
            self.origin += source.weights

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {self.name: self.module}

    def batch(self, share: Share) -> dict[str, Any]:
        rng = np.random.default_rng(mix(self.seed, self.name, share.step, share.first))
        patients = [self.patients.several[int(i)] for i in rng.integers(len(self.patients.several), size=share.size)]
        same = [number % 2 == 0 for number in share.numbers]
        rows = [self.patients.pair(patient, s, rng) for patient, s in zip(patients, same, strict=True)]
        first, second = (self._augmented(self.patients.images[[row[side] for row in rows]]) for side in (0, 1))
        return {"first": first, "second": second, "same": torch.tensor(same).float()}

    def _augmented(self, images: Tensor) -> Tensor:
        x = augmented(images.unsqueeze(1).float() / 127.5 - 1)
        return to_input((x + 1) / 2, self.network)

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = module(batch["first"], batch["second"])  # (b,)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch["same"])
        return loss, {"accuracy": ((logits > 0) == (batch["same"] > 0)).float().mean()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        logits, same, _ = self._judged(module)
        # Weighted equally, as in training
        losses = [float(np.logaddexp(0, -logits[same]).mean()), float(np.logaddexp(0, logits[~same]).mean())]
        return {"loss": sum(losses) / 2, "auc": float(roc_auc_score(same, logits))}

    def _judged(self, module: nn.Module) -> Judged:
        return judge_pairs(cast(SiameseNetwork, module), self.network, self.held_out, self.seed)

    def finish(self, module: nn.Module, root: Path) -> None:
        trained = {"network": self.network.model_dump(), "train": self.config.model_dump(), "seed": self.seed}
        write_reid(root, cast(SiameseNetwork, module), self.network, self.patients, self._judged(module), trained)


def run(
    manifest: Manifest,
    root: Path,
    options: LoopOptions,
    *,
    preset: str = "small",
    config: StageConfig | None = None,
    seed: int = 0,
    init: Path | None = None,
    progress: bool = True,
) -> TrainState:
    """Train the network on split ``train`` and evaluate it on the patients of ``val`` and ``test``.

    Writes ``reid.safetensors`` and ``reid.json`` (the AUC with its interval) into ``root``. The held-out patients are
    not used for model selection: training always takes all its steps.

    Args:
        preset: a key of :data:`PRESETS`.
        config: how to train, instead of the preset's settings.
        init: a network to start from, readable by :func:`xgem.judges.reid.load_reid`; None for random weights.

    Raises:
        DataError: no patient with two frontals in ``train``, or in ``val`` and ``test``. ManifestError: invalid
        manifest. InputError: unknown preset. CheckpointError, ConfigError: ``init`` or an earlier run does not fit.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r} of reid: expected one of {', '.join(PRESETS)}")
    manifest.check(files=True)
    chosen = PRESETS[preset] if config is None else replace(PRESETS[preset], train=config)
    size, cache = chosen.network.size, root / "cache"
    patients, held_out = (
        Patients.load(manifest, splits, size, cache, progress=progress) for splits in (("train",), ("val", "test"))
    )
    log.info("reid: %d patients with several images, %d held out", len(patients.several), len(held_out.several))
    if chosen.train is None:
        if init is not None:
            raise InputError("--init: preset 'mobilenet' is fitted anew; leave it out")
        network = fit(patients, chosen.network, seed)
        judged = judge_pairs(network, chosen.network, held_out, seed)
        trained = {"network": chosen.network.model_dump(), "train": "closed form", "seed": seed}
        write_reid(root, network, chosen.network, patients, judged, trained)
        return TrainState()
    return train(ReidStage(chosen, patients, held_out, seed, init), root, options)
