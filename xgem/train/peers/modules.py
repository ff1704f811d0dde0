"""What is optimised of a denoiser: all of it, or the weights of its LoRA alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from xgem.train.stage import Frozen


class FullDenoiser(nn.Module):
    """A denoiser that is called with keyword arguments, and returns its prediction alone."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(True)

    def forward(self, **inputs: Any) -> Tensor:
        return self.denoiser(**inputs, return_dict=False)[0]


class LoraDenoiser(nn.Module):
    """As :class:`FullDenoiser`, with the weights of a LoRA as its only ones.

    The denoiser is shared by copies, such as that of averaged weights, and holds the original's weights itself, so that
    activations which are computed again in a backward pass are those of the forward pass.
    """

    def __init__(self, denoiser: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.frozen = Frozen(denoiser=denoiser.requires_grad_(False).eval())
        self.weights = nn.ParameterDict({_key(name): value.requires_grad_(True) for name, value in weights.items()})

    @property
    def named(self) -> dict[str, Tensor]:
        """The weights by their names in the denoiser."""
        return {name.replace("/", "."): value for name, value in self.weights.items()}

    def forward(self, **inputs: Any) -> Tensor:
        return functional_call(self.frozen["denoiser"], self.named, kwargs={**inputs, "return_dict": False})[0]


def _key(name: str) -> str:
    return name.replace(".", "/")  # no dots in names of parameters
