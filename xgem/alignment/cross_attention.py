"""How a generator looks at the other outputs: cross-attention to their environment tokens (XGeM 2.3, Eq. 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from xgem.types import CheckpointError


def attention_sites(denoiser: nn.Module) -> list[BasicTransformerBlock]:
    """The transformer blocks of a denoiser, in a fixed order: each is followed by one more cross-attention."""
    return [module for module in denoiser.modules() if isinstance(module, BasicTransformerBlock)]


class EnvironmentAttention(nn.Module):
    """What hidden states (b, n, c) gain from attention to tokens (b, m, d): nothing before training."""

    def __init__(self, channels: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.leave = nn.Linear(dim, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        query, key, value = (  # (b, heads, n or m, d / heads)
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(self.norm(hidden)), *self.key_value(tokens).chunk(2, dim=2))
        )
        return self.leave(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class EnvironmentAttentions(nn.Module):
    """All of one generator's attentions to the other outputs.

    Args:
        sites: hidden channels at each of the denoiser's ``attention_sites``.
        sources: names of the outputs it may look at; each has a learned mark, added to its tokens.
    """

    def __init__(self, sites: tuple[int, ...], sources: tuple[str, ...], dim: int, heads: int) -> None:
        super().__init__()
        self.sites = nn.ModuleList([EnvironmentAttention(channels, dim, heads) for channels in sites])
        self.marks = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in sources})

    def marked(self, environment: dict[str, Tensor]) -> Tensor:
        """The other outputs' tokens (b, n, d) each, as one sequence (b, m, d)."""
        scale = next(iter(environment.values())).shape[2] ** 0.5  # unit tokens at unit variance
        return torch.cat([tokens * scale + self.marks[name] for name, tokens in environment.items()], dim=1)

    @contextmanager
    def attached(self, denoiser: nn.Module, tokens: Tensor, *, guided: bool) -> Iterator[None]:
        """Within this block ``denoiser`` attends to ``tokens`` (b', m, d), from ``marked``.

        Where a batch is longer than ``tokens``, classifier-free guidance has its unconditional half behind them. If
        ``guided``, that attends to nothing, so that guidance exaggerates what the tokens say; otherwise to the same.
        """
        blocks = attention_sites(denoiser)
        if len(blocks) != len(self.sites):
            raise CheckpointError(
                f"the alignment attends at {len(self.sites)} places, this generator has {len(blocks)}: "
                "they are not of the same model"
            )

        def hook(site: nn.Module) -> Any:
            def add(block: nn.Module, args: Any, hidden: Tensor) -> Tensor:
                del block, args
                if not guided:
                    return hidden + site(hidden, tokens.repeat(len(hidden) // len(tokens), 1, 1))
                # Only the conditional half sees the tokens
                seeing = hidden[: len(tokens)]
                added = seeing + site(seeing, tokens)
                return added if len(tokens) == len(hidden) else torch.cat([added, hidden[len(tokens) :]])

            return add

        handles = [block.register_forward_hook(hook(site)) for block, site in zip(blocks, self.sites, strict=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
