"""Caches for sampling: keys and values of a context, its pooled embedding, and the time embeddings of all steps are
computed once per request instead of once per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn


def _heads(layer: nn.Module | None, x: Tensor, heads: int) -> Tensor:
    """``layer(x)``, x (b, n, c), split into heads: (b, heads, n, width / heads)."""
    assert layer is not None  # only in attention types that no xgem model uses
    b, n, _ = x.shape
    return layer(x).view(b, n, heads, -1).transpose(1, 2)


class ContextCachingProcessor:
    """Scaled dot-product attention for diffusers' ``Attention``. Inside ``reused_context``, the keys and values of a
    context are reused as long as the same tensor object is passed."""

    def __init__(self) -> None:
        self.enabled = False
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def switch(self, enabled: bool) -> None:
        self.enabled, self._kept = enabled, None

    def _keys_values(self, attn: Attention, source: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._kept
        if kept is not None and kept[0] is source:
            return kept[1], kept[2]
        key, value = _heads(attn.to_k, source, attn.heads), _heads(attn.to_v, source, attn.heads)
        if self.enabled:
            self._kept = (source, key, value)
        return key, value

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        b, n, _ = hidden_states.shape
        query = _heads(attn.to_q, hidden_states, attn.heads)  # (b, heads, n, width / heads)
        if encoder_hidden_states is None:
            key, value = (_heads(layer, hidden_states, attn.heads) for layer in (attn.to_k, attn.to_v))
        else:
            key, value = self._keys_values(attn, encoder_hidden_states)
        if attention_mask is not None:
            attention_mask = attention_mask.view(b, 1, -1, attention_mask.shape[-1]).to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        out = out.transpose(1, 2).reshape(b, n, -1)  # (b, n, width)
        assert attn.to_out is not None
        return attn.to_out[1](attn.to_out[0](out))


class PooledEmbedding(TimestepEmbedding):
    """The MLP from the pooled context (b, d) to the time embedding's space; cached like the keys and values above."""

    enabled = False
    _kept: tuple[Tensor, Tensor] | None = None

    def switch(self, enabled: bool) -> None:
        self.enabled, self._kept = enabled, None

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        kept = self._kept
        if kept is not None and kept[0] is sample:
            return kept[1]
        embedded = super().forward(sample, condition)
        if self.enabled:
            self._kept = (sample, embedded)
        return embedded


class TimeEmbedding(TimestepEmbedding):
    """The MLP of the sinusoidal time embedding; inside ``reused_context``, a lookup in a table of all steps."""

    _table: Tensor | None = None
    _row: Tensor | None = None

    def prepare(self, timesteps: Tensor | None) -> None:
        """Embed all timesteps (n,) of a request at once; None clears the table."""
        self._table = self._row = None
        if timesteps is not None:
            weight = self.linear_1.weight
            waves = get_timestep_embedding(
                timesteps, weight.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0
            )  # as both denoisers' Timesteps
            self._table = super().forward(waves.to(weight.device, weight.dtype))

    def at(self, step: int) -> None:
        assert self._table is not None
        self._row = self._table[step]  # a tensor: given the step number, torch.compile would recompile every step

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        if self._row is not None:
            return self._row.expand(len(sample), -1)
        return super().forward(sample, condition)


def install_context_cache(module: nn.Module) -> None:
    """Set the caching processor on every ``Attention`` in ``module``."""
    for child in module.modules():
        if isinstance(child, Attention):
            child.set_processor(cast(Any, ContextCachingProcessor()))  # annotated for diffusers' own processors only


@contextmanager
def reused_context(module: nn.Module, timesteps: Tensor) -> Iterator[Callable[[int], None]]:
    """Within this block, contexts are projected once and ``timesteps`` (n,) embedded once.

    Yields a function to call with the step number before each step. For inference only: the weights must not change
    inside the block. With gradients enabled, nothing is cached.
    """
    if torch.is_grad_enabled():
        yield lambda step: None
        return
    parts = [child.processor if isinstance(child, Attention) else child for child in module.modules()]
    caches = [part for part in parts if isinstance(part, ContextCachingProcessor | PooledEmbedding)]
    times = [part for part in parts if isinstance(part, TimeEmbedding)]

    def at(step: int) -> None:
        for time in times:
            time.at(step)

    try:
        for cache in caches:
            cache.switch(True)
        for time in times:
            time.prepare(timesteps)
        yield at
    finally:
        for cache in caches:
            cache.switch(False)
        for time in times:
            time.prepare(None)
