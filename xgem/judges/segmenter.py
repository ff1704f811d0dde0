"""An independent judge of shapes: a small U-Net that finds structures, trained on real training images alone.

Of a generated image it says where the lungs and the heart are, to be compared with the mask that was asked for. Its
weights start at random, and it sees no generated image in training, nor an image of the evaluated split.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.data.augment import small_exposures, small_moves, standardised, to_input
from xgem.data.cache import ArrayCache
from xgem.data.outlines import Outlines
from xgem.judges.fit import one_cycle
from xgem.judges.networks import DEPTH, small_unet
from xgem.types import InputError
from xgem.utils.hashing import array_hash, module_hash

logger = logging.getLogger(__name__)


VERSION: Final = 1


UNKNOWN: Final = -1
"""The target's value where a study has no mask of a structure: no loss."""


@dataclass(frozen=True)
class SegmenterConfig:
    """Settings of the judge. ``size``: side in pixels at which it looks, ``width``: channels of the first stage."""

    size: int = 128
    width: int = 24
    epochs: int = 40
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0


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
        found: list[Tensor] = []
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(np.array(images[start : start + batch_size])).to(self.device)
            logits = self._network(standardised(to_input(x, self.config.size)))
            found.append((F.interpolate(logits, size=x.shape[1:], mode="bilinear") > 0).cpu())
        return torch.cat(found).numpy()


def train_segmenter(
    images: NDArray[np.uint8],
    outlines: Outlines,
    *,
    config: SegmenterConfig | None = None,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """Train the judge, or take it from ``cache`` where the same data and settings have trained it before.

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
    place = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = small_unet(len(outlines.structures), config.width)

    def fitted() -> Mapping[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            _fit(network.to(place), images, outlines, config, place)
        return network.state_dict()

    if cache is None:
        fitted()
    else:
        key: dict[str, Any] = {
            "version": VERSION,
            "config": asdict(config),
            "structures": list(outlines.structures),
            "data": [array_hash(one) for one in (images, outlines.masks, outlines.known)],
        }
        network.load_state_dict(ArrayCache(cache).get_or_make("segmenter", key, fitted))
    return Segmenter(network, outlines.structures, config, place)


def _fit(
    network: nn.Module,
    images: NDArray[np.uint8],
    outlines: Outlines,
    config: SegmenterConfig,
    device: torch.device,
) -> None:
    from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

    overlap = DiceLoss("multilabel", ignore_index=UNKNOWN)
    likelihood = SoftBCEWithLogitsLoss(ignore_index=UNKNOWN)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    data = to_input(torch.from_numpy(images), config.size)
    masks = F.interpolate(torch.from_numpy(outlines.masks).float(), size=data.shape[-2:], mode="area")
    known = torch.from_numpy(outlines.known)[:, :, None, None]
    count = len(data) // config.batch_size
    network.train()
    for epoch in range(config.epochs):
        order = torch.randperm(len(data))
        total = 0.0
        for step in range(count):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * one_cycle((epoch * count + step) / (config.epochs * count))
            x = data[rows].to(device)
            grid = small_moves(x)
            x = small_exposures(F.grid_sample(x, grid, padding_mode="border", align_corners=False))
            moved = F.grid_sample(masks[rows].to(device), grid, align_corners=False).round()
            target = torch.where(known[rows].to(device), moved, UNKNOWN)
            logits = network(standardised(x))
            loss = overlap(logits, target) + likelihood(logits, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        logger.info("segmenter: epoch %d of %d, loss %.4f", epoch + 1, config.epochs, total / count)
    network.eval()
