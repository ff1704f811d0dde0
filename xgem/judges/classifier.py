"""An independent judge of images: a small residual CNN, trained on real training images only.

It gives label scores (for AUC and for the agreement of generated with real images) and a named feature space
(for Frechet distances). In training it never sees a generated image, nor an image of the evaluated split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xgem.data.augment import augmented, to_input
from xgem.judges.fit import fit, label_loss, train_or_load
from xgem.judges.networks import SmallResNet, batches
from xgem.judges.settings import JudgeConfig
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Array
from xgem.types import InputError
from xgem.utils.hashing import array_hash, module_hash

VERSION: Final = 2


def learnable(labels: Array) -> list[int]:
    """The columns of (n, classes) labels that have both positives and negatives."""
    return [k for k, column in enumerate(labels.T) if {0.0, 1.0} <= set(column)]


@dataclass(frozen=True)
class ClassifierConfig(JudgeConfig):
    """Settings of the judge of findings."""

    dropout: float = 0.2


class Classifier:
    """A trained judge. ``hash`` identifies its weights, ``classes`` names its outputs."""

    def __init__(
        self, network: nn.Module, classes: Sequence[str], config: ClassifierConfig, device: torch.device
    ) -> None:
        self._network = network.to(device).eval()
        self.classes = tuple(classes)
        self.config = config
        self.device = device
        self.hash = module_hash(network)[:16]

    @property
    def state(self) -> dict[str, Tensor]:
        """The network's weights."""
        return {name: value.detach().cpu() for name, value in self._network.state_dict().items()}

    def logits(self, images: NDArray[np.uint8], batch_size: int = 128) -> Array:
        """(n, s, s) uint8 -> (n, classes) logits."""
        return self._run(images, batch_size)[1]

    def features(self, images: NDArray[np.uint8], batch_size: int = 128) -> Array:
        """(n, s, s) uint8 -> (n, d) features of the penultimate layer."""
        return self._run(images, batch_size)[0]

    @torch.inference_mode()
    def _run(self, images: NDArray[np.uint8], batch_size: int) -> tuple[Array, Array]:
        features: list[Tensor] = []
        logits: list[Tensor] = []
        network: Any = self._network
        for x in batches(images, self.config.size, self.device, batch_size):
            vectors = network.features(x)  # (b, d)
            features.append(vectors.cpu())
            logits.append(network.head(vectors).cpu())
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
    """Train the judge, or load it from ``folder`` if it was trained there on the same data with the same settings.

    Args:
        images: (n, s, s) uint8, real training images of one view.
        labels: (n, classes) of 1, 0, NaN (unknown: no loss).
        folder: cache, keyed by a hash of images, labels and settings; an interrupted training resumes after its
            last complete epoch with the same result as an uninterrupted one. None keeps nothing.

    Raises:
        InputError: the shapes do not match, or no class has both positives and negatives.
    """
    config = config or ClassifierConfig()
    if images.ndim != 3 or labels.shape != (len(images), len(classes)):
        raise InputError(f"images {images.shape} and labels {labels.shape}: expected (n, s, s) and (n, {len(classes)})")
    if not learnable(labels):
        raise InputError("the training images' labels have no class with both positives and negatives")
    place = torch.device(device)
    # Initial weights that depend on the seed alone
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = SmallResNet(len(classes), config.width, config.dropout).to(place)
    data, truth = torch.from_numpy(images), torch.from_numpy(labels).float()

    def loss(rows: Tensor) -> Tensor:
        logits = network(augmented(to_input(data[rows].to(place), config.size))).float()  # (b, classes)
        return label_loss(logits, truth[rows].to(place))

    def train(partial: Path | None) -> None:
        fit(network, loss, len(data), config.stage, seed=config.seed, device=place, name="classifier", folder=partial)

    # What the weights depend on
    key: dict[str, Any] = {
        "version": VERSION,
        "config": asdict(config),
        "classes": list(classes),
        "data": [array_hash(images), array_hash(labels)],
    }
    train_or_load(network, train, folder, "classifier", key)
    return Classifier(network, classes, config, place)


def train_findings(
    images: NDArray[np.uint8],
    labels: Array,
    *,
    config: ClassifierConfig | None = None,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """The judge of findings: :func:`train_classifier` on the CheXpert classes that can be learned.

    Args:
        labels: (n, 14) of 1, 0, NaN (unknown: no loss), columns as ``CHEXPERT_CLASSES``. A class without both
            positives and negatives is left out, and is not among the judge's ``classes``.

    Raises:
        InputError: the shapes do not match, or no class has both positives and negatives.
    """
    if labels.shape != (len(images), len(CHEXPERT_CLASSES)):
        raise InputError(f"labels {labels.shape}: expected ({len(images)}, {len(CHEXPERT_CLASSES)})")
    kept = learnable(labels)
    names = [CHEXPERT_CLASSES[k] for k in kept]
    return train_classifier(images, labels[:, kept], names, config=config, folder=folder, device=device)


def columns_of(judge: Classifier) -> list[int]:
    """The positions of a judge's classes in ``CHEXPERT_CLASSES``."""
    return [CHEXPERT_CLASSES.index(name) for name in judge.classes]
