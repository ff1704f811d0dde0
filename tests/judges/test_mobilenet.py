"""MobileNetV2: its graph, its weights against the 8-bit interpreter, and files that hold others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xgem.judges.extractors import open_extractor
from xgem.judges.mobilenet import DIM, SHIPPED, SIZE, MobileNet, SameConv, as_input, load_mobilenet
from xgem.types import CheckpointError, NotComputed

INTERPRETED = {
    1153: 5.86, 313: 4.56, 743: 4.47, 672: 4.42, 809: 4.38, 782: 3.98, 261: 3.95, 652: 3.67, 147: 3.41, 753: 3.36,
    362: 3.36, 332: 3.32, 201: 3.29, 186: 3.27, 1223: 3.18, 1188: 2.82, 508: 2.82, 817: 2.75, 891: 2.71, 1039: 2.68,
    393: 2.59, 940: 2.47, 1274: 2.45, 664: 2.42,
}  # fmt: skip
"""The 24 largest pooled features of :func:`waves` by ai-edge-litert 2.3.0 on the published file; all sum to 253.8."""


def waves() -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    return (127.5 + 60 * np.sin(x / 9) + 60 * np.cos(y / 23)).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> MobileNet:
    return load_mobilenet()


@torch.inference_mode()
def test_features_are_those_of_the_8_bit_interpreter(network: MobileNet) -> None:
    ours = network(as_input(torch.from_numpy(waves()[None])))[0].numpy()
    theirs = np.array(list(INTERPRETED.values()))
    assert np.abs(ours[list(INTERPRETED)] - theirs).max() < 1.3  # of features up to 6; activations have 8 bits there
    assert np.abs(ours[list(INTERPRETED)] - theirs).mean() < 0.5
    assert len(set(INTERPRETED) & set(np.argsort(-ours)[:40].tolist())) >= 20
    assert ours.sum() == pytest.approx(253.8, rel=0.15)
    turned = network(as_input(torch.from_numpy(waves().T.copy()[None])))[0].numpy()
    assert np.abs(turned[list(INTERPRETED)] - theirs).mean() > 1


def test_the_graph_is_torchvisions_but_for_its_padding(network: MobileNet) -> None:
    import torchvision

    theirs = torchvision.models.mobilenet_v2(weights=None).features
    convolutions = [module for module in theirs.modules() if isinstance(module, torch.nn.Conv2d)]
    shapes = [tuple(layer.weight.shape) for layer in network.convolutions()]
    assert shapes == [tuple(layer.weight.shape) for layer in convolutions]
    assert [layer.stride for layer in network.convolutions()] == [layer.stride for layer in convolutions]


def test_stride_2_pads_at_the_bottom_and_the_right() -> None:
    layer = SameConv(1, 1, 3, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 3, 3] = 1
    with torch.no_grad():
        assert layer(x)[0, 0].tolist() == [[0, 0], [0, 1]]
        x[0, 0, 3, 3], x[0, 0, 0, 0] = 0, 1
        assert layer(x)[0, 0].tolist() == [[1, 0], [0, 0]]


def test_the_space_opens_without_weights_of_ones_own() -> None:
    extractor = open_extractor("mobilenet-v2")
    images = np.stack([waves()[:96, :96], waves()[40:136, 40:136]])
    features = extractor(images)
    assert features.shape == (2, DIM)
    assert np.abs(features[0] - features[1]).max() > 0.1
    assert SHIPPED.stat().st_size < 2_500_000


def test_other_files_are_refused(tmp_path: Path) -> None:
    state = load_file(SHIPPED)
    del state["7.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="not MobileNetV2's weights"):
        load_mobilenet(tmp_path / "part.safetensors")
    with pytest.raises(NotComputed, match="not MobileNetV2's weights"):
        open_extractor(f"mobilenet-v2={tmp_path / 'nowhere.safetensors'}")
