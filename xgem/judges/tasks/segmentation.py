"""Masks of an image: segmentation of structures and findings (ChexGen on SIIM-ACR, VinDr-RibCXR)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xgem.configs.components import TransformConfig
from xgem.data.augment import augmented_with_masks, standardised
from xgem.data.outlines import Outlines
from xgem.data.sets import EvalSet, Images
from xgem.data.study import Study, read_study
from xgem.judges.networks import batches, load_weights, small_unet
from xgem.judges.segmenter import UNKNOWN
from xgem.judges.settings import UtilitySettings
from xgem.judges.tasks.data import Data, Targets
from xgem.judges.tasks.task import OfStudies, Predictions
from xgem.labels.spatial import STRUCTURES
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.classification import Measures, known_mean
from xgem.types import InputError, NotComputed


class Segmentation(OfStudies[Mapping[str, NDArray[np.bool_]]]):
    """Dice loss and binary cross-entropy of every structure that an image is annotated with.

    Args:
        structures: names of masks: :data:`xgem.labels.spatial.STRUCTURES` or any others of the manifest.
        studies: where the masks are (:func:`xgem.judges.tasks.data.studies_of`).
    """

    what = "mask"
    headline = "Dice macro"
    per_case = "Dice by image"
    lower_is_better: frozenset[str] = frozenset()
    autocast = True

    def __init__(self, settings: UtilitySettings, structures: Sequence[str], studies: Mapping[str, Study]) -> None:
        if not structures:
            raise InputError(f"segmentation of no structure; expected names such as {', '.join(STRUCTURES)}")
        if settings.size % 32:
            raise InputError(f"segmentation at {settings.size} pixels; expected a multiple of 32")
        super().__init__(settings, structures, studies)

    def names(self, study: Study) -> Iterable[str]:
        return study.masks

    def targets(self, items: EvalSet) -> Targets:
        """``masks`` (n, structures, s, s) and ``known`` (n, structures), bool."""
        outlines = Outlines.stacked(self.annotations(items), self.classes, self.settings.size)
        known = np.ones_like(outlines.known) if self.settings.absent == "empty" else outlines.known
        return {"masks": outlines.masks, "known": known}

    def read(self, study: Study) -> Mapping[str, NDArray[np.bool_]]:
        wanted = {name: files for name, files in study.masks.items() if name in self.classes}
        only = Study(study.id, study.subject, study.split, study.images, masks=wanted)
        return read_study(only, TransformConfig(size=self.settings.size)).masks

    def presence(self, targets: Targets) -> NDArray[np.bool_]:
        return np.asarray(targets["masks"].any(axis=(2, 3)))

    def network(self) -> nn.Module:
        settings = self.settings
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            raise NotComputed("the package segmentation-models-pytorch is not installed") from error
        if settings.network == "small":
            network = small_unet(len(self.classes), settings.width)
        elif settings.network == "unet-resnet34":
            network = smp.Unet("resnet34", encoder_weights=None, in_channels=1, classes=len(self.classes))
        else:
            raise InputError(f"network {settings.network!r}; expected small or unet-resnet34")
        if settings.weights:
            load_weights(network, settings.weights, head="segmentation_head")
        return network

    def loss(self, network: nn.Module, x: Tensor, targets: dict[str, Tensor]) -> Tensor:
        from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

        masks = targets["masks"].float()
        if self.settings.augment:
            x, masks = augmented_with_masks(x, masks)
        truth = torch.where(targets["known"][:, :, None, None], masks, float(UNKNOWN))
        logits = network(standardised(x)).float()
        overlap = DiceLoss("multilabel", ignore_index=UNKNOWN)(logits, truth)
        return overlap + SoftBCEWithLogitsLoss(ignore_index=UNKNOWN)(logits, truth)

    @torch.inference_mode()
    def predict(self, network: nn.Module, images: Images, device: torch.device) -> Predictions:
        """``masks``: (n, structures, s * s / 8), bits packed."""
        found = [
            (network(standardised(x)).sigmoid() >= self.settings.threshold).flatten(2).cpu().numpy()
            for x in batches(images, self.settings.size, device)
        ]
        return {"masks": np.packbits(np.concatenate(found), axis=2)}

    def dice(self, predictions: Predictions, test: Data) -> tuple[Array, NDArray[np.bool_]]:
        """Dice (n, structures), and where a structure is there.

        NaN where it is not annotated; of an image annotated as free of it, 1 if nothing was found and 0 otherwise.
        """
        truth, known = test.targets["masks"].reshape(*test.targets["known"].shape, -1), test.targets["known"]
        found = np.unpackbits(predictions["masks"].astype(np.uint8), axis=2, count=truth.shape[2]).astype(bool)
        shared = (found & truth).sum(axis=2)
        total = found.sum(axis=2) + truth.sum(axis=2)
        dice = np.divide(2.0 * shared, total, out=np.ones(total.shape), where=total > 0)
        return np.where(known, dice, np.nan), np.asarray(truth.any(axis=2))

    def measures(self, predictions: Predictions, test: Data, bootstrap: Bootstrap) -> Measures:
        dice, there = self.dice(predictions, test)
        found: Measures = {("Dice macro", ""): bootstrap.mean(known_mean(dice))}
        for name, rows in (("positive Dice", there), ("negative Dice", ~there)):
            kept = np.where(rows, dice, np.nan)
            if np.isfinite(kept).any():
                found[name, ""] = bootstrap.mean(known_mean(kept))
            for k, structure in enumerate(self.classes):
                if np.isfinite(kept[:, k]).any():
                    found[name, structure] = bootstrap.mean(kept[:, k])
        return found

    def cases(self, predictions: Predictions, test: Data) -> Array:
        return known_mean(self.dice(predictions, test)[0])

    def missing(self, test: Data) -> dict[tuple[str, str], str]:
        there, known = self.presence(test.targets), test.targets["known"]
        found: dict[tuple[str, str], str] = {}
        for k, structure in enumerate(self.classes):
            if not there[:, k].any():
                found["positive Dice", structure] = "no test image shows it"
            if not (known[:, k] & ~there[:, k]).any():
                found["negative Dice", structure] = "no test image is annotated as free of it"
        return found
