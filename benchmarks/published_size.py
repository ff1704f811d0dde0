"""Where the 6.77 billion parameters of XGeM are (XGeM 3.3), from a preset with its published layers.

    python benchmarks/published_size.py [--preset xgem-published]

Of every part: how many parameters xgem computes with, how many are in layers over video frames, which no image passes
through, and how often the paper counts the part. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_component

# Words and positions of bert-base-cased, and of GPT-2 with three tokens more
BERT, GPT2 = (28_996, 512), (50_260, 1024)


class Size(NamedTuple):
    """Parameters of one part of the published model."""

    name: str
    used: int
    video: int
    times: int = 1

    @property
    def all(self) -> int:
        return self.used + self.video


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def frame_shift(c: int) -> int:
    """Normalisation and a 3 x 3 convolution of c channels."""
    return 2 * c + 9 * c * c + c


def over_frames(c: int, inner: int, heads: int) -> int:
    """Attention over frames with relative positions, and a gated feed-forward layer 8/3 as wide."""
    hidden, half = int(c * 8 / 3), c // 2
    attention = c + 4 * c * inner + 2 * 30 * c  # normalisation; query, key, value, output; two tables of 30 frames
    positions = 2 * half + half * half + half + heads * half + heads
    return attention + positions + 3 * hidden * c + hidden


def residual_widths(config: Any) -> list[int]:
    """Channels of every residual block of an image denoiser, each of which has a video layer."""
    n, widths = config.layers_per_block, config.block_out_channels
    return [c for c in widths for _ in range(2 * n + 1)] + 2 * [widths[-1]]


def published_sizes(preset: str = "xgem-published") -> list[Size]:
    """The parts that the paper counts, in its order."""
    configs: Any = load_preset(preset).components
    with torch.device("meta"):
        parts: Any = {name: random_component(config) for name, config in configs.items() if name != "report_vae"}
        optimus = configs["report_vae"]
        layers, heads, c = optimus.layers, optimus.heads, optimus.width
        bert = BertModel(
            BertConfig(
                vocab_size=BERT[0],
                max_position_embeddings=BERT[1],
                hidden_size=c,
                intermediate_size=4 * c,
                num_hidden_layers=layers,
                num_attention_heads=heads,
            )
        )
        gpt2 = GPT2LMHeadModel(
            GPT2Config(vocab_size=GPT2[0], n_positions=GPT2[1], n_embd=c, n_layer=layers, n_head=heads)
        )
    image, codec, view, joint = (configs[name] for name in ("image_encoder", "image_vae", "frontal", "alignment"))
    clip = Size(
        "CLIP",
        count(parts["image_encoder"], parts["text_encoder"]),
        image.layers * over_frames(image.width, image.width, image.heads),
    )
    # Behind the decoder's middle and every block but those of the finest level, without attention
    widths = codec.block_out_channels
    blocks = [widths[-1]] + [width for width in widths[1:] for _ in range(codec.layers_per_block + 1)]
    autokl = Size("AutoKL", count(parts["image_vae"]), sum(map(frame_shift, blocks)), times=2)
    between = optimus.latent_dim * c * (2 + layers + 1)  # to the posterior, to the memory of every layer, to embeddings
    text = Size("Optimus", count(bert, gpt2) + between, 0)

    def together(output: str) -> int:
        """V, whose time embedding is the denoiser's in the published code, and the joint attentions."""
        v = parts["alignment"].environment[output]
        return count(v, parts["alignment"].attention[output]) - count(v.time)

    unet = parts["frontal"].net.unet
    widths = residual_widths(view) + [m * joint.width for m in joint.channel_mult]
    images = Size(
        "X-ray UNet",
        count(unet) - count(unet.class_embedding) + together("frontal"),
        sum(frame_shift(width) + over_frames(width, 8 * (width // 4), 8) for width in widths),
        times=2,
    )
    report = Size("Report UNet", count(parts["report"].net) + together("report"), 0)
    return [clip, autokl, text, images, report]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="xgem-published")
    sizes = published_sizes(parser.parse_args().preset)
    print("| part | computed with | layers over frames | both | counted |\n|---|---:|---:|---:|---:|")
    for size in sizes:
        print(f"| {size.name} | {size.used:,} | {size.video:,} | {size.all:,} | {size.times} x |")
    once = sum(size.used for size in sizes if size.name != "X-ray UNet")
    used = once + 2 * next(size.used for size in sizes if size.name == "X-ray UNet")
    print(f"\nAs the paper counts: {sum(size.all * size.times for size in sizes):,}.")
    print(f"Computed with, and one codec for both views: {used:,}.")


if __name__ == "__main__":
    main()
