"""Linear layers by oneDNN give what PyTorch's own give, and leave alone what they cannot serve."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from xgem.generators.onednn_linear import OneDNNGELU, OneDNNLinear, install_onednn_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


class Calls(TorchDispatchMode):
    """How often the operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.xgem.onednn_linear.default
        return func(*args, **(kwargs or {}))


def layers(bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """The same layers, PyTorch's own and by oneDNN."""
    torch.manual_seed(0)
    plain = nn.Sequential(GELU(24, 40, approximate="tanh", bias=bias), nn.Linear(40, 8, bias=bias))
    fast = deepcopy(plain)
    install_onednn_linear(fast)
    return plain, fast


def counted(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    with Calls() as calls:
        return module(x), calls.count


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 7, 24)])
@torch.no_grad()
def test_it_gives_what_pytorch_gives(bias: bool, shape: tuple[int, ...]) -> None:
    plain, fast = layers(bias)
    x = torch.randn(shape)
    made, calls = counted(fast, x)
    assert calls == 2
    torch.testing.assert_close(made, plain(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_views_are_read_as_they_are() -> None:
    plain, fast = layers()
    row = torch.randn(24)
    for x in (torch.randn(24, 3, 2).permute(2, 1, 0), row.expand(4, -1)):
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)


def test_gradients_are_pytorchs_own() -> None:
    plain, fast = layers()
    x = torch.randn(3, 24)
    made, calls = counted(fast, x)
    assert calls == 0
    made.square().sum().backward()
    plain(x).square().sum().backward()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@torch.no_grad()
def test_other_precisions_are_pytorchs_own() -> None:
    plain, fast = layers()
    x = torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        made, calls = counted(fast, x)
        assert made.dtype == torch.bfloat16
        assert torch.equal(made, plain(x))
    assert calls == 0
    made, calls = counted(fast.double(), x.double())
    assert calls == 0
    assert torch.equal(made, plain.double()(x.double()))


def test_weights_and_other_layers_stay() -> None:
    plain, fast = layers()
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert [type(child) for child in fast.modules()] == [nn.Sequential, OneDNNGELU, OneDNNLinear, OneDNNLinear]
    exact = GELU(4, 4)
    install_onednn_linear(exact)
    assert type(exact) is GELU


@pytest.mark.parametrize("bias", [True, False])
def test_the_compiler_may_take_it(bias: bool) -> None:
    """Its shapes, without its values, are right."""
    layer = layers(bias)[1][1]  # type: ignore[index]
    arguments = (torch.randn(2, 3, 40), *(p.detach() for p in layer.parameters()))
    checks = torch.library.opcheck(torch.ops.xgem.onednn_linear.default, (*arguments, *[None] * (not bias), True))
    assert set(checks) >= {"test_schema", "test_faketensor"}
    assert set(checks.values()) == {"SUCCESS"}
