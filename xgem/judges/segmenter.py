"""An independent judge of anatomy: a small U-Net that segments structures, trained on real training images only.

It segments the lungs and the heart in a generated image, for comparison with the requested mask. Its weights are
initialised at random; in training it sees neither generated images nor images of the evaluated split.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.data.augment import augmented_with_masks, standardised, to_input
from xgem.data.outlines import Outlines
from xgem.judges.fit import fit, train_or_load
from xgem.judges.networks import DEPTH, batches, small_unet
from xgem.judges.settings import JudgeConfig
from xgem.types import InputError
from xgem.utils.hashing import array_hash, module_hash

VERSION: Final = 2


UNKNOWN: Final = -1
"""Target value where a study has no mask of a structure: no loss."""


@dataclass(frozen=True)
class SegmenterConfig(JudgeConfig):
    """Settings of the segmenter."""

    epochs: int = 40
    batch_size: int = 8
    weight_decay: float = 0.01


class Segmenter:
    """A trained segmenter. ``hash`` identifies its weights, ``structures`` names its outputs."""

    def __init__(
        self, network: nn.Module, structures: tuple[str, ...], config: SegmenterConfig, device: torch.device
    ) -> None:
        self._network = network.to(device).eval()
        self.structures = structures
        self.config = config
        self.device = device
        self.hash = module_hash(network)[:16]

    @torch.inference_mode()
    def masks(self, images: NDArray[np.uint8], batch_size: int = 64) -> NDArray[np.bool_]:
        """(n, s, s) uint8 -> (n, structures, s, s) bool: pixels with a probability above 0.5."""
        masks: list[Tensor] = []
        for x in batches(images, self.config.size, self.device, batch_size):
            logits = self._network(standardised(x))  # (b, structures, t, t)
            masks.append((F.interpolate(logits, size=images.shape[1:], mode="bilinear") > 0).cpu())
        return torch.cat(masks).numpy()


def train_segmenter(
    images: NDArray[np.uint8],
    outlines: Outlines,
    *,
    config: SegmenterConfig | None = None,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """Train the segmenter, or load it from ``cache`` if it was trained on the same data with the same settings.

    With a cache, an interrupted training resumes after its last complete epoch, with the same result.

    Args:
        images: (n, s, s) uint8, real training images.
        outlines: their masks, on the same grid; a structure without a mask in a study has no loss there.

    Raises:
        InputError: the shapes do not match, or the package segmentation-models-pytorch is missing.
    """
    config = config or SegmenterConfig()
    n, side = len(images), min(images.shape[-1], config.size)
    if outlines.masks.shape != (n, len(outlines.structures), *images.shape[1:]):
        raise InputError(f"masks {outlines.masks.shape} of images {images.shape}: expected (n, k, s, s), (n, s, s)")
    if side % 2**DEPTH:
        raise InputError(f"images of {side} x {side}: expected sides divisible by {2**DEPTH}")
    if n < config.batch_size:
        raise InputError(f"{n} images: expected at least one batch of {config.batch_size}")
    from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

    # Initial weights that depend on the seed alone
    place = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = small_unet(len(outlines.structures), config.width).to(place)
    # Dice and binary cross-entropy on the masks at the network's size
    dice_loss = DiceLoss("multilabel", ignore_index=UNKNOWN)
    cross_entropy = SoftBCEWithLogitsLoss(ignore_index=UNKNOWN)
    data = to_input(torch.from_numpy(images), config.size)  # (n, 1, s, s)
    masks = F.interpolate(torch.from_numpy(outlines.masks).float(), size=data.shape[-2:], mode="area")  # (n, k, s, s)
    known = torch.from_numpy(outlines.known)[:, :, None, None]  # (n, k, 1, 1)

    def loss(rows: Tensor) -> Tensor:
        x, moved_masks = augmented_with_masks(data[rows].to(place), masks[rows].to(place))
        target = torch.where(known[rows].to(place), moved_masks, UNKNOWN)
        logits = network(standardised(x)).float()
        return dice_loss(logits, target) + cross_entropy(logits, target)

    def train(partial: Path | None) -> None:
        fit(network, loss, n, config.stage, seed=config.seed, device=place, name="segmenter", folder=partial)

    # What the weights depend on
    key: dict[str, Any] = {
        "version": VERSION,
        "config": asdict(config),
        "structures": list(outlines.structures),
        "data": [array_hash(array) for array in (images, outlines.masks, outlines.known)],
    }
    train_or_load(network, train, cache, "segmenter", key)
    return Segmenter(network, outlines.structures, config, place)
