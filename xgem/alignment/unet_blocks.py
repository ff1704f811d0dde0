"""Blocks that CoDi's report denoiser, environment encoders and joint attentions are made of (Tang et al. 2023).

n is the number of tokens that a report latent is spread over; a map of tokens is (b, c, n).
"""

from __future__ import annotations

from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn.functional import silu


def zeroed(module: nn.Linear) -> nn.Linear:
    """``module`` with weights and bias of zero."""
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


class FullyConnected(nn.Linear):
    """A linear layer over all channels of all n tokens at once: (b, c, n) to (b, out, n)."""

    def __init__(self, channels: int, out: int, tokens: int) -> None:
        super().__init__(channels * tokens, out * tokens)
        self.tokens = tokens

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1)).view(input.shape[0], -1, self.tokens)  # exports take any b


class FCBlock(nn.Module):
    """The fully connected residual block of Versatile Diffusion (Xu et al. 2023, section 3.2), from (b, c, n) and a
    time embedding (b, time_dim) to (b, out, n).

    Channels of all tokens count as channels of their own, in normalisation too: its weights differ between tokens. The
    last layer starts at zero.
    """

    def __init__(self, channels: int, out: int, tokens: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels * tokens), nn.GroupNorm(groups, out * tokens)
        self.fc1, self.fc2 = nn.Linear(channels * tokens, out * tokens), zeroed(nn.Linear(out * tokens, out * tokens))
        self.time = nn.Linear(time_dim, out * tokens)
        self.skip = nn.Identity() if channels == out else nn.Linear(channels * tokens, out * tokens)
        self.tokens = tokens

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = x.flatten(1)  # (b, c * n)
        h = self.fc1(silu(self.norm1(x))) + self.time(silu(time))
        h = self.skip(x) + self.fc2(silu(self.norm2(h)))
        return h.view(x.shape[0], -1, self.tokens)


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a map, between two linear layers (Rombach et al. 2022, appendix E.2.1):
    the residual (b, c, ...) for a map (b, c, ...), which attends to itself and to a context (b, m, d).

    Before training the residual is zero.
    """

    def __init__(self, channels: int, heads: int, context_dim: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(channels, channels), zeroed(nn.Linear(channels, channels))
        self.block = BasicTransformerBlock(channels, heads, channels // heads, cross_attention_dim=context_dim)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """``bias`` (b, 1, m) is added to the attention scores of the context."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (b, positions, c)
        h = self.block(h, encoder_hidden_states=context, encoder_attention_mask=bias)
        return self.proj_out(h).transpose(1, 2).reshape(x.shape)
