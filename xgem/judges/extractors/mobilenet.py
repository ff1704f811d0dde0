"""MobileNetV2 as a feature space: ImageNet's features, which no training on radiographs has touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xgem.judges.extractors import Extractor, Images
from xgem.judges.mobilenet import DIM, SHIPPED, SIZE, as_input, load_mobilenet
from xgem.utils.hashing import module_hash


def mobilenet(source: str | None, device: str) -> Extractor:
    """MobileNetV2 (Sandler et al. 2018), pooled features, 1280-d, with ImageNet's weights as they ship with xgem.

    Args:
        source: another file that ``benchmarks/mobilenet.py`` made.
    """
    network = load_mobilenet(Path(source) if source else SHIPPED).to(device)

    @torch.inference_mode()
    def encode(images: Images) -> NDArray[Any]:
        return network(as_input(torch.from_numpy(np.array(images)).to(device))).cpu().numpy()

    steps = f"bilinear to {SIZE}, antialiased, scaled to [-1, 1]"
    return Extractor("mobilenet-v2", module_hash(network)[:16], DIM, SIZE, steps, encode)
