"""Weights that are not finite are neither saved nor loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from xgem.checkpoints.store import INDEX_NAME, file_sha256, init_checkpoint, load_component, save_component, verify
from xgem.configs.codecs import ImageVAEConfig
from xgem.generators.image_vae import ImageVAE
from xgem.types import CheckpointError

TINY = ImageVAEConfig(image_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4)


def vae(value: float | None = None) -> ImageVAE:
    """A tiny codec, with one weight of the given value."""
    module: Any = ImageVAE(TINY)
    if value is not None:
        with torch.no_grad():
            module.vae.encoder.conv_in.weight[0, 0, 0, 0] = value
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    init_checkpoint(tmp_path / "model", {"name": "codec", "components": {"first": TINY.model_dump(mode="json")}})
    save_component(tmp_path / "model", "first", vae())
    return tmp_path / "model"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_neither_saved_nor_loaded(root: Path, value: float) -> None:
    message = r"1 of \d+ values of the weight 'vae\.encoder\.conv_in\.weight' are not finite"
    with pytest.raises(CheckpointError, match=f"first: {message}"):
        save_component(root, "first", vae(value))
    verify(root)
    path = root / "first" / "model.safetensors"
    weights = load_file(path)
    weights["vae.encoder.conv_in.weight"][0, 0, 0, 0] = value
    save_file(weights, path, metadata={"tied": "{}"})
    index = json.loads((root / INDEX_NAME).read_text())
    index["components"]["first"]["files"]["model.safetensors"] = file_sha256(path)
    (root / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"model.safetensors: {message}.*fetch them again"):
        load_component(root, "first")


def test_weights_that_overflow_a_narrow_dtype_are_refused(root: Path) -> None:
    save_component(root, "first", vae(1e6))
    with pytest.raises(CheckpointError, match=r"conv_in\.weight' does not fit into torch\.float16; use bfloat16"):
        load_component(root, "first", dtype=torch.float16)
    assert load_component(root, "first", dtype=torch.bfloat16)
