"""CoDi's published functions written out over weights by their published names, for maps (b, c, h, w).

What a block does is read off the names that it has. A report's latent (b, d) is a map (b, d, 1, 1), and its tokens are
the rows of a map (b, c, n, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.convert.codi_layout import TINY

GROUPS, HEADS, WIDTH, TOKENS = TINY.groups, TINY.heads, TINY.width, TINY.tokens
LAYERS, BERT_HEADS = TINY.text_layers, TINY.text_heads


class Published(NamedTuple):
    """Weights of one denoiser, and the part of their names in front."""

    weights: Mapping[str, Tensor]
    prefix: str

    def at(self, place: str) -> Published:
        return Published(self.weights, f"{self.prefix}{place}.")

    def has(self, place: str) -> bool:
        return any(key.startswith(f"{self.prefix}{place}.") for key in self.weights)

    def get(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def linear(self, place: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{self.prefix}{place}.bias")
        out = torch.einsum("...i,oi->...o", x, self.get(f"{place}.weight").flatten(1))
        return out if bias is None else out + bias

    def group_norm(self, place: str, x: Tensor, eps: float) -> Tensor:
        b, c = x.shape[:2]
        parts = x.reshape(b, GROUPS, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + eps).sqrt()
        shape = (1, c, *[1] * (x.ndim - 2))
        return parts.view(x.shape) * self.get(f"{place}.weight").view(shape) + self.get(f"{place}.bias").view(shape)

    def conv(self, place: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.get(f"{place}.weight")
        return F.conv2d(x, weight, self.get(f"{place}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def attention(p: Published, x: Tensor, context: Tensor) -> Tensor:
    query, key, value = p.linear("to_q", x), p.linear("to_k", context), p.linear("to_v", context)
    heads = []
    for q, k, v in zip(query.chunk(HEADS, 2), key.chunk(HEADS, 2), value.chunk(HEADS, 2), strict=True):
        heads.append((q @ k.mT / math.sqrt(q.shape[2])).softmax(dim=2) @ v)
    return p.linear("to_out.0", torch.cat(heads, dim=2))


def transformer(p: Published, x: Tensor, context: Tensor) -> Tensor:
    h = p.conv("proj_in", p.group_norm("norm", x, 1e-6)).flatten(2).mT
    block = p.at("transformer_blocks.0")

    def normed(number: int) -> Tensor:
        name = f"norm{number}"
        return F.layer_norm(h, h.shape[2:], block.get(f"{name}.weight"), block.get(f"{name}.bias"))

    h = h + attention(block.at("attn1"), normed(1), normed(1))
    h = h + attention(block.at("attn2"), normed(2), context)
    value, gate = block.linear("ff.net.0.proj", normed(3)).chunk(2, dim=2)
    h = h + block.linear("ff.net.2", value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))))
    return x + p.conv("proj_out", h.mT.reshape(x.shape))


def residual(p: Published, x: Tensor, emb: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Of tokens, all channels are channels of one position."""
    flat = shape == (TOKENS, 1)
    x = x.reshape(len(x), -1, 1, 1) if flat else x
    h = (
        p.conv("in_layers.2", silu(p.group_norm("in_layers.0", x, 1e-5)))
        + p.linear("emb_layers.1", silu(emb))[..., None, None]
    )
    h = p.conv("out_layers.3", silu(p.group_norm("out_layers.0", h, 1e-5)))
    out = h + (p.conv("skip_connection", x) if p.has("skip_connection") else x)
    return out.reshape(len(x), -1, *shape) if flat else out


def multi(p: Published, x: Tensor, tokens: int) -> Tensor:
    """A linear layer over a whole map, to a map of ``tokens`` rows."""
    weight = p.get("weight")
    if weight.ndim == 4:
        return F.conv2d(x, weight, p.get("bias"), padding=1)
    return (x.flatten(1) @ weight.mT + p.get("bias")).reshape(len(x), -1, tokens, 1)


def block(p: Published, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    """One of the numbered blocks: its layers one after another, video layers left out."""
    number = 0
    while p.has(str(number)):
        layer = p.at(str(number))
        if layer.has("0.in_layers"):  # beside a video layer
            layer = layer.at("0")
        if layer.has("in_layers"):
            x = residual(layer, x, emb, tuple(x.shape[2:]))
        elif layer.has("transformer_blocks"):
            x = transformer(layer, x, context)
        elif layer.has("op"):
            x = layer.conv("op", x, stride=2)
        elif layer.has("conv"):
            x = layer.conv("conv", x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        else:
            x = multi(layer, x, TOKENS)
        number += 1
    return x


def count(p: Published, place: str) -> int:
    start = f"{p.prefix}{place}."
    return 1 + max(int(key.removeprefix(start).split(".")[0]) for key in p.weights if key.startswith(start))


def time_embedding(p: Published, t: Tensor) -> Tensor:
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(WIDTH // 2) / (WIDTH // 2))
    return p.linear("time_embed.2", silu(p.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))))


def environment(p: Published, z: Tensor, t: Tensor) -> Tensor:
    """V of a noisy latent: one unit token (b, 1, d)."""
    emb, last = time_embedding(p, t), count(p, "connecters_out") - 1
    h = z[..., None, None] if z.ndim == 2 else z
    for number in range(last):
        h = block(p.at(f"connecters_out.{number}"), h, emb, emb)
    end = p.at(f"connecters_out.{last}")
    h = multi(end.at("2"), silu(end.group_norm("0", h, 1e-5)), 1).mean(dim=(2, 3))
    return (h / h.square().sum(1, keepdim=True).sqrt())[:, None]


def denoise(
    p: Published, z: Tensor, t: Tensor, context: Tensor, seen: Tensor | None = None, *, repeat: bool = True
) -> Tensor:
    """The noise that a denoiser predicts; ``seen`` (b, m, d): what its joint attentions see. The middle's output takes
    the place of the last skip connection, as both are one list in the published code (``repeat``)."""
    emb, h, skips = time_embedding(p, t), (z[..., None, None] if z.ndim == 2 else z), []

    def joined(place: str, x: Tensor) -> Tensor:
        return transformer(p.at(f"{place}.0"), x, seen) if seen is not None and p.has(place) else x

    for number in range(count(p, "input_blocks")):
        h = block(p.at(f"input_blocks.{number}"), h, emb, context)
        h = joined(f"input_block_connecters_in.{number}", h)
        skips.append(h)
    h = block(p.at("middle_block"), h, emb, context)
    if repeat:
        skips[-1] = h
    for number in range(count(p, "output_blocks")):
        h = block(p.at(f"output_blocks.{number}"), torch.cat([h, skips.pop()], dim=1), emb, context)
        h = joined(f"output_block_connecters_in.{number}", h)
    h = multi(p.at("out.2"), silu(p.group_norm("out.0", h, 1e-5)), 1)
    return h.reshape(z.shape)


def bert_means(p: Published, ids: Tensor) -> Tensor:
    """Optimus' posterior means (b, d) of token ids (b, n), 0 where there is none."""

    def norm(place: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:], p.get(f"{place}.weight"), p.get(f"{place}.bias"), eps=1e-12)

    table, n = "encoder.embeddings", ids.shape[1]
    x = p.get(f"{table}.word_embeddings.weight")[ids] + p.get(f"{table}.position_embeddings.weight")[:n]
    x = norm(f"{table}.LayerNorm", x + p.get(f"{table}.token_type_embeddings.weight")[0])
    for number in range(LAYERS):
        name = f"encoder.encoder.layer.{number}"
        parts = [
            p.linear(f"{name}.attention.self.{part}", x).chunk(BERT_HEADS, 2) for part in ("query", "key", "value")
        ]
        heads = []
        for q, k, v in zip(*parts, strict=True):
            scores = (q @ k.mT / math.sqrt(q.shape[2])).masked_fill((ids == 0)[:, None], -1e4)
            heads.append(scores.softmax(dim=2) @ v)
        x = norm(
            f"{name}.attention.output.LayerNorm", x + p.linear(f"{name}.attention.output.dense", torch.cat(heads, 2))
        )
        h = p.linear(f"{name}.intermediate.dense", x)
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        x = norm(f"{name}.output.LayerNorm", x + p.linear(f"{name}.output.dense", h))
    return p.linear("encoder.linear", p.linear("encoder.pooler.dense", x[:, 0]).tanh()).chunk(2, dim=1)[0]


def gpt2_logits(p: Published, ids: Tensor, z: Tensor) -> Tensor:
    """Optimus' logits (b, n, vocabulary) of ids (b, n) given z (b, d): z is a key and value of its own in every layer,
    at position 0, and part of every embedding; texts begin at position 1."""
    p, n = p.at("decoder.transformer"), ids.shape[1]

    def norm(place: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:], p.get(f"{place}.weight"), p.get(f"{place}.bias"))

    def dense(place: str, x: Tensor) -> Tensor:
        return x @ p.get(f"{place}.weight") + p.get(f"{place}.bias")

    x = p.get("wte.weight")[ids] + p.get("wpe.weight")[1 : n + 1] + p.linear("linear_emb", z)[:, None]
    memories = p.linear("linear", z)[:, None].chunk(LAYERS, dim=2)  # (b, 1, c) each
    hidden = torch.ones(n, n).triu(1).bool()
    for number, memory in enumerate(memories):
        q, k, v = dense(f"h.{number}.attn.c_attn", norm(f"h.{number}.ln_1", x)).chunk(3, dim=2)
        k, v = torch.cat([memory, k], dim=1), torch.cat([memory, v], dim=1)
        heads = []
        for a, b, c in zip(q.chunk(BERT_HEADS, 2), k.chunk(BERT_HEADS, 2), v.chunk(BERT_HEADS, 2), strict=True):
            scores = a @ b.mT / math.sqrt(a.shape[2])
            scores[:, :, 1:] = scores[:, :, 1:].masked_fill(hidden, -1e4)
            heads.append(scores.softmax(dim=2) @ c)
        x = x + dense(f"h.{number}.attn.c_proj", torch.cat(heads, dim=2))
        h = dense(f"h.{number}.mlp.c_fc", norm(f"h.{number}.ln_2", x))
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + dense(f"h.{number}.mlp.c_proj", h)
    return norm("ln_f", x) @ p.get("wte.weight").mT
