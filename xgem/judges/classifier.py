"""An independent judge of images: a small residual CNN trained on real training images alone.

It gives label scores (for AUC and for the agreement of generated with real images) and a named feature space
(for Frechet distances). It never sees a generated image in training, nor an image of the evaluated split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.checkpoints import training as checkpoint
from xgem.data.augment import to_input
from xgem.judges.fit import _augment, one_cycle
from xgem.judges.networks import SmallResNet
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Array
from xgem.types import InputError

logger = logging.getLogger(__name__)


VERSION: Final = 1


def learnable(labels: Array) -> list[int]:
    """The columns of (n, classes) labels that hold both positives and negatives."""
    return [k for k, column in enumerate(labels.T) if {0.0, 1.0} <= set(column)]


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the judge. ``size``: side in pixels at which it looks, ``width``: channels of the first stage."""

    size: int = 128
    width: int = 24
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    seed: int = 0


class Classifier:
    """A trained judge. ``hash`` stands for its weights, ``classes`` names its outputs."""

    def __init__(
        self, network: nn.Module, classes: Sequence[str], config: ClassifierConfig, device: torch.device
    ) -> None:
        self._network = network.to(device).eval()
        self.classes = tuple(classes)
        self.config = config
        self.device = device
        self.hash = _weights_hash(network)

    def logits(self, images: NDArray[np.uint8], batch_size: int = 128) -> Array:
        """(n, s, s) uint8 -> (n, classes) logits."""
        return self._run(images, batch_size)[1]

    def features(self, images: NDArray[np.uint8], batch_size: int = 128) -> Array:
        """(n, s, s) uint8 -> (n, d) features of the last layer but one."""
        return self._run(images, batch_size)[0]

    @torch.inference_mode()
    def _run(self, images: NDArray[np.uint8], batch_size: int) -> tuple[Array, Array]:
        features: list[Tensor] = []
        logits: list[Tensor] = []
        network: Any = self._network
        for start in range(0, len(images), batch_size):
            x = to_input(
                torch.from_numpy(np.array(images[start : start + batch_size])).to(self.device), self.config.size
            )
            found = network.features(x)
            features.append(found.cpu())
            logits.append(network.head(found).cpu())
        return torch.cat(features).numpy().astype(np.float64), torch.cat(logits).numpy().astype(np.float64)


def train_classifier(
    images: NDArray[np.uint8],
    labels: Array,
    classes: Sequence[str],
    *,
    config: ClassifierConfig | None = None,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Train the judge, or take it from ``folder`` where the same data and settings have trained it before.

    Args:
        images: (n, s, s) uint8, real training images of one view.
        labels: (n, classes) of 1, 0, NaN (unknown: no loss).
        folder: cache, keyed by a hash of images, labels and settings; an interrupted training resumes after its
            last whole epoch and ends as the unbroken one. None keeps nothing.

    Raises:
        InputError: shapes that do not fit, or no class with both kinds of labels.
    """
    config = config or ClassifierConfig()
    if images.ndim != 3 or labels.shape != (len(images), len(classes)):
        raise InputError(f"images {images.shape} and labels {labels.shape}: expected (n, s, s) and (n, {len(classes)})")
    if not learnable(labels):
        raise InputError("the training images' labels hold no class with both positives and negatives")
    place = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = SmallResNet(len(classes), config.width, config.dropout)
    key = _key(images, labels, classes, config)
    final = folder / f"{key}.safetensors" if folder else None
    if final and final.is_file():
        from safetensors.torch import load_file

        network.load_state_dict(load_file(final))
        return Classifier(network, classes, config, place)
    with torch.random.fork_rng():
        _fit(network.to(place), images, labels, config, place, folder / f"{key}.partial" if folder else None)
    if final:
        from safetensors.torch import save_file

        temporary = final.with_suffix(".tmp")
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, temporary)
        temporary.replace(final)
        final.with_suffix(".json").write_text(
            json.dumps({"classes": list(classes), "config": asdict(config)}, indent=2)
        )
        shutil.rmtree(final.with_name(f"{key}.partial"), ignore_errors=True)
    return Classifier(network, classes, config, place)


def train_findings(
    images: NDArray[np.uint8],
    labels: Array,
    *,
    config: ClassifierConfig | None = None,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """The judge of findings: :func:`train_classifier` on those of CheXpert's classes that can be learned.

    Args:
        labels: (n, 14) of 1, 0, NaN (unknown: no loss), columns as ``CHEXPERT_CLASSES``. A class without both
            positives and negatives is left out, and is not among the judge's ``classes``.

    Raises:
        InputError: shapes that do not fit, or no class with both kinds of labels.
    """
    if labels.shape != (len(images), len(CHEXPERT_CLASSES)):
        raise InputError(f"labels {labels.shape}: expected ({len(images)}, {len(CHEXPERT_CLASSES)})")
    kept = learnable(labels)
    names = [CHEXPERT_CLASSES[k] for k in kept]
    return train_classifier(images, labels[:, kept], names, config=config, folder=folder, device=device)


def columns_of(judge: Classifier) -> list[int]:
    """Where a judge's classes stand among ``CHEXPERT_CLASSES``."""
    return [CHEXPERT_CLASSES.index(name) for name in judge.classes]


def _fit(
    network: nn.Module,
    images: NDArray[np.uint8],
    labels: Array,
    config: ClassifierConfig,
    device: torch.device,
    partial: Path | None,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    data, known = torch.from_numpy(images), torch.from_numpy(np.isfinite(labels).astype(np.float32))
    truth = torch.from_numpy(np.nan_to_num(labels).astype(np.float32))
    count = max(1, len(data) // config.batch_size)
    first = 0
    if partial and (found := checkpoint.latest(partial)):
        state, tensors = checkpoint.load(found, partial.name)
        checkpoint.load_weights(network, tensors["network"], found)
        checkpoint.load_optimizer(optimizer, tensors["optimizer"])
        first = state.step
        logger.info("classifier: resuming after epoch %d", first)
    network.train()
    for epoch in range(first, config.epochs):
        # Seeded by the epoch, so that a resumed training equals an unbroken one
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(data))
        total = 0.0
        for step in range(count):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * one_cycle((epoch * count + step) / (config.epochs * count))
            x = _augment(to_input(data[rows].to(device), config.size))
            # bfloat16 is ten times slower than float32 on processors that lack it, so only GPUs use it
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits = network(x).float()
            mask = known[rows].to(device)
            losses = F.binary_cross_entropy_with_logits(logits, truth[rows].to(device), reduction="none")
            loss = (losses * mask).sum() / mask.sum().clamp(min=1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        logger.info("classifier: epoch %d of %d, loss %.4f", epoch + 1, config.epochs, total / count)
        if partial:
            parts = {"network": network.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)}
            checkpoint.save(partial, checkpoint.TrainState(step=epoch + 1), partial.name, parts, keep=1)
    network.eval()


def _key(images: NDArray[np.uint8], labels: Array, classes: Sequence[str], config: ClassifierConfig) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, list(classes), asdict(config), images.shape]).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()[:24]


def _weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
