"""Boxes of an image: detection of findings (ChexGen on ChestX-Det and Object-CXR)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xgem.configs.components import TransformConfig
from xgem.data.augment import small_exposures
from xgem.data.sets import EvalSet, Images
from xgem.data.study import Study, read_study
from xgem.judges.networks import SmallResNet, batches, load_weights
from xgem.judges.settings import UtilitySettings
from xgem.judges.tasks.data import Data, Targets
from xgem.judges.tasks.task import OfStudies, Predictions
from xgem.labels.spatial import BOX_CLASSES
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.classification import Measures, known_mean
from xgem.metrics.detection import Matches, image_f1, match, precision_and_recall
from xgem.types import InputError


class Detection(OfStudies[NDArray[np.float32]]):
    """Faster R-CNN (Ren et al. 2015) of the given classes of boxes.

    Args:
        boxes: classes: :data:`xgem.labels.spatial.BOX_CLASSES` or any others of the manifest.
        studies: where the boxes are (:func:`xgem.judges.tasks.data.studies_of`).
    """

    what = "box"
    headline = "mAP50"
    per_case = "F1 by image"
    lower_is_better: frozenset[str] = frozenset()
    autocast = False

    def __init__(self, settings: UtilitySettings, boxes: Sequence[str], studies: Mapping[str, Study]) -> None:
        if not boxes:
            raise InputError(f"detection of no class; expected names such as {', '.join(BOX_CLASSES)}")
        super().__init__(settings, boxes, studies)

    def names(self, study: Study) -> Iterable[str]:
        return (box.label for box in study.boxes)

    def targets(self, items: EvalSet) -> Targets:
        """``boxes`` (n, k, 5): label, x1, y1, x2, y2 in pixels of the grid; label -1 fills up."""
        own = self.annotations(items)
        most = max((len(one) for one in own), default=0)
        boxes = np.full((len(own), most, 5), -1, dtype=np.float32)
        for row, one in zip(boxes, own, strict=True):
            row[: len(one)] = one
        return {"boxes": boxes}

    def read(self, study: Study) -> NDArray[np.float32]:
        size = self.settings.size
        only = Study(study.id, study.subject, study.split, study.images, boxes=study.boxes)
        found = [
            (self.classes.index(box.label), box.x, box.y, box.x + box.w, box.y + box.h)
            for box in read_study(only, TransformConfig(size=size)).boxes
            if box.label in self.classes
        ]
        boxes = np.array(found, dtype=np.float32).reshape(-1, 5)
        boxes[:, 1:] = np.clip(boxes[:, 1:] * size, 0, size)
        return boxes

    def presence(self, targets: Targets) -> NDArray[np.bool_]:
        labels = targets["boxes"][:, :, 0]
        return np.stack([(labels == k).any(axis=1) for k in range(len(self.classes))], axis=1)

    def network(self) -> nn.Module:
        settings = self.settings
        network = _small(settings, len(self.classes)) if settings.network == "small" else self._published()
        if settings.weights:
            load_weights(network, settings.weights, head="roi_heads.box_predictor")
        return network

    def _published(self) -> nn.Module:
        from torchvision.models.detection import fasterrcnn_resnet50_fpn

        if self.settings.network != "fasterrcnn_resnet50_fpn":
            raise InputError(f"network {self.settings.network!r}; expected small or fasterrcnn_resnet50_fpn")
        return fasterrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=len(self.classes) + 1,
            min_size=self.settings.size,
            max_size=self.settings.size,
        )

    def _input(self, x: Tensor) -> list[Tensor]:
        x = (x + 1) / 2
        return list(x if self.settings.network == "small" else x.expand(-1, 3, -1, -1))

    def loss(self, network: nn.Module, x: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """The sum of Faster R-CNN's four losses; boxes stay where they are, so only the exposure is augmented."""
        boxes = [one[one[:, 0] >= 0] for one in targets["boxes"]]
        asked = [{"boxes": one[:, 1:], "labels": one[:, 0].long() + 1} for one in boxes]
        losses = network(self._input(small_exposures(x) if self.settings.augment else x), asked)
        return torch.stack(list(losses.values())).sum()

    @torch.inference_mode()
    def predict(self, network: nn.Module, images: Images, device: torch.device) -> Predictions:
        """``image``, ``label``, ``score`` (m,) and ``box`` (m, 4) in pixels of the grid."""
        found: list[dict[str, Any]] = []
        for x in batches(images, self.settings.size, device, 8):
            found += network(self._input(x))
        counts = [len(one["scores"]) for one in found]
        return {
            "image": np.repeat(np.arange(len(found)), counts),
            "label": torch.cat([one["labels"] for one in found]).cpu().numpy() - 1,
            "score": torch.cat([one["scores"] for one in found]).float().cpu().numpy(),
            "box": torch.cat([one["boxes"] for one in found]).float().cpu().numpy(),
        }

    def matches(self, predictions: Predictions, test: Data) -> Matches:
        """The detections matched with the test images' boxes."""
        return match(dict(predictions), test.targets["boxes"], len(self.classes), self.settings.size)

    def measures(self, predictions: Predictions, test: Data, bootstrap: Bootstrap) -> Measures:
        """mAP50 and mAR50 (ChexGen): means over the classes that the test set has boxes of."""
        matches = self.matches(predictions, test)
        tested = [k for k in range(len(self.classes)) if matches.boxes[:, k].any()]
        if not tested:
            return {}
        each = [precision_and_recall(matches, k, bootstrap.weights) for k in tested]
        found: Measures = {}
        for name, part in (("AP50", 0), ("AR50", 1)):
            values = np.stack([one[part] for one in each], axis=1)
            found[f"m{name}", ""] = bootstrap.sampled(known_mean(values))
            for column, k in enumerate(tested):
                found[name, self.classes[k]] = bootstrap.sampled(values[:, column])
        return found

    def cases(self, predictions: Predictions, test: Data) -> Array:
        return image_f1(self.matches(predictions, test), self.settings.threshold)

    def missing(self, test: Data) -> dict[tuple[str, str], str]:
        there = np.asarray(self.presence(test.targets).any(axis=0))
        return {
            ("AP50", name): "the test set has no box of it"
            for name, one in zip(self.classes, there, strict=True)
            if not one
        }


def _small(settings: UtilitySettings, classes: int) -> nn.Module:
    """Faster R-CNN on one map of features at an eighth of the image, the first two stages of a small ResNet."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    body: Any = SmallResNet(1, settings.width, 0.0).body[:8]
    body.out_channels = 2 * settings.width
    sizes = tuple(max(4, round(settings.size * share)) for share in (0.08, 0.16, 0.32, 0.6))
    return FasterRCNN(
        body,
        min_size=settings.size,
        max_size=settings.size,
        image_mean=[0.5],
        image_std=[0.25],
        rpn_anchor_generator=AnchorGenerator((sizes,), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=256,
        rpn_pre_nms_top_n_test=256,
        rpn_post_nms_top_n_train=64,
        rpn_post_nms_top_n_test=64,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=TwoMLPHead(body.out_channels * 25, 128),
        box_predictor=FastRCNNPredictor(128, classes + 1),
        box_batch_size_per_image=64,
    )
