"""Linear layers in float32 on the CPU with oneDNN instead of PyTorch's BLAS, with a fused GELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from torch import Tensor, nn

# A custom operator: torch.compile accepts the one that it calls only with constant weights.
torch.library.define("xgem::onednn_linear", "(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")


@torch.library.impl("xgem::onednn_linear", "CPU")
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    kind, form = ("gelu", "tanh") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], form)


@torch.library.register_fake("xgem::onednn_linear")
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _linear(layer: nn.Linear, x: Tensor, gelu: bool) -> Tensor:
    """``layer(x)``, then the tanh form of GELU if ``gelu``; with oneDNN unless gradients are enabled."""
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
    """``nn.Linear`` with oneDNN where possible."""

    def forward(self, input: Tensor) -> Tensor:
        return _linear(self, input, gelu=False)


class OneDNNGELU(GELU):
    """diffusers' linear layer followed by the tanh form of GELU, fused by oneDNN where possible."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _linear(self.proj, hidden_states, gelu=True)


def install_onednn_linear(module: nn.Module) -> None:
    """Convert the linear layers in ``module`` in place, if PyTorch has oneDNN; weights and names are unchanged."""
    if not torch.backends.mkldnn.is_available():
        return
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = OneDNNLinear
        elif type(child) is GELU and child.approximate == "tanh":
            child.__class__ = OneDNNGELU
