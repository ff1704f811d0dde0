"""Training of the re-identification network on data with several images per patient.

Batches are balanced between pairs of one patient and pairs of two. Both kinds start from the same patients, and both
patients of a pair are of the same source: otherwise the network could distinguish data sets instead of patients.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.configs.components import TransformConfig
from xgem.configs.preset import StageConfig
from xgem.data.augment import augmented
from xgem.data.manifest import Manifest
from xgem.data.prepare import prepare_images
from xgem.judges.reid import PUBLISHED, WEIGHTS_NAME, ReidConfig, SiameseNetwork, load_reid, save_reid, to_input
from xgem.metrics.bootstrap import Array, Estimate, Sampled
from xgem.train.loop import LoopOptions, TrainState, train
from xgem.train.share import Share
from xgem.train.stage import Stage
from xgem.types import ConfigError, DataError, InputError
from xgem.utils.random import mix

log = logging.getLogger(__name__)

RECORD_NAME: Final = "reid.json"
VIEW: Final = "frontal"
PAIRS_A_PATIENT: Final = 10
NEGATIVES: Final = 10
"""Pairs of two patients per pair of one in the evaluation; the AUC does not depend on this ratio."""


@dataclass(frozen=True)
class ReidPreset:
    """A network and how it is trained."""

    network: ReidConfig
    train: StageConfig


PRESETS: Final[dict[str, ReidPreset]] = {
    "published": ReidPreset(
        PUBLISHED, StageConfig(steps=20_000, batch_size=32, learning_rate=1e-4, weight_decay=0.0, validate_every=1000)
    ),
    "small": ReidPreset(
        ReidConfig(block="basic", layers=(2, 2, 2, 2), size=128),
        StageConfig(steps=3000, batch_size=32, learning_rate=3e-4, weight_decay=1e-3, validate_every=250),
    ),
    "debug": ReidPreset(
        ReidConfig(block="basic", layers=(1, 1, 1, 1), size=32),
        StageConfig(steps=6, batch_size=8, learning_rate=1e-3, warmup_steps=1, validate_every=3, checkpoint_every=2),
    ),
}
"""``published``: network, batch (32 pairs) and optimiser (Adam, 1e-4) of Packhaeuser et al., who start from ImageNet's
weights (here random ones, or ``init``) and do not augment images; ``small``: ResNet-18 at 128 pixels."""


@dataclass(frozen=True)
class Patients:
    """Images (n, s, s) uint8 of one or more splits, with the ``rows`` and the ``source`` of each patient.

    ``several``: patients with at least two images whose source has at least one other patient.
    """

    images: Tensor
    rows: Mapping[str, Sequence[int]]
    source: Mapping[str, str]
    several: tuple[str, ...]
    sha256: str

    @classmethod
    def load(cls, manifest: Manifest, splits: Sequence[str], size: int, cache: Path, *, progress: bool) -> Patients:
        """Read (or take from the cache) the frontals.

        Raises:
            DataError: no patient has two frontal images.
        """
        values: list[Tensor] = []
        rows: dict[str, list[int]] = {}
        source: dict[str, str] = {}
        digest, start = hashlib.sha256(), 0
        for split in splits:
            studies = manifest.studies(split)
            if not any(VIEW in study.images for study in studies):
                continue
            prepared = prepare_images(manifest, split, TransformConfig(size=size), cache, progress=progress)
            for number, study in enumerate(studies):
                if own := prepared.rows(number, study, VIEW):
                    rows.setdefault(study.subject, []).extend(start + row for row in own)
                    source[study.subject] = study.source
            values.append(prepared.values[:])
            start += len(prepared.values)
            digest.update(prepared.sha256.encode())
        of_source: dict[str, int] = {}
        for patient in rows:
            of_source[source[patient]] = of_source.get(source[patient], 0) + 1
        several = sorted(p for p, images in rows.items() if len(images) > 1 and of_source[source[p]] > 1)
        if not several:
            raise DataError(
                f"no patient of split {' or '.join(splits)} has two {VIEW} images: re-identification needs data with "
                "several images per patient, such as ChestX-ray14"
            )
        digest.update(json.dumps([rows, source], sort_keys=True).encode())
        return cls(torch.cat(values), rows, source, tuple(several), digest.hexdigest())

    def pair(self, patient: str, same: bool, rng: np.random.Generator) -> tuple[int, int]:
        """Rows of two images: both of ``patient``, or one of ``patient`` and one of another patient of that source."""
        rows = self.rows[patient]
        if same:
            first, second = rng.choice(len(rows), 2, replace=False)
            return rows[int(first)], rows[int(second)]
        others = self._others[self.source[patient]]
        other = patient
        while other == patient:
            other = others[int(rng.integers(len(others)))]
        other_rows = self.rows[other]
        return rows[int(rng.integers(len(rows)))], other_rows[int(rng.integers(len(other_rows)))]

    @cached_property
    def _others(self) -> dict[str, list[str]]:
        by_source: dict[str, list[str]] = {}
        for patient in sorted(self.rows):
            by_source.setdefault(self.source[patient], []).append(patient)
        return by_source

    def judged(self, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[tuple[str, str]]]:
        """Pairs (k, 2) of rows for the evaluation, whether each is of one patient (k,), and the patients of each."""
        rng = np.random.default_rng(mix(seed, "judged"))
        owner = {row: patient for patient, images in self.rows.items() for row in images}
        rows: list[tuple[int, int]] = []
        for patient in self.several:
            images = self.rows[patient]
            pairs = [(a, b) for i, a in enumerate(images) for b in images[i + 1 :]]
            rows += [pairs[int(i)] for i in rng.permutation(len(pairs))[:PAIRS_A_PATIENT]]
        positives = len(rows)
        for i in range(positives * NEGATIVES):
            rows.append(self.pair(owner[rows[i % positives][0]], False, rng))
        same = np.arange(len(rows)) < positives
        return np.array(rows, dtype=np.int64), same, [(owner[a], owner[b]) for a, b in rows]


class ReidStage(Stage):
    """Binary cross-entropy on balanced pairs."""

    name = "reid"

    def __init__(
        self, preset: ReidPreset, patients: Patients, held_out: Patients, seed: int, init: Path | None = None
    ) -> None:
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

    def _judged(self, module: nn.Module) -> tuple[Array, NDArray[np.bool_], list[tuple[str, str]]]:
        """Logits (k,) of the held-out pairs; each image is encoded once."""
        network = cast(SiameseNetwork, module)
        device = network.fc_end.weight.device
        pairs, same, whose = self.held_out.judged(self.seed)
        rows, places = np.unique(pairs, return_inverse=True)
        x = self.held_out.images[rows].unsqueeze(1).float() / 255
        features = torch.cat([network.embed(to_input(part.to(device), self.network)) for part in x.split(64)])
        first, second = (features[places.reshape(pairs.shape)[:, side]] for side in (0, 1))
        logits = network.fc_end((first - second).abs())[:, 0]
        return logits.double().cpu().numpy(), same, whose

    def finish(self, module: nn.Module, root: Path) -> None:
        logits, same, whose = self._judged(module)
        auc = pair_auc(logits, same, whose, seed=self.seed)
        record = {
            "auc": auc.as_dict(),
            "n_is": "held-out patients with several images",
            "pairs": {"of one patient": int(same.sum()), "of two": int((~same).sum())},
            "training": {"patients with several images": len(self.patients.several), "all": len(self.patients.rows)},
            "network": self.network.model_dump(),
            "train": self.config.model_dump(),
            "seed": self.seed,
        }
        save_reid(root / WEIGHTS_NAME, cast(SiameseNetwork, module), self.network)
        (root / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        log.info("reid: AUC %s on %d held-out patients", auc, auc.n)


def pair_auc(
    scores: Array, same: NDArray[np.bool_], whose: Sequence[tuple[str, str]], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Area under the ROC curve for pairs of one patient against pairs of two.

    The bootstrap interval resamples patients, not pairs: a pair is weighted by how often its patient was drawn, or by
    the product for two patients.

    Args:
        scores: (k,) higher for pairs of one patient.
        same: (k,) True for pairs of one patient.
        whose: the patients of each pair.

    Returns:
        The area, 0 to 1, chance 0.5; ``n`` is the number of patients with pairs of their own.
    """
    from scipy.stats import rankdata

    patients = {name: i for i, name in enumerate(sorted({name for pair in whose for name in pair}))}
    first, second = (np.array([patients[pair[side]] for pair in whose]) for side in (0, 1))
    order = np.asarray(rankdata(scores, "dense"), dtype=np.int64) - 1

    def area(weights: Array) -> float:
        up = np.bincount(order[same], weights[same], order.max() + 1)
        down = np.bincount(order[~same], weights[~same], order.max() + 1)
        wins = (up * (np.cumsum(down) - down / 2)).sum()
        total = up.sum() * down.sum()
        return float(wins / total) if total else float("nan")

    rng = np.random.default_rng([seed, 1])
    areas = np.empty(draws)
    for draw in range(draws):
        counts = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients))).astype(np.float64)
        areas[draw] = area(np.where(same, counts[first], counts[first] * counts[second]))
    return Sampled(area(np.ones(len(scores))), areas, len(np.unique(first[same]))).estimate()


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
    return train(ReidStage(chosen, patients, held_out, seed, init), root, options)
