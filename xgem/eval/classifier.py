"""An independent judge of pictures: a small residual CNN trained on real training pictures alone.

It gives label scores (for AUC and for the agreement of generated with real pictures) and a named feature space
(for Frechet distances). It never sees a generated picture in training, nor a picture of the evaluated split.
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
from torchvision.models.resnet import BasicBlock

from xgem.eval.statistics import Array
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.train import checkpoint
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


class SmallResNet(nn.Module):
    """ResNet-18 (torchvision's blocks) of another width: ``width`` channels in the first stage, where it has 64."""

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        blocks: list[nn.Module] = [
            nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        channels = width
        for stage in range(4):
            planes = width * 2**stage
            for block in range(2):
                stride = 2 if stage and not block else 1
                skip = None
                if stride != 1 or channels != planes:
                    skip = nn.Sequential(
                        nn.Conv2d(channels, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
                    )
                blocks.append(BasicBlock(channels, planes, stride, skip))
                channels = planes
        self.body = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:
        """(b, 1, s, s) in [-1, 1] -> (b, 8 * width)."""
        return self.body(standardised(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x)))


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

    def logits(self, pictures: NDArray[np.uint8], batch_size: int = 128) -> Array:
        """(n, s, s) uint8 -> (n, classes) logits."""
        return self._run(pictures, batch_size)[1]

    def features(self, pictures: NDArray[np.uint8], batch_size: int = 128) -> Array:
        """(n, s, s) uint8 -> (n, d) features of the last layer but one."""
        return self._run(pictures, batch_size)[0]

    @torch.inference_mode()
    def _run(self, pictures: NDArray[np.uint8], batch_size: int) -> tuple[Array, Array]:
        features: list[Tensor] = []
        logits: list[Tensor] = []
        network: Any = self._network
        for start in range(0, len(pictures), batch_size):
            x = to_input(
                torch.from_numpy(np.array(pictures[start : start + batch_size])).to(self.device), self.config.size
            )
            found = network.features(x)
            features.append(found.cpu())
            logits.append(network.head(found).cpu())
        return torch.cat(features).numpy().astype(np.float64), torch.cat(logits).numpy().astype(np.float64)


def train_classifier(
    pictures: NDArray[np.uint8],
    labels: Array,
    classes: Sequence[str],
    *,
    config: ClassifierConfig | None = None,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Train the judge, or take it from ``folder`` where the same data and settings have trained it before.

    Args:
        pictures: (n, s, s) uint8, real training pictures of one view.
        labels: (n, classes) of 1, 0, NaN (unknown: no loss).
        folder: cache, keyed by a hash of pictures, labels and settings; an interrupted training resumes after its
            last whole epoch and ends as the unbroken one. None keeps nothing.

    Raises:
        InputError: shapes that do not fit, or no class with both kinds of labels.
    """
    config = config or ClassifierConfig()
    if pictures.ndim != 3 or labels.shape != (len(pictures), len(classes)):
        raise InputError(
            f"pictures {pictures.shape} and labels {labels.shape}: expected (n, s, s) and (n, {len(classes)})"
        )
    if not learnable(labels):
        raise InputError("the training pictures' labels hold no class with both positives and negatives")
    place = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = SmallResNet(len(classes), config.width, config.dropout)
    key = _key(pictures, labels, classes, config)
    final = folder / f"{key}.safetensors" if folder else None
    if final and final.is_file():
        from safetensors.torch import load_file

        network.load_state_dict(load_file(final))
        return Classifier(network, classes, config, place)
    with torch.random.fork_rng():
        _fit(network.to(place), pictures, labels, config, place, folder / f"{key}.partial" if folder else None)
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
    pictures: NDArray[np.uint8],
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
    if labels.shape != (len(pictures), len(CHEXPERT_CLASSES)):
        raise InputError(f"labels {labels.shape}: expected ({len(pictures)}, {len(CHEXPERT_CLASSES)})")
    kept = learnable(labels)
    names = [CHEXPERT_CLASSES[k] for k in kept]
    return train_classifier(pictures, labels[:, kept], names, config=config, folder=folder, device=device)


def columns_of(judge: Classifier) -> list[int]:
    """Where a judge's classes stand among ``CHEXPERT_CLASSES``."""
    return [CHEXPERT_CLASSES.index(name) for name in judge.classes]


def _fit(
    network: nn.Module,
    pictures: NDArray[np.uint8],
    labels: Array,
    config: ClassifierConfig,
    device: torch.device,
    partial: Path | None,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    data, known = torch.from_numpy(pictures), torch.from_numpy(np.isfinite(labels).astype(np.float32))
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


def one_cycle(progress: float) -> float:
    """One cycle: linear warm-up for a tenth, then a cosine to zero."""
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + float(np.cos(np.pi * (progress - 0.1) / 0.9)))


def to_input(pictures: Tensor, size: int) -> Tensor:
    """(n, s, s) of 0 to 255 -> (n, 1, t, t) in [-1, 1], t at most ``size``."""
    x = pictures.unsqueeze(1).float() / 127.5 - 1
    return x if x.shape[-1] <= size else F.interpolate(x, size=(size, size), mode="area")


def standardised(x: Tensor) -> Tensor:
    """(b, 1, s, s), each picture to mean 0 and variance 1: exposure is neither a finding nor a shape."""
    mean, std = x.mean(dim=(2, 3), keepdim=True), x.std(dim=(2, 3), keepdim=True)
    return (x - mean) / (std + 1e-3)


def _augment(x: Tensor) -> Tensor:
    grid = small_moves(x)
    return small_exposures(F.grid_sample(x, grid, padding_mode="border", align_corners=False))


def small_moves(x: Tensor) -> Tensor:
    """A sampling grid of small rotations, shifts and zooms for (b, 1, s, s).

    Never a mirror image: the heart is on the patient's left.
    """
    b = len(x)
    angle = (torch.rand(b) * 2 - 1) * 0.12
    zoom = 1 + (torch.rand(b) * 2 - 1) * 0.08
    shift = (torch.rand(b, 2) * 2 - 1) * 0.08
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)


def small_exposures(x: Tensor) -> Tensor:
    """(b, 1, s, s) in [-1, 1] with small changes of contrast (a random gamma)."""
    gamma = torch.exp((torch.rand(len(x), 1, 1, 1) * 2 - 1) * 0.25).to(x.device)
    return ((x + 1) / 2).clamp(1e-4, 1).pow(gamma) * 2 - 1


def _key(pictures: NDArray[np.uint8], labels: Array, classes: Sequence[str], config: ClassifierConfig) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, list(classes), asdict(config), pictures.shape]).encode())
    digest.update(np.ascontiguousarray(pictures).tobytes())
    digest.update(np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()[:24]


def _weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
