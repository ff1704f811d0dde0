"""Names and shapes of CoDi's published layout at tiny sizes, as made-up weights; the image parts are in test_xgem."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

DIM = 24  # of the shared space
WIDTH, MULT, ATTENDS, HEADS, GROUPS = 16, (1, 2, 2), (True, True, False), 4, 8
LATENT, TOKENS = 12, 2
V_DIM, V_MULT = 20, (1, 2)
BERT_WIDTH, LAYERS, BERT_HEADS, POSITIONS = 16, 2, 2, 40
TIME = 4 * WIDTH

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


def residual(name: str, channels: int, out: int, *kernel: int) -> Shapes:
    yield from layer(f"{name}.in_layers.0", channels)
    yield from layer(f"{name}.in_layers.2", out, channels, *kernel)
    yield from layer(f"{name}.emb_layers.1", out, TIME)
    yield from layer(f"{name}.out_layers.0", out)
    yield from layer(f"{name}.out_layers.3", out, out, *kernel)
    if channels != out:
        yield from layer(f"{name}.skip_connection", out, channels, 1, 1)


def fc(name: str, channels: int, out: int) -> Shapes:
    yield from residual(name, channels * TOKENS, out * TOKENS, 1, 1)


def text_unet() -> Shapes:
    """The report denoiser, one layer a level."""
    yield from layer("time_embed.0", TIME, WIDTH)
    yield from layer("time_embed.2", TIME, TIME)
    yield from layer("input_blocks.0.0", WIDTH * TOKENS, LATENT)
    number, channels, skips = 0, WIDTH, [WIDTH]
    for depth, (multiple, attends) in enumerate(zip(MULT, ATTENDS, strict=True)):
        number, out = number + 1, WIDTH * multiple
        yield from fc(f"input_blocks.{number}.0", channels, out)
        if attends:
            yield from transformer(f"input_blocks.{number}.1", out, DIM)
        channels = out
        skips.append(channels)
        if depth < len(MULT) - 1:
            number += 1
            yield from layer(f"input_blocks.{number}.0", channels * TOKENS, channels * TOKENS)
            skips.append(channels)
    yield from fc("middle_block.0", channels, channels)
    yield from transformer("middle_block.1", channels, DIM)
    yield from fc("middle_block.2", channels, channels)
    number = -1
    for depth in reversed(range(len(MULT))):
        for last in (False, True):
            number, out = number + 1, WIDTH * MULT[depth]
            yield from fc(f"output_blocks.{number}.0", channels + skips.pop(), out)
            channels = out
            if ATTENDS[depth]:
                yield from transformer(f"output_blocks.{number}.1", out, DIM)
            if last and depth:
                yield from layer(f"output_blocks.{number}.{1 + ATTENDS[depth]}", out * TOKENS, out * TOKENS)
    yield from layer("out.0", WIDTH)
    yield from layer("out.2", LATENT, WIDTH * TOKENS)


def joint(*, spatial: bool) -> Shapes:
    """V and the joint attentions of one denoiser; convolutions are the first of two nested modules."""
    half = WIDTH // 2
    yield from (
        layer("connecters_out.0.0", half, 4, 3, 3) if spatial else layer("connecters_out.0.0", half * TOKENS, LATENT)
    )
    number, channels = 0, half
    for depth, multiple in enumerate(V_MULT):
        number, out = number + 1, WIDTH * multiple
        block = f"connecters_out.{number}.0"
        yield from residual(f"{block}.0", channels, out, 3, 3) if spatial else fc(block, channels, out)
        channels = out
        if depth < len(V_MULT) - 1:
            number += 1
            name = f"connecters_out.{number}.0"
            yield from layer(f"{name}.op", out, out, 3, 3) if spatial else layer(name, out * TOKENS, out * TOKENS)
    end = f"connecters_out.{number + 1}"
    yield from layer(f"{end}.0", channels)
    yield from layer(f"{end}.2", V_DIM, channels, 3, 3) if spatial else layer(f"{end}.2", V_DIM, channels * TOKENS)
    # One layer a level: input blocks 1 and 3 attend, and output blocks 2 to 5
    for place, channels in (("input", {1: 16, 3: 32}), ("output", {2: 32, 3: 32, 4: 16, 5: 16})):
        for number, width in channels.items():
            yield from transformer(f"{place}_block_connecters_in.{number}.0", width, V_DIM)


SITES = (16, 32, 32, 32, 16, 16)


def optimus(words: int, tokens: int) -> Shapes:
    """BERT and GPT-2 with vocabularies of so many words and tokens, and what stands between them."""
    c, table = BERT_WIDTH, "encoder.embeddings"
    yield from layer(f"{table}.word_embeddings", words, c, bias=False)
    yield from layer(f"{table}.position_embeddings", POSITIONS, c, bias=False)
    yield from layer(f"{table}.token_type_embeddings", 2, c, bias=False)
    yield from layer(f"{table}.LayerNorm", c)
    for number in range(LAYERS):
        block = f"encoder.encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            yield from layer(f"{block}.attention.{name}", c, c)
        yield from layer(f"{block}.attention.output.LayerNorm", c)
        yield from layer(f"{block}.intermediate.dense", 4 * c, c)
        yield from layer(f"{block}.output.dense", c, 4 * c)
        yield from layer(f"{block}.output.LayerNorm", c)
    yield from layer("encoder.pooler.dense", c, c)
    yield from layer("encoder.linear", 2 * LATENT, c, bias=False)
    top = "decoder.transformer"
    yield from layer(f"{top}.wte", tokens, c, bias=False)
    yield from layer(f"{top}.wpe", POSITIONS, c, bias=False)
    for number in range(LAYERS):
        block = f"{top}.h.{number}"
        yield f"{block}.attn.bias", (1, 1, POSITIONS, POSITIONS)  # the causal mask
        for name in ("ln_1", "ln_2"):
            yield from layer(f"{block}.{name}", c)
        for name, rows, columns in (("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c), ("mlp.c_fc", c, 4 * c)):
            yield f"{block}.{name}.weight", (rows, columns)  # transposed linear layers
            yield f"{block}.{name}.bias", (columns,)
        yield f"{block}.mlp.c_proj.weight", (4 * c, c)
        yield f"{block}.mlp.c_proj.bias", (c,)
    yield from layer(f"{top}.ln_f", c)
    yield from layer(f"{top}.linear", LAYERS * c, LATENT, bias=False)
    yield from layer(f"{top}.linear_emb", c, LATENT, bias=False)


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
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "no", "Ġno", "ef", "<|endoftext|>"]
    (folder / "gpt2-vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "gpt2-merges.txt").write_text("#version: 0.2\nn o\nĠ no\ne f\n", encoding="utf-8")
    return len(words), len(tokens) + 3
