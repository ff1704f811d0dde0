"""XGeM's published layout at a tiny size: encoders, codec and image generators compute what diffusers' and
transformers' own models of the same weights do; what has no counterpart is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from xgem import generate
from xgem.checkpoints.store import load_component, read_index, verify
from xgem.configs.preset import load_preset
from xgem.convert.xgem import convert_xgem
from xgem.types import CheckpointError, ConfigError

DIM, SIZE, LEVELS = 24, 32, 2
UNET: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "block_out_channels": (16, 32), "layers_per_block": 1,
    "attention_head_dim": 4, "cross_attention_dim": DIM, "norm_num_groups": 8, "sample_size": 16,
}  # fmt: skip
VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
    "up_block_types": ("UpDecoderBlock2D",) * LEVELS, "block_out_channels": (8, 16), "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 4,
}  # fmt: skip
TEXT = ["large left pleural effusion", "no acute disease"]
UNUSED = {
    "optimus.encoder.linear.weight": torch.zeros(2),
    "optimus.decoder.transformer.wte.weight": torch.zeros(2),
    "model.diffusion_model.unet_text.time_embed.0.weight": torch.zeros(2),
    "model.diffusion_model.unet_frontal.input_blocks.1.0.1.temporal_attn.to_q.weight": torch.zeros(2),
    "model.diffusion_model.unet_frontal.middle_block.0.1.ff.proj_in.0.weight": torch.zeros(2),
    "model.diffusion_model.unet_lateral.connecters_out.0.0.weight": torch.zeros(2),
    "model.diffusion_model.unet_lateral.input_block_connecters_in.1.0.norm.weight": torch.zeros(2),
    "autokl.decoder.mid.video_att.frameshiftblock.out_layers.0.weight": torch.zeros(2),
    "autokl.decoder.up.1.video_attn.0.frameshiftblock.out_layers.0.weight": torch.zeros(2),
    "clip.model.vision_model.encoder.layers.0.temporal_self_attn.temporal_attn.to_q.weight": torch.zeros(2),
}
COMPUTED = {
    "betas": torch.zeros(3),
    "sqrt_recipm1_alphas_cumprod": torch.zeros(3),
    "posterior_log_variance_clipped": torch.zeros(3),
    "clip.model.text_model.embeddings.position_ids": torch.zeros(3),
}

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def published_unet(unet: Any) -> dict[str, Tensor]:
    """diffusers' names in CoDi's layout, every residual block the first of two."""
    ends = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "conv_norm_out": "out.0",
        "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2",
    }  # fmt: skip
    made = {}
    for key, value in unet.state_dict().items():
        module, leaf = key.rsplit(".", 1)
        if module in ends:
            made[f"{ends[module]}.{leaf}"] = value
        elif match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)\.(weight|bias)$", key):
            number = int(match[2]) * 2 + int(match[4]) + (match[1] == "down")  # input block 0 is the first convolution
            block = f"{'input' if match[1] == 'down' else 'output'}_blocks.{number}"
            inside = f"0.0.{RESNET[match[5]]}" if match[3] == "resnets" else f"1.{match[5]}"
            made[f"{block}.{inside}.{leaf}"] = value
        elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", key):
            made[f"input_blocks.{(int(match[1]) + 1) * 2}.0.op.{leaf}"] = value
        elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", key):
            made[f"output_blocks.{int(match[1]) * 2 + 1}.1.conv.{leaf}"] = value
        elif match := re.match(r"mid_block\.resnets\.(\d)\.(\w+)", key):
            made[f"middle_block.{int(match[1]) * 2}.0.{RESNET[match[2]]}.{leaf}"] = value
        else:
            made[f"middle_block.1.{key.removeprefix('mid_block.attentions.0.')}"] = value
    assert len(made) == len(unet.state_dict())
    return made


def published_vae(vae: Any) -> dict[str, Tensor]:
    """diffusers' names in Stable Diffusion's own layout."""
    made = {}
    for key, value in vae.state_dict().items():
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{LEVELS - 1 - int(m[1])}", key)
        name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name).replace("conv_norm_out", "norm_out")
        name = re.sub(r"(down|up)samplers\.0\.conv", r"\1sample.conv", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut")
        if "attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            value = value[:, :, None, None] if value.ndim == 2 else value
        made[name] = value
    assert len(made) == len(vae.state_dict())
    return made


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The same models in their own libraries."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIZE, "patch_size": 16}
    build: Any = UNet2DConditionModel
    found: dict[str, Any] = {
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)),
        "vae": AutoencoderKL(**VAE),
        "frontal": build(**UNET),
        "lateral": build(**UNET),
    }
    for model in found.values():
        model.eval()
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return found


@pytest.fixture(scope="module")
def published(models: dict[str, Any]) -> dict[str, Tensor]:
    weights = {f"clip.model.{key}": value for key, value in models["clip"].state_dict().items()}
    weights |= {f"autokl.{key}": value for key, value in published_vae(models["vae"]).items()}
    for view in ("frontal", "lateral"):
        unet = published_unet(models[view])
        weights |= {f"model.diffusion_model.unet_{view}.{key}": value for key, value in unet.items()}
    return {key: value.detach().clone() for key, value in (weights | COMPUTED).items()}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``paper`` at the tiny sizes."""
    values = load_preset("paper").model_dump(mode="json")
    values["transform"] |= {"size": SIZE, "pixel_spacing": None}
    parts = values["components"]
    parts["image_encoder"] |= {
        "image_size": SIZE, "patch_size": 16, "width": 32, "layers": 2, "heads": 2, "embed_dim": DIM,
    }  # fmt: skip
    parts["text_encoder"] |= {"width": 16, "layers": 2, "heads": 2, "embed_dim": DIM}
    parts["image_vae"] |= {
        "image_size": SIZE, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    }  # fmt: skip
    sizes = {
        "context_dim": DIM, "pooled_dim": DIM, "cross_attention_dim": DIM, "latent_shape": [4, 16, 16],
        "block_out_channels": [16, 32], "attention": [True, False], "layers_per_block": 1, "attention_head_dim": 4,
        "norm_num_groups": 8,
    }  # fmt: skip
    for view in ("frontal", "lateral"):
        parts[view] |= sizes
        values["components"]["alignment"]["outputs"][view]["latent_shape"] = [4, 16, 16]
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def written(folder: Path, weights: dict[str, Tensor]) -> Path:
    folder.mkdir()
    torch.save(weights, folder / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def root(published: dict[str, Tensor], preset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xgem")
    convert_xgem(written(folder / "in", published), folder / "out", preset=preset)
    return folder / "out"


def vectors(models: dict[str, Any], images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """CLIP's unit vectors, of images (b, 1, s, s) in [-1, 1]."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, SimpleTokenizer

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    clip, ids = models["clip"], SimpleTokenizer(context_length=77)(texts)
    seen = clip.visual_projection(clip.vision_model(((images + 1) / 2 - mean) / std).pooler_output)
    read = clip.text_projection(clip.text_model(ids).pooler_output)
    return F.normalize(seen, dim=-1), F.normalize(read, dim=-1)


@torch.no_grad()
def test_encoders_are_clip(root: Path, models: dict[str, Any]) -> None:
    images = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    seen, read = vectors(models, images, TEXT)
    image: Any = load_component(root, "image_encoder")
    text: Any = load_component(root, "text_encoder")
    torch.testing.assert_close(image.encode(images).pooled, seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text.encode(TEXT).pooled, read, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_codec_is_autokl(root: Path, models: dict[str, Any]) -> None:
    x, vae = torch.rand(2, 1, SIZE, SIZE) * 2 - 1, models["vae"]
    codec: Any = load_component(root, "image_vae")
    latents = vae.encode(x.expand(-1, 3, -1, -1)).latent_dist.mean * 0.18215
    torch.testing.assert_close(codec.encode(x), latents, rtol=1e-4, atol=1e-5)
    images = vae.decode(latents / 0.18215).sample.mean(dim=1, keepdim=True).clamp(-1, 1)
    torch.testing.assert_close(codec.decode(latents), images, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("view", ["frontal", "lateral"])
def test_generators_attend_to_the_mean_vector_itself(root: Path, models: dict[str, Any], view: str) -> None:
    generator: Any = load_component(root, view)
    images = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    image: Any = load_component(root, "image_encoder")
    text: Any = load_component(root, "text_encoder")
    other = "lateral" if view == "frontal" else "frontal"
    prompts = {other: image.encode(images), "report": text.encode(TEXT)}
    mean = (prompts[other].pooled + prompts["report"].pooled) / 2
    z, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 800])
    for names, token in (([other, "report"], mean), ([other], prompts[other].pooled)):
        expected = models[view](z, t, encoder_hidden_states=token[:, None]).sample
        made = generator(z, t, generator.fuse({name: prompts[name] for name in names}))
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    black, empty = vectors(models, torch.full((1, 1, SIZE, SIZE), -1.0), [""])
    torch.testing.assert_close(generator.null(1).tokens[0], (black + empty) / 2, rtol=1e-4, atol=1e-5)


def test_it_is_a_whole_checkpoint_of_both_views(root: Path) -> None:
    verify(root)
    preset = read_index(root).preset
    assert set(preset["components"]) == {"image_encoder", "text_encoder", "image_vae", "frontal", "lateral"}
    made = generate({"report": TEXT[0]}, ["frontal", "lateral"], model=root, num_inference_steps=2, seed=0)
    assert made.frontal[0].size == made.lateral[0].size == (SIZE, SIZE)


def test_what_has_no_counterpart_is_named(published: dict[str, Tensor], preset: str, tmp_path: Path, xgem: Any) -> None:
    source, out = written(tmp_path / "in", published | UNUSED), tmp_path / "out"
    ran = xgem("convert", "xgem", source, out, "--preset", preset)
    assert ran.code == 1
    assert f"without a counterpart ({len(UNUSED)})" in ran.err
    assert ran.err.count("\n") == 1
    assert "optimus.encoder.linear.weight" in ran.err
    assert "unet_text.time_embed.0.weight" in ran.err
    assert "betas" not in ran.err
    assert not out.exists()
    ran = xgem("convert", "xgem", source, out, "--preset", preset, "--allow-unused")
    assert ran.code == 0
    assert "optimus.decoder.transformer.wte.weight" in ran.err
    verify(out)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("autokl.quant_conv.weight", r"missing vae\.quant_conv\.weight"),
        ("model.diffusion_model.unet_frontal.out.2.bias", r"missing net\.unet\.conv_out\.bias"),
        ("clip.model.vision_model.encoder.layers.1.self_attn.k_proj.bias", r"resblocks\.1\.attn\.in_proj_bias"),
        ("clip.model.text_projection.weight", r"missing text\.text_projection"),
    ],
)
def test_missing_weights(published: dict[str, Tensor], preset: str, tmp_path: Path, missing: str, said: str) -> None:
    weights = {key: value for key, value in published.items() if key != missing}
    with pytest.raises(CheckpointError, match=said):
        convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_shape(published: dict[str, Tensor], preset: str, tmp_path: Path) -> None:
    key = "model.diffusion_model.unet_lateral.input_blocks.1.0.0.in_layers.2.weight"
    weights = published | {key: torch.zeros(1, 2, 3, 3)}
    with pytest.raises(CheckpointError, match=re.escape(f"{key} (1, 2, 3, 3), expected (16, 16, 3, 3)")):
        convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)


def test_folders_and_presets_of_another_kind(published: dict[str, Tensor], tmp_path: Path, preset: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected a folder with the published \.pt files"):
        convert_xgem(tmp_path, tmp_path / "out")
    source = written(tmp_path / "in", published)
    with pytest.raises(ConfigError, match="expected the modalities frontal, lateral and report"):
        convert_xgem(source, tmp_path / "out", preset="chexgen-small")
    with pytest.raises(ConfigError, match="expected pretrained CLIP towers"):
        convert_xgem(source, tmp_path / "out", preset="debug")
    torch.save({"betas": torch.ones(3)}, source / "z.pt")
    with pytest.raises(CheckpointError, match="'betas' differs from"):
        convert_xgem(source, tmp_path / "out", preset=preset)
