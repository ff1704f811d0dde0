"""CLIP, AutoKL and the image denoisers at tiny sizes: other libraries' models, and their weights in CoDi's layout."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from tests.convert.codi_layout import TINY

SIZE, LEVELS = 32, 2
DIM, LATENT, BLOCKS = TINY.dim, TINY.latent, TINY.layers + 1  # blocks of a level, the one between levels included
UNET: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "sample_size": 16, "layers_per_block": TINY.layers,
    "block_out_channels": TINY.channels,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": TINY.heads,
    "cross_attention_dim": DIM, "norm_num_groups": TINY.groups,
}  # fmt: skip
VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
    "up_block_types": ("UpDecoderBlock2D",) * LEVELS, "block_out_channels": (8, 16), "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 4,
}  # fmt: skip

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
    found = {}
    for key, value in unet.state_dict().items():
        module, leaf = key.rsplit(".", 1)
        if module in ends:
            found[f"{ends[module]}.{leaf}"] = value
        elif match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)\.(weight|bias)$", key):
            number = (
                int(match[2]) * BLOCKS + int(match[4]) + (match[1] == "down")
            )  # input block 0 is the first convolution
            block = f"{'input' if match[1] == 'down' else 'output'}_blocks.{number}"
            inside = f"0.0.{RESNET[match[5]]}" if match[3] == "resnets" else f"1.{match[5]}"
            found[f"{block}.{inside}.{leaf}"] = value
        elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", key):
            found[f"input_blocks.{(int(match[1]) + 1) * BLOCKS}.0.op.{leaf}"] = value
        elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", key):
            attends = hasattr(unet.up_blocks[int(match[1])], "attentions")
            found[f"output_blocks.{(int(match[1]) + 1) * BLOCKS - 1}.{1 + attends}.conv.{leaf}"] = value
        elif match := re.match(r"mid_block\.resnets\.(\d)\.(\w+)", key):
            found[f"middle_block.{int(match[1]) * 2}.0.{RESNET[match[2]]}.{leaf}"] = value
        else:
            found[f"middle_block.1.{key.removeprefix('mid_block.attentions.0.')}"] = value
    assert len(found) == len(unet.state_dict())
    return found


def published_vae(vae: Any) -> dict[str, Tensor]:
    """diffusers' names in Stable Diffusion's own layout."""
    found = {}
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
        found[name] = value
    assert len(found) == len(vae.state_dict())
    return found
