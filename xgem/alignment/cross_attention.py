"""Cross-attention of a generator to the environment tokens of the other outputs (XGeM 2.3, Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from xgem.types import CheckpointError


@runtime_checkable
class Exported(Protocol):
    """A denoiser that is run by another library, which hooks do not reach (``xgem.generators.onnx_denoiser``)."""

    def attending(self, coupling: Couplings, tokens: Tensor, *, guided: bool) -> AbstractContextManager[None]: ...


def attention_sites(denoiser: nn.Module) -> list[BasicTransformerBlock]:
    """The transformer blocks of a denoiser, in a fixed order; an environment attention follows each."""
    return [module for module in denoiser.modules() if isinstance(module, BasicTransformerBlock)]


class EnvironmentAttention(nn.Module):
    """Hidden states (b, n, c) and tokens (b, m, d) to a residual (b, n, c), which is zero before training."""

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


class Couplings(nn.Module):
    """The couplings of one generator to environment tokens: one of ``sites`` after each of its ``blocks``.

    A site maps hidden states (b, ...) and tokens (b, m, d) to a residual of the hidden states' shape.
    """

    sites: nn.ModuleList

    def blocks(self, denoiser: nn.Module) -> Sequence[nn.Module]:
        """The modules of ``denoiser`` after which a site follows, in order."""
        raise NotImplementedError

    @contextmanager
    def attached(self, denoiser: nn.Module, tokens: Tensor, *, guided: bool) -> Iterator[None]:
        """Within this block ``denoiser`` attends to ``tokens`` (b', m, d), from ``marked``.

        A batch larger than ``tokens`` has the unconditional half of classifier-free guidance last. If ``guided``, that
        half does not attend, so that guidance also amplifies the tokens; otherwise it attends to the same tokens.
        """
        if isinstance(denoiser, Exported):
            with denoiser.attending(self, tokens, guided=guided):
                yield
            return

        def add(site: nn.Module, hidden: Tensor) -> Tensor:
            if not guided:
                return hidden + site(hidden, tokens.repeat(len(hidden) // len(tokens), 1, 1))
            # Only the conditional half attends to the tokens
            conditional = hidden[: len(tokens)]  # (b', ...)
            coupled = conditional + site(conditional, tokens)
            return coupled if len(tokens) == len(hidden) else torch.cat([coupled, hidden[len(tokens) :]])

        with self._after_blocks(denoiser, add):
            yield

    @contextmanager
    def weighted(self, denoiser: nn.Module, tokens: Tensor, attends: Tensor) -> Iterator[None]:
        """As ``attached``, with tokens (b, m, d) for every row of the batch and weights ``attends`` (b,), without any
        step that depends on a size: for exports."""

        def add(site: nn.Module, hidden: Tensor) -> Tensor:
            return hidden + attends.view(-1, *[1] * (hidden.ndim - 1)) * site(hidden, tokens)

        with self._after_blocks(denoiser, add):
            yield

    @contextmanager
    def _after_blocks(self, denoiser: nn.Module, add: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
        """Within this block ``add(site, hidden)`` changes the hidden states (b, ...) that each block returns."""
        blocks = self.blocks(denoiser)
        if len(blocks) != len(self.sites):
            raise CheckpointError(
                f"the alignment attends after {len(self.sites)} blocks, but this generator has {len(blocks)}: "
                "they are not of the same model"
            )

        def hook(site: nn.Module) -> Any:
            # diffusers' transformers return a tuple of one
            return lambda block, args, out: (add(site, out[0]),) if isinstance(out, tuple) else add(site, out)

        handles = [block.register_forward_hook(hook(site)) for block, site in zip(blocks, self.sites, strict=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class EnvironmentAttentions(Couplings):
    """All attentions of one generator to the other outputs.

    Args:
        sites: hidden channels at each of the denoiser's ``attention_sites``.
        sources: names of the outputs that it can attend to; a learned embedding of each is added to its tokens.
    """

    def __init__(self, sites: tuple[int, ...], sources: tuple[str, ...], dim: int, heads: int) -> None:
        super().__init__()
        self.sites = nn.ModuleList([EnvironmentAttention(channels, dim, heads) for channels in sites])
        self.marks = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in sources})

    def blocks(self, denoiser: nn.Module) -> Sequence[nn.Module]:
        return attention_sites(denoiser)

    def marked(self, environment: dict[str, Tensor]) -> Tensor:
        """Tokens (b, n, d) of each other output as one sequence (b, m, d), source embeddings added."""
        scale = next(iter(environment.values())).shape[2] ** 0.5  # unit tokens at unit variance
        return torch.cat([tokens * scale + self.marks[name] for name, tokens in environment.items()], dim=1)
