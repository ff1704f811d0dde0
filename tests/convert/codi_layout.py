"""Names and shapes of CoDi's published layout, tiny ones as made-up weights; the image parts are in test_xgem."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor


class Layout(NamedTuple):
    """Sizes: of the shared space, of the denoisers, of V, and of Optimus."""

    dim: int = 24
    width: int = 16
    mult: tuple[int, ...] = (1, 2, 2)
    attends: tuple[bool, ...] = (True, True, False)
    layers: int = 2  # per level
    heads: int = 4
    groups: int = 8
    latent: int = 12
    tokens: int = 2
    v_dim: int = 20
    v_mult: tuple[int, ...] = (1, 2)
    text_width: int = 16
    text_layers: int = 2
    text_heads: int = 2
    positions: tuple[int, int] = (40, 40)

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.width * multiple for multiple in self.mult)

    @property
    def time(self) -> int:
        return 4 * self.width

    def sites(self) -> Iterator[tuple[str, int]]:
        """Of the blocks behind which a joint attention follows: its place and channels."""
        for depth, (width, attends) in enumerate(zip(self.channels, self.attends, strict=True)):
            for number in range(self.layers if attends else 0):
                yield f"input_block_connecters_in.{1 + depth * (self.layers + 1) + number}", width
        upwards = reversed(list(zip(self.channels, self.attends, strict=True)))
        for depth, (width, attends) in enumerate(upwards):
            for number in range(self.layers + 1 if attends else 0):
                yield f"output_block_connecters_in.{depth * (self.layers + 1) + number}", width


TINY = Layout()
PUBLISHED = Layout(
    dim=768, width=320, mult=(1, 2, 4, 4), attends=(True, True, True, False), heads=8, groups=32, latent=768, tokens=4,
    v_dim=1280, v_mult=(1, 2, 4), text_width=768, text_layers=12, text_heads=12, positions=(512, 1024),
)  # fmt: skip

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A linear layer or convolution, or with one number a normalisation."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def transformer(name: str, channels: int, context: int) -> Shapes:
    yield from layer(f"{name}.norm", channels)
    for end in ("in", "out"):
        yield from layer(f"{name}.proj_{end}", channels, channels, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, width in (("attn1", channels), ("attn2", context)):
        yield from layer(f"{block}.{attention}.to_q", channels, channels, bias=False)
        yield from layer(f"{block}.{attention}.to_k", channels, width, bias=False)
        yield from layer(f"{block}.{attention}.to_v", channels, width, bias=False)
        yield from layer(f"{block}.{attention}.to_out.0", channels, channels)
    yield from layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
    yield from layer(f"{block}.ff.net.2", channels, 4 * channels)
    for number in (1, 2, 3):
        yield from layer(f"{block}.norm{number}", channels)


def residual(name: str, channels: int, out: int, time: int, *kernel: int) -> Shapes:
    yield from layer(f"{name}.in_layers.0", channels)
    yield from layer(f"{name}.in_layers.2", out, channels, *kernel)
    yield from layer(f"{name}.emb_layers.1", out, time)
    yield from layer(f"{name}.out_layers.0", out)
    yield from layer(f"{name}.out_layers.3", out, out, *kernel)
    if channels != out:
        yield from layer(f"{name}.skip_connection", out, channels, 1, 1)


def time_embedding(size: Layout) -> Shapes:
    yield from layer("time_embed.0", size.time, size.width)
    yield from layer("time_embed.2", size.time, size.time)


def text_unet(size: Layout = TINY) -> Shapes:
    """The report denoiser."""
    n, levels = size.tokens, list(zip(size.channels, size.attends, strict=True))

    def fc(name: str, channels: int, out: int) -> Shapes:
        yield from residual(name, channels * n, out * n, size.time, 1, 1)

    yield from time_embedding(size)
    yield from layer("input_blocks.0.0", size.width * n, size.latent)
    number, channels, skips = 0, size.width, [size.width]
    for depth, (out, attends) in enumerate(levels):
        if depth:
            number += 1
            yield from layer(f"input_blocks.{number}.0", channels * n, channels * n)
            skips.append(channels)
        for _ in range(size.layers):
            number += 1
            yield from fc(f"input_blocks.{number}.0", channels, out)
            if attends:
                yield from transformer(f"input_blocks.{number}.1", out, size.dim)
            channels = out
            skips.append(channels)
    yield from fc("middle_block.0", channels, channels)
    yield from transformer("middle_block.1", channels, size.dim)
    yield from fc("middle_block.2", channels, channels)
    number = -1
    for depth, (out, attends) in reversed(list(enumerate(levels))):
        for block in range(size.layers + 1):
            number += 1
            yield from fc(f"output_blocks.{number}.0", channels + skips.pop(), out)
            channels = out
            if attends:
                yield from transformer(f"output_blocks.{number}.1", out, size.dim)
            if depth and block == size.layers:
                yield from layer(f"output_blocks.{number}.{1 + attends}", out * n, out * n)
    yield from layer("out.0", size.width)
    yield from layer("out.2", size.latent, size.width * n)


def joint(size: Layout = TINY, *, spatial: bool) -> Shapes:
    """V and the joint attentions of one denoiser; convolutions are the first of two nested modules."""
    half, n, d = size.width // 2, size.tokens, size.v_dim
    start = (half, 4, 3, 3) if spatial else (half * n, size.latent)
    yield from layer("connecters_out.0.0", *start)
    number, channels = 0, half
    for depth, multiple in enumerate(size.v_mult):
        if depth:
            number += 1
            between = (channels, channels, 3, 3) if spatial else (channels * n, channels * n)
            yield from layer(f"connecters_out.{number}.0{'.op' if spatial else ''}", *between)
        number, out = number + 1, size.width * multiple
        if spatial:
            yield from residual(f"connecters_out.{number}.0.0", channels, out, size.time, 3, 3)
        else:
            yield from residual(f"connecters_out.{number}.0", channels * n, out * n, size.time, 1, 1)
        channels = out
    yield from layer(f"connecters_out.{number + 1}.0", channels)
    end = (d, channels, 3, 3) if spatial else (d, channels * n)
    yield from layer(f"connecters_out.{number + 1}.2", *end)
    for place, width in size.sites():
        yield from transformer(f"{place}.0", width, d)


def optimus(words: int, tokens: int, size: Layout = TINY) -> Shapes:
    """BERT and GPT-2 with vocabularies of so many words and tokens, and what stands between them."""
    c, table = size.text_width, "encoder.embeddings"
    yield from layer(f"{table}.word_embeddings", words, c, bias=False)
    yield from layer(f"{table}.position_embeddings", size.positions[0], c, bias=False)
    yield from layer(f"{table}.token_type_embeddings", 2, c, bias=False)
    yield from layer(f"{table}.LayerNorm", c)
    for number in range(size.text_layers):
        block = f"encoder.encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            yield from layer(f"{block}.attention.{name}", c, c)
        yield from layer(f"{block}.attention.output.LayerNorm", c)
        yield from layer(f"{block}.intermediate.dense", 4 * c, c)
        yield from layer(f"{block}.output.dense", c, 4 * c)
        yield from layer(f"{block}.output.LayerNorm", c)
    yield from layer("encoder.pooler.dense", c, c)
    yield from layer("encoder.linear", 2 * size.latent, c, bias=False)
    top = "decoder.transformer"
    yield from layer(f"{top}.wte", tokens, c, bias=False)
    yield from layer(f"{top}.wpe", size.positions[1], c, bias=False)
    for number in range(size.text_layers):
        block = f"{top}.h.{number}"
        for name in ("ln_1", "ln_2"):
            yield from layer(f"{block}.{name}", c)
        for name, rows, columns in (
            ("attn.c_attn", c, 3 * c),
            ("attn.c_proj", c, c),
            ("mlp.c_fc", c, 4 * c),
            ("mlp.c_proj", 4 * c, c),
        ):
            yield f"{block}.{name}.weight", (rows, columns)  # transposed linear layers
            yield f"{block}.{name}.bias", (columns,)
    yield from layer(f"{top}.ln_f", c)
    yield from layer(f"{top}.linear", size.text_layers * c, size.latent, bias=False)
    yield from layer(f"{top}.linear_emb", c, size.latent, bias=False)


VIDEO = (
    "model.diffusion_model.unet_frontal.input_blocks.1.0.1.temporal_attn.to_q.weight",
    "model.diffusion_model.unet_lateral.output_blocks.5.0.1.temporal_rel_pos_bias.net.0.0.bias",
    "model.diffusion_model.unet_frontal.middle_block.0.1.ff.proj_in.0.weight",
    "model.diffusion_model.unet_lateral.connecters_out.1.0.1.frameshiftblock.out_layers.0.weight",
    "autokl.decoder.mid.video_att.frameshiftblock.out_layers.0.weight",
    "autokl.decoder.up.1.video_attn.0.frameshiftblock.out_layers.0.weight",
    "clip.model.vision_model.encoder.layers.0.temporal_self_attn.temporal_attn.to_q.weight",
)
"""Layers that images do not pass through."""


def made(shapes: Shapes, draw: torch.Generator) -> dict[str, Tensor]:
    """Random weights in such a layout, normalisations around 1."""
    weights = {}
    for name, shape in shapes:
        noise = torch.randn(shape, generator=draw)
        norm = len(shape) == 1 and name.endswith("weight")
        weights[name] = 1 + 0.2 * noise if norm else 0.2 * noise
    return weights


def vocabularies(folder: Path) -> tuple[int, int]:
    """Writes tiny vocabularies under their published names; how many tokens Optimus' encoder and decoder have."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.", *(f"##{c}" for c in "aeiou")]
    words += ["pleural", "effusion", "left", "no", "acute", "disease", "large"]
    (folder / "bert-base-cased-vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokens = [*sorted(ByteLevel.alphabet()), "no", "Ġno", "ef", "<|endoftext|>"]
    (folder / "gpt2-vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "gpt2-merges.txt").write_text("#version: 0.2\nn o\nĠ no\ne f\n", encoding="utf-8")
    return len(words), len(tokens) + 3


def written(folder: Path, weights: dict[str, Tensor]) -> Path:
    folder.mkdir()
    vocabularies(folder)
    torch.save(weights, folder / "weights.pt")
    return folder
