"""Makes SqueezeNet's features, which the image codec's decoder is trained with, from the published compressed file.

    python benchmarks/squeezenet.py squeezenet_deep_compression.net --out xgem/assets/perceptual

The file of Han et al. 2016 holds the number of nonzero weights of all layers, then for each layer: 256 values that
weights take, the biases, for each nonzero weight its value's number (8 bits) and the gap to the one before (4 bits, two
to a byte). Weights are written as fp16, without the classifier.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torchvision.models import squeezenet1_0

VALUES = 256


def decoded(raw: bytes, layers: list[nn.Conv2d]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weights and biases of all layers."""
    place = 0

    def take(kind: type[np.generic], count: int) -> NDArray[np.generic]:
        nonlocal place
        values = np.frombuffer(raw, kind, count, place).copy()
        place += values.nbytes
        return values

    counts = take(np.uint32, len(layers)).astype(int)
    found = []
    for layer, count in zip(layers, counts, strict=True):
        values = take(np.float32, VALUES)
        bias = take(np.float32, layer.out_channels)
        numbers = take(np.uint8, count)
        pairs = take(np.uint8, (count + 1) // 2).astype(int)
        gaps = np.stack([pairs % 16, pairs // 16], axis=1).ravel()[:count]
        codes = np.zeros(layer.weight.numel(), np.uint8)
        codes[np.cumsum(gaps + 1) - 1] = numbers
        found.append((values[codes].reshape(layer.weight.shape), bias))
    if place != len(raw):
        raise SystemExit(f"{len(raw) - place} bytes are left over: not the file of SqueezeNet 1.0")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    network = squeezenet1_0()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for layer, (weight, bias) in zip(layers, decoded(options.file.read_bytes(), layers), strict=True):
        layer.weight, layer.bias = (nn.Parameter(torch.from_numpy(value)) for value in (weight, bias))
    options.out.mkdir(parents=True, exist_ok=True)
    weights = options.out / "model.safetensors"
    save_file({name: value.half().contiguous() for name, value in network.features.state_dict().items()}, weights)
    print(f"{weights}: {weights.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
