"""XGeM's published files that are not as they should be: what is missing, unknown or of another shape is named, and
nothing is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.convert.codi_images import LATENT
from tests.convert.codi_layout import TINY, VIDEO, written
from xgem.checkpoints.store import verify
from xgem.convert.xgem import convert_xgem
from xgem.types import CheckpointError, ConfigError

UNKNOWN = ("optimus.encoder.cls.weight", "model.diffusion_model.unet_text.time_embed.4.weight", "autokl.loss.logvar")


def test_video_layers_are_left_out_and_named(published: dict[str, Tensor], preset: str, tmp_path: Path) -> None:
    weights = published | dict.fromkeys(VIDEO, torch.zeros(2))
    done = convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)
    assert done.unused == tuple(sorted(VIDEO))


def test_what_has_no_counterpart_is_named(published: dict[str, Tensor], preset: str, tmp_path: Path, xgem: Any) -> None:
    weights = published | dict.fromkeys((*UNKNOWN, *VIDEO), torch.zeros(2))
    source, out = written(tmp_path / "in", weights), tmp_path / "out"
    ran = xgem("convert", "xgem", source, out, "--preset", preset)
    assert ran.code == 1
    assert f"without a counterpart ({len(UNKNOWN)})" in ran.err
    assert ran.err.count("\n") == 1
    assert all(name in ran.err for name in UNKNOWN)
    assert "betas" not in ran.err
    assert not out.exists()
    ran = xgem("convert", "xgem", source, out, "--preset", preset, "--allow-unused")
    assert ran.code == 0
    assert all(name in ran.err for name in (*UNKNOWN, "temporal_self_attn"))
    verify(out)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("autokl.quant_conv.weight", r"missing vae\.quant_conv\.weight"),
        ("model.diffusion_model.unet_frontal.out.2.bias", r"missing net\.unet\.conv_out\.bias"),
        ("clip.model.vision_model.encoder.layers.1.self_attn.k_proj.bias", r"resblocks\.1\.attn\.in_proj_bias"),
        ("clip.model.text_projection.weight", r"missing text\.text_projection"),
        (
            "model.diffusion_model.unet_text.input_blocks.4.0.skip_connection.weight",
            r"missing net\.down\.3\.block\.skip",
        ),
        ("model.diffusion_model.unet_text.output_blocks.5.2.bias", r"missing net\.up\.7\.bias"),
        (
            "model.diffusion_model.unet_text.connecters_out.2.0.weight",
            r"missing environment\.report\.levels\.1\.weight",
        ),
        (
            "model.diffusion_model.unet_lateral.input_block_connecters_in.4.0.proj_out.bias",
            r"missing attention\.lateral\.sites\.2\.proj_out\.bias",
        ),
        ("optimus.decoder.transformer.linear_emb.weight", r"missing to_embedding\.weight"),
        ("optimus.encoder.pooler.dense.bias", r"missing encoder\.pooler\.dense\.bias"),
        ("optimus.decoder.transformer.wte.weight", r"missing optimus\.decoder\.transformer\.wte\.weight"),
    ],
)
def test_missing_weights(published: dict[str, Tensor], preset: str, tmp_path: Path, missing: str, said: str) -> None:
    weights = {key: value for key, value in published.items() if key != missing}
    with pytest.raises(CheckpointError, match=said):
        convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("model.diffusion_model.unet_lateral.input_blocks.1.0.0.in_layers.2.weight", (1, 2, 3, 3), (16, 16, 3, 3)),
        ("model.diffusion_model.unet_text.out.2.weight", (3, 4), (LATENT, TINY.width * TINY.tokens)),
        ("model.diffusion_model.unet_frontal.connecters_out.4.2.weight", (2, 2, 3, 3), (TINY.v_dim, 32, 3, 3)),
        ("optimus.encoder.linear.weight", (2, 2), (2 * LATENT, TINY.text_width)),
    ],
)
def test_weights_of_another_shape(
    published: dict[str, Tensor], preset: str, tmp_path: Path, key: str, shape: tuple[int, ...], expected: Any
) -> None:
    weights = published | {key: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=re.escape(f"{key} {shape}, expected {expected}")):
        convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


def test_optimus_needs_its_vocabularies(published: dict[str, Tensor], preset: str, tmp_path: Path) -> None:
    head = {"optimus.decoder.lm_head.weight": published["optimus.decoder.lm_head.weight"] + 1}
    source = written(tmp_path / "in", published | head)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from optimus\.decoder\.transformer\.wte"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    with (source / "bert-base-cased-vocab.txt").open("a", encoding="utf-8") as file:
        file.write("another\n")
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight has \d+ rows, its tokenizer \d+ tokens"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    (source / "bert-base-cased-vocab.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"bert-base-cased-vocab\.txt: no vocabulary can be read"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    (source / "bert-base-cased-vocab.txt").unlink()  # no hub is asked in tests
    with pytest.raises(CheckpointError, match="'bert-base-cased': cannot be loaded"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


def test_folders_and_presets_of_another_kind(published: dict[str, Tensor], tmp_path: Path, preset: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected a folder with the published \.pt files"):
        convert_xgem(tmp_path, tmp_path / "out")
    source = written(tmp_path / "in", published)
    with pytest.raises(ConfigError, match="expected the outputs frontal, lateral and report"):
        convert_xgem(source, tmp_path / "out", preset="chexgen-small")
    with pytest.raises(ConfigError, match="expected pretrained CLIP towers"):
        convert_xgem(source, tmp_path / "out", preset="debug")
    with pytest.raises(ConfigError, match="expected a transformer_alignment like 'xgem-published' has"):
        convert_xgem(source, tmp_path / "out", preset="paper")
    torch.save({"betas": torch.ones(3)}, source / "z.pt")
    with pytest.raises(CheckpointError, match="'betas' differs from"):
        convert_xgem(source, tmp_path / "out", preset=preset)
