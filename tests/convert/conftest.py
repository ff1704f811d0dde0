"""XGeM's published model at a tiny size, made up, and what it is converted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from tests.convert.codi_images import DIM, LATENT, SIZE, UNET, VAE, published_unet, published_vae
from tests.convert.codi_layout import TINY, joint, made, optimus, text_unet, vocabularies, written
from xgem.configs.preset import load_preset
from xgem.convert.xgem import convert_xgem

COMPUTED = {
    "betas": torch.zeros(3),
    "sqrt_recipm1_alphas_cumprod": torch.zeros(3),
    "posterior_log_variance_clipped": torch.zeros(3),
    "clip.model.text_model.embeddings.position_ids": torch.zeros(3),
    "optimus.decoder.transformer.h.1.attn.bias": torch.zeros(3),
}


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
def published(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Every file of the published model."""
    draw = torch.Generator().manual_seed(1)
    weights = {f"clip.model.{key}": value for key, value in models["clip"].state_dict().items()}
    weights |= {f"autokl.{key}": value for key, value in published_vae(models["vae"]).items()}
    sizes = vocabularies(tmp_path_factory.mktemp("vocabularies"))
    weights |= {f"optimus.{key}": value for key, value in made(optimus(*sizes), draw).items()}
    weights["optimus.decoder.lm_head.weight"] = weights["optimus.decoder.transformer.wte.weight"]
    for name in ("frontal", "lateral", "text"):
        unet = made(text_unet(), draw) if name == "text" else published_unet(models[name])
        unet |= made(joint(spatial=name != "text"), draw)
        weights |= {f"model.diffusion_model.unet_{name}.{key}": value for key, value in unet.items()}
    return {key: value.detach().clone() for key, value in (weights | COMPUTED).items()}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``xgem-published`` at the tiny sizes."""
    values = load_preset("xgem-published").model_dump(mode="json")
    values["transform"] |= {"size": SIZE, "pixel_spacing": None}
    parts = values["components"]
    parts["image_encoder"] |= {
        "image_size": SIZE, "patch_size": 16, "width": 32, "layers": 2, "heads": 2, "embed_dim": DIM,
    }  # fmt: skip
    parts["text_encoder"] |= {"width": 16, "layers": 2, "heads": 2, "embed_dim": DIM}
    parts["image_vae"] |= {
        "image_size": SIZE, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    }  # fmt: skip
    parts["report_vae"] |= {
        "max_length": 24, "width": TINY.text_width, "layers": TINY.text_layers, "heads": TINY.text_heads,
        "latent_dim": LATENT,
    }  # fmt: skip
    shared = {
        "context_dim": DIM, "pooled_dim": DIM, "cross_attention_dim": DIM, "attention": list(TINY.attends),
        "layers_per_block": TINY.layers, "norm_num_groups": TINY.groups,
    }  # fmt: skip
    outputs, sites = parts["alignment"]["outputs"], [channels for _, channels in TINY.sites()]
    for view in ("frontal", "lateral"):
        parts[view] |= shared | {
            "latent_shape": [4, 16, 16], "block_out_channels": list(TINY.channels), "attention_head_dim": TINY.heads,
        }  # fmt: skip
        outputs[view] = {"latent_shape": [4, 16, 16], "sites": sites}
    parts["report"] |= shared | {
        "latent_dim": LATENT, "tokens": TINY.tokens, "width": TINY.width, "channel_mult": list(TINY.mult),
        "heads": TINY.heads,
    }  # fmt: skip
    outputs["report"] = {"latent_shape": [LATENT], "sites": sites}
    parts["alignment"] |= {
        "width": TINY.width, "channel_mult": list(TINY.v_mult), "report_tokens": TINY.tokens, "dim": TINY.v_dim,
        "heads": TINY.heads, "norm_num_groups": TINY.groups,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def root(published: dict[str, Tensor], preset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xgem")
    done = convert_xgem(written(folder / "in", published), folder / "out", preset=preset)
    assert done.unused == ()  # every weight has its place
    return folder / "out"
