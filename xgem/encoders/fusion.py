"""Fusion of several prompts into one context (XGeM 2.2, Eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from xgem.types import Context, Encoded, InputError


class ContextFusion(nn.Module):
    """Fuses any subset of a generator's prompts.

    ``tokens`` mode: one learned null token, then the token sequences of all prompts, each projected and summed with a
    learned modality embedding. The pooled vectors are summed for the time embedding, so that a second prompt does not
    weaken the first.
    ``pooled`` mode (as in the paper): the pooled vectors are averaged, and their mean is also the only token.
    Cross-attention over a single token is constant (its softmax is 1), hence the other mode.

    The null context is the null token alone, with a pooled vector of zeros.
    """

    def __init__(self, prompts: tuple[str, ...], mode: str, token_dim: int, pooled_dim: int, width: int) -> None:
        super().__init__()
        self.prompts, self.mode, self.pooled_dim = prompts, mode, pooled_dim
        self.null_token = nn.Parameter(torch.randn(width) * 0.02)
        if mode == "tokens":
            self.project = nn.ModuleDict(
                {name: nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, width)) for name in prompts}
            )
            self.modality = nn.ParameterDict({name: nn.Parameter(torch.randn(width) * 0.02) for name in prompts})
        else:
            self.project = nn.Linear(pooled_dim, width)

    def null(self, batch: int) -> Context:
        """The null context for ``batch`` samples."""
        tokens = self.null_token.expand(batch, 1, -1)
        mask = torch.ones(batch, 1, dtype=torch.bool, device=tokens.device)
        return Context(tokens, mask, tokens.new_zeros(batch, self.pooled_dim))

    def forward(self, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor] | None = None) -> Context:
        """Fuse ``encoded``. ``keep`` (b,) bool per prompt: False drops it for that sample; all dropped gives null."""
        # b batch, p prompts, d pooled width, n tokens, c context width
        unknown = sorted(set(encoded) - set(self.prompts))
        if unknown:
            raise InputError(f"this generator takes prompts {list(self.prompts)}, got {unknown}")
        if not encoded:
            raise InputError("no prompts to fuse: use the null context")
        first = next(iter(encoded.values())).pooled
        kept = {
            name: first.new_ones(len(first), dtype=torch.bool) if keep is None else keep[name].to(first.device)
            for name in encoded
        }
        weight = torch.stack([kept[name] for name in encoded]).to(first.dtype)  # (p, b): alpha before scaling
        vectors = torch.stack([item.pooled for item in encoded.values()])  # (p, b, d)
        pooled = (weight[..., None] * vectors).sum(0)  # (b, d)
        if self.mode == "pooled":
            pooled = pooled / weight.sum(0).clamp(min=1)[:, None]  # Eq. 2, alpha equal
            token = torch.where(weight.sum(0)[:, None] > 0, self.project(pooled), self.null_token)  # (b, c)
            return Context(token[:, None], weight.new_ones(len(first), 1, dtype=torch.bool), pooled)
        # Tokens mode: the null token first, then each prompt's tokens; dropped prompts are masked, not removed
        null, projections = self.null(len(first)), cast(nn.ModuleDict, self.project)
        tokens, masks = [null.tokens], [null.mask]
        for name, item in encoded.items():
            tokens.append(projections[name](item.tokens) + self.modality[name])  # (b, n, c)
            masks.append(item.mask & kept[name][:, None])  # (b, n)
        return Context(torch.cat(tokens, dim=1), torch.cat(masks, dim=1), pooled)


def fill(context: Context, width: int) -> Context:
    """Pad a context with masked tokens to ``width`` tokens in total."""
    lacking = width - context.tokens.shape[1]
    tokens, mask = nn.functional.pad(context.tokens, (0, 0, 0, lacking)), nn.functional.pad(context.mask, (0, lacking))
    return Context(tokens, mask, context.pooled)


def stack(contexts: Sequence[Context], width: int = 0) -> Context:
    """Contexts as one batch, padded to ``width`` tokens or to the longest context, whichever is more."""
    width = max(width, *(context.tokens.shape[1] for context in contexts))
    filled = [fill(context, width) for context in contexts]
    return Context(
        torch.cat([context.tokens for context in filled]),
        torch.cat([context.mask for context in filled]),
        torch.cat([context.pooled for context in filled]),
    )
