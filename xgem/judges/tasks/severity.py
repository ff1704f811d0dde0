"""A severity score of an image: regression (ChexGen on RALO)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.data.augment import augmented
from xgem.data.sets import EvalSet, Images
from xgem.judges.networks import batches, image_network
from xgem.judges.settings import UtilitySettings
from xgem.judges.tasks.data import Data, Targets
from xgem.judges.tasks.task import Predictions, with_targets
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.classification import Measures
from xgem.metrics.correlation import correlation
from xgem.types import InputError


class _Scaled(nn.Module):
    """A network whose one number is in units of the training scores' mean and spread."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).float()[:, 0] * self.std + self.mean


class Severity:
    """Squared error of the score, in whatever unit the sets state it (Brixia: 0 to 18)."""

    headline = "MAE"
    per_case = "absolute error"
    lower_is_better = frozenset({"MAE", "MSE", "absolute error"})
    autocast = True
    classes: tuple[str, ...] = ("severity",)

    def __init__(self, settings: UtilitySettings) -> None:
        if settings.sampling == "balanced":
            raise InputError("severity has no classes to balance; use uniform sampling")
        self.settings = settings

    def usable(self, items: EvalSet) -> EvalSet:
        return with_targets(items, [item.severity is not None for item in items.items], "a severity")

    def targets(self, items: EvalSet) -> Targets:
        scores = [math.nan if item.severity is None else item.severity for item in items.items]
        return {"severity": np.array(scores, dtype=np.float32)}

    def presence(self, targets: Targets) -> NDArray[np.bool_]:
        return np.zeros((len(targets["severity"]), 1), dtype=bool)

    def network(self) -> nn.Module:
        return _Scaled(image_network(self.settings, 1))

    def prepare(self, network: nn.Module, targets: Targets) -> None:
        """The output's mean and spread are those of the training scores."""
        assert isinstance(network, _Scaled)
        network.mean.fill_(float(targets["severity"].mean()))
        network.std.fill_(max(float(targets["severity"].std()), 1e-3))

    def loss(self, network: nn.Module, x: Tensor, targets: dict[str, Tensor]) -> Tensor:
        assert isinstance(network, _Scaled)
        error = network(augmented(x) if self.settings.augment else x) - targets["severity"]
        return F.mse_loss(error / network.std, torch.zeros_like(error))

    @torch.inference_mode()
    def predict(self, network: nn.Module, images: Images, device: torch.device) -> Predictions:
        """``severity`` (n,)."""
        found = [network(x).cpu() for x in batches(images, self.settings.size, device)]
        return {"severity": torch.cat(found).numpy()}

    def measures(self, predictions: Predictions, test: Data, bootstrap: Bootstrap) -> Measures:
        found, truth = predictions["severity"].astype(np.float64), test.targets["severity"].astype(np.float64)
        return {
            ("MAE", ""): bootstrap.mean(np.abs(found - truth)),
            ("MSE", ""): bootstrap.mean((found - truth) ** 2),
            ("Pearson r", ""): correlation(found, truth, bootstrap),
        }

    def cases(self, predictions: Predictions, test: Data) -> Array:
        return np.abs(predictions["severity"].astype(np.float64) - test.targets["severity"])

    def missing(self, test: Data) -> dict[tuple[str, str], str]:
        constant = np.ptp(test.targets["severity"]) == 0
        return {("Pearson r", ""): "all test images have one severity"} if constant else {}
