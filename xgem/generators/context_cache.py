"""What is known before the first denoising step is computed once: a context's keys and values, its pooled embedding,
and the time embeddings of all steps."""

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
    """``layer`` of x (b, n, c) as (b, heads, n, width / heads)."""
    assert layer is not None  # diffusers leaves some out in kinds of attention that no xgem model has
    b, n, _ = x.shape
    return layer(x).view(b, n, heads, -1).transpose(1, 2)


class ContextCachingProcessor:
    """Scaled dot-product attention for diffusers' ``Attention``; inside ``reused_context`` the keys and values of a
    context tensor are kept as long as the very same tensor comes again."""

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
    """The MLP that takes the pooled context to the time embedding's space; kept like the keys and values above."""

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
    """The MLP of the sinusoidal time embedding; inside ``reused_context`` looked up, all steps from one call."""

    _table: Tensor | None = None
    _row: Tensor | None = None

    def prepare(self, timesteps: Tensor | None) -> None:
        """Embed the timesteps (n,) of a request; None forgets them."""
        self._table = self._row = None
        if timesteps is not None:
            weight = self.linear_1.weight
            waves = get_timestep_embedding(
                timesteps, weight.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0
            )  # as both denoisers' Timesteps
            self._table = super().forward(waves.to(weight.device, weight.dtype))

    def at(self, step: int) -> None:
        assert self._table is not None
        self._row = self._table[step]  # not the number: a compiled transformer would be compiled for every step

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        if self._row is not None:
            return self._row.expand(len(sample), -1)
        return super().forward(sample, condition)


def install_context_cache(module: nn.Module) -> None:
    """Give every ``Attention`` below ``module`` the caching processor."""
    for child in module.modules():
        if isinstance(child, Attention):
            child.set_processor(cast(Any, ContextCachingProcessor()))  # diffusers' annotation lists its own only


@contextmanager
def reused_context(module: nn.Module, timesteps: Tensor) -> Iterator[Callable[[int], None]]:
    """Within this block, contexts are projected once and ``timesteps`` (n,) embedded once.

    Yields a function to call with the number of each step before it. Only for inference: nothing may change the weights
    meanwhile.
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
