"""An independent judge of shapes: a small U-Net that finds structures, trained on real training images alone.

Of a generated image it says where the lungs and the heart are, to be compared with the requested mask. Its
weights start at random, and it sees no generated image in training, nor an image of the evaluated split.
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
"""The target's value where a study has no mask of a structure: no loss."""


@dataclass(frozen=True)
class SegmenterConfig(JudgeConfig):
    """Settings of the judge of shapes."""

    epochs: int = 40
    batch_size: int = 8
    weight_decay: float = 0.01


class Segmenter:
    """A trained judge. ``hash`` stands for its weights, ``structures`` names its outputs."""

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
        """(n, s, s) uint8 -> (n, structures, s, s): where each structure is more likely than not."""
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
    """Train the judge, or take it from ``cache`` where the same data and settings have trained it before.

    An interrupted training with a cache resumes after its last whole epoch and ends as the unbroken one.

    Args:
        images: (n, s, s) uint8, real training images.
        outlines: their masks, on the same grid; a structure that a study lacks has no loss there.

    Raises:
        InputError: shapes that do not fit, or the package segmentation-models-pytorch is missing.
    """
    config = config or SegmenterConfig()
    n, side = len(images), min(images.shape[-1], config.size)
    if outlines.masks.shape != (n, len(outlines.structures), *images.shape[1:]):
        raise InputError(f"masks {outlines.masks.shape} of images {images.shape}: expected (n, k, s, s), (n, s, s)")
    if side % 2**DEPTH:
        raise InputError(f"images of {side} x {side}: expected sides divisible by {2**DEPTH}")
    if n < config.batch_size:
        raise InputError(f"{n} images: expected at least a batch of {config.batch_size}")
    from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

    place = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = small_unet(len(outlines.structures), config.width).to(place)
    overlap = DiceLoss("multilabel", ignore_index=UNKNOWN)
    likelihood = SoftBCEWithLogitsLoss(ignore_index=UNKNOWN)
    data = to_input(torch.from_numpy(images), config.size)  # (n, 1, s, s)
    masks = F.interpolate(torch.from_numpy(outlines.masks).float(), size=data.shape[-2:], mode="area")  # (n, k, s, s)
    known = torch.from_numpy(outlines.known)[:, :, None, None]

    def loss(rows: Tensor) -> Tensor:
        x, moved = augmented_with_masks(data[rows].to(place), masks[rows].to(place))
        target = torch.where(known[rows].to(place), moved, UNKNOWN)
        logits = network(standardised(x)).float()
        return overlap(logits, target) + likelihood(logits, target)

    def train(partial: Path | None) -> None:
        fit(network, loss, n, config.stage, seed=config.seed, device=place, name="segmenter", folder=partial)

    key: dict[str, Any] = {
        "version": VERSION,
        "config": asdict(config),
        "structures": list(outlines.structures),
        "data": [array_hash(array) for array in (images, outlines.masks, outlines.known)],
    }
    train_or_load(network, train, cache, "segmenter", key)
    return Segmenter(network, outlines.structures, config, place)
