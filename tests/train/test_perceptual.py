"""SqueezeNet's features: what ships is the published network, and its distances tell images apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xgem.train.perceptual import SHIPPED, TAPS, PerceptualFeatures, perceptual_distance
from xgem.types import CheckpointError

PUBLISHED = "squeezenet_deep_compression.net"


def test_maps_are_unit_vectors_with_a_gradient_to_the_image_alone() -> None:
    network = PerceptualFeatures().train()
    x = torch.rand(2, 1, 64, 64).mul(2).sub(1).requires_grad_()
    maps = network(x)
    assert [one.shape[1] for one in maps] == list(TAPS.values())
    assert [one.shape[2] for one in maps] == sorted((one.shape[2] for one in maps), reverse=True)
    for one in maps:
        torch.testing.assert_close(one.norm(dim=1), torch.ones_like(one[:, 0]))
    maps[-1].sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.layers.training


def test_less_contrast_is_nearer_than_another_image() -> None:
    """A distance that is nought for the same image, small for the same structures, and larger for others."""
    network = PerceptualFeatures()
    x, other = (0.3 * torch.nn.functional.interpolate(torch.randn(2, 1, 16, 16), size=64) for _ in range(2))
    distances = [float(perceptual_distance(network(x), network(one))) for one in (x, 0.7 * x, other)]
    assert distances == sorted(distances)
    assert distances[0] == 0
    assert distances[2] > 4 * distances[1] > 0


def test_another_file_is_refused(tmp_path: Path) -> None:
    for content in (None, b"not weights"):
        file = tmp_path / "model.safetensors"
        if content:
            file.write_bytes(content)
        with pytest.raises(CheckpointError, match="not SqueezeNet's features"):
            PerceptualFeatures(file)


def test_the_shipped_weights_are_the_published_ones(project: Path, data_dir: Path, tmp_path: Path) -> None:
    published = data_dir / "weights" / PUBLISHED
    if not published.is_file():
        pytest.skip(f"no {PUBLISHED} among the real studies' folders")
    script = project / "benchmarks" / "squeezenet.py"
    subprocess.run([sys.executable, str(script), str(published), "--out", str(tmp_path)], check=True, timeout=240)
    made, shipped = load_file(tmp_path / "model.safetensors"), load_file(SHIPPED)
    assert made.keys() == shipped.keys()
    assert all(torch.equal(made[name], value) for name, value in shipped.items())
