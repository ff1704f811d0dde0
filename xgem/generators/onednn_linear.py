"""Linear layers in float32 on the CPU by oneDNN, where PyTorch would call its BLAS; a GELU in the same pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from torch import Tensor, nn

# An operator of its own: torch.compile takes the one it calls with constant weights only.
torch.library.define("xgem::onednn_linear", "(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")


@torch.library.impl("xgem::onednn_linear", "CPU")
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    kind, form = ("gelu", "tanh") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], form)


@torch.library.register_fake("xgem::onednn_linear")
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _linear(layer: nn.Linear, x: Tensor, gelu: bool) -> Tensor:
    """``layer`` of x, with ``gelu`` through GELU in its tanh form; by oneDNN where there are no gradients."""
    weight, bias = layer.weight, layer.bias
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        return torch.ops.xgem.onednn_linear(x, weight, bias, gelu)
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


class OneDNNLinear(nn.Linear):
    """``nn.Linear``, by oneDNN where it may."""

    def forward(self, input: Tensor) -> Tensor:
        return _linear(self, input, gelu=False)


class OneDNNGELU(GELU):
    """diffusers' linear layer with the tanh form of GELU behind it, both by oneDNN where it may."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _linear(self.proj, hidden_states, gelu=True)


def install_onednn_linear(module: nn.Module) -> None:
    """Make the linear layers below ``module`` such ones, if this PyTorch has oneDNN. Weights and their names stay."""
    if not torch.backends.mkldnn.is_available():
        return
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = OneDNNLinear
        elif type(child) is GELU and child.approximate == "tanh":
            child.__class__ = OneDNNGELU
