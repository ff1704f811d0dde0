"""Findings of an image: multi-label classification (CheXGenBench, XGeM, ChexGen)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xgem.data.augment import augmented
from xgem.data.sets import EvalSet, Images
from xgem.judges.fit import label_loss
from xgem.judges.networks import batches, image_network
from xgem.judges.settings import UtilitySettings
from xgem.judges.tasks.data import Data, Targets
from xgem.judges.tasks.task import Predictions, with_targets
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.classification import Measures, brier, classification_measures, untestable


class Classification:
    """Binary cross-entropy over the classes that an image's labels state."""

    headline = "AUROC macro"
    per_case = "Brier score"
    lower_is_better = frozenset({"Brier score"})
    autocast = True

    def __init__(self, settings: UtilitySettings, classes: Sequence[str] = CHEXPERT_CLASSES) -> None:
        self.settings = settings
        self.classes = tuple(classes)

    def labels(self, items: EvalSet) -> Array:
        """(n, classes) of 1, 0, NaN (no say)."""
        stated = items.labels(self.classes)
        known = np.where(np.isnan(stated), 0.0, stated) if self.settings.unmentioned == "negative" else stated
        return np.where(known == -1, np.nan, known)

    def usable(self, items: EvalSet) -> EvalSet:
        labelled = [bool(item.labels) for item in items.items]
        known = np.asarray(np.isfinite(self.labels(items)).any(axis=1))
        return with_targets(items, [a and b for a, b in zip(labelled, known.tolist(), strict=True)], "labels")

    def targets(self, items: EvalSet) -> Targets:
        return {"labels": self.labels(items).astype(np.float32)}

    def presence(self, targets: Targets) -> NDArray[np.bool_]:
        return targets["labels"] == 1

    def network(self) -> nn.Module:
        return image_network(self.settings, len(self.classes))

    def prepare(self, network: nn.Module, targets: Targets) -> None:
        """Nothing follows from the targets."""

    def loss(self, network: nn.Module, x: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return label_loss(network(augmented(x) if self.settings.augment else x).float(), targets["labels"])

    @torch.inference_mode()
    def predict(self, network: nn.Module, images: Images, device: torch.device) -> Predictions:
        """``scores`` (n, classes), probabilities."""
        found = [network(x).float().sigmoid().cpu() for x in batches(images, self.settings.size, device)]
        return {"scores": torch.cat(found).numpy()}

    def measures(self, predictions: Predictions, test: Data, bootstrap: Bootstrap) -> Measures:
        scores, labels = predictions["scores"].astype(np.float64), test.targets["labels"].astype(np.float64)
        return classification_measures(scores, labels, self.classes, bootstrap, self.settings.threshold)

    def cases(self, predictions: Predictions, test: Data) -> Array:
        return brier(predictions["scores"].astype(np.float64), test.targets["labels"].astype(np.float64))

    def missing(self, test: Data) -> dict[tuple[str, str], str]:
        reasons = untestable(test.targets["labels"].astype(np.float64), self.classes)
        return {("AUROC", name): reason for name, reason in reasons.items()}
