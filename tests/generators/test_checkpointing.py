"""Blocks that compute their activations again: the same losses and gradients from fewer bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from xgem.alignment.model import Alignment
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_component
from xgem.generators.controlnet import ControlNet
from xgem.train.averaging import Average

B = 2
KINDS = {"image": ("debug", "frontal"), "report": ("debug", "report"), "dit": ("debug-chexgen", "frontal_dit")}


def component(preset: str, name: str) -> Any:
    torch.manual_seed(0)
    made = random_component(load_preset(preset).components[name]).train()
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    for parameter in made.parameters():  # the last layers of fresh weights are zero, and let no gradient through
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


def predicted(model: Any) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    z = torch.randn(B, *model.latent_shape, generator=draw)
    return model(z, torch.tensor([10, 500]), model.null(B))


def run(modules: list[nn.Module], forward: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor], int]:
    """Loss, gradients, and the bytes that the forward pass keeps for the backward pass, weights left out."""
    for module in modules:
        module.zero_grad()
    parameters = [p for module in modules for p in module.parameters()]
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(1)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = forward().float().square().mean()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in parameters if p.grad is not None], sum(kept.values())


def compared(modules: list[nn.Module], switch: list[Any], forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes without and with checkpointing, which changes neither loss nor gradients, bitwise."""
    found = []
    for on in (False, True, False):
        for part in switch:
            part.checkpoint_activations(on)
        found.append(run(modules, forward))
    (loss, gradients, plain), (again, repeated, fewer), (_, _, off) = found
    assert torch.equal(loss, again)
    assert len(gradients) == len(repeated) > 5
    assert sum(bool(g.any()) for g in gradients) > 5
    for one, other in zip(gradients, repeated, strict=True):
        assert torch.equal(one, other)
    assert off == plain
    return plain, fewer


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_the_same_from_fewer_bytes(kind: str) -> None:
    model = component(*KINDS[kind])
    plain, fewer = compared([model], [model], lambda: predicted(model))
    assert fewer < 0.6 * plain


def test_dropout_is_drawn_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would see another dropout: without the random state of the forward pass gradients differ."""
    model = component(*KINDS["report"])
    model.checkpoint_activations()
    expected = run([model], lambda: predicted(model))[1]
    own = checkpoint
    path = "xgem.generators.checkpointing.checkpoint"
    monkeypatch.setattr(path, lambda *args, **kwargs: own(*args, preserve_rng_state=False, **kwargs))
    other = run([model], lambda: predicted(model))[1]
    assert not all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def test_it_holds_under_control_whose_hooks_are_gone_by_then() -> None:
    model, settings = component(*KINDS["dit"]), load_preset("debug-chexgen").components["control"]
    control: Any = ControlNet.copying(settings, model.net).train()  # type: ignore[arg-type]
    for layer in control.leave:
        nn.init.normal_(layer.weight, std=0.2)
    annotation = torch.randn(B, *model.latent_shape, generator=torch.Generator().manual_seed(5))

    def forward() -> Tensor:
        with control.steering(model.net, annotation):
            return predicted(model)

    for frozen in (False, True):
        model.requires_grad_(not frozen)
        plain, fewer = compared([model, control], [model, control], forward)
        assert fewer < 0.6 * plain
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["image", "report"])
def test_it_holds_under_an_alignment_whose_hooks_are_gone_by_then(kind: str) -> None:
    name = KINDS[kind][1]
    model = component(*KINDS[kind]).requires_grad_(False)
    torch.manual_seed(3)
    alignment = Alignment(load_preset("debug").components["alignment"])  # type: ignore[arg-type]
    for parameter in alignment.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    shapes = {other: output.latent_shape for other, output in alignment.config.outputs.items()}
    latents = {other: torch.randn(B, *shape) for other, shape in shapes.items()}

    def forward() -> Tensor:
        with alignment.seeing(name, model.net, alignment.tokens(latents, torch.tensor(100))):
            return predicted(model)

    plain, fewer = compared([alignment], [model], forward)
    assert fewer < 0.9 * plain  # what the alignment itself keeps stays


def test_attention_runs_by_the_same_kernels_again() -> None:
    """Mixed precision on a CPU allows one kernel in the forward pass alone; another keeps other tensors."""
    model = component(*KINDS["dit"])

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            return predicted(model)

    compared([model], [model], forward)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_copy_computes_its_own_blocks() -> None:
    """Averaged weights are a copy of the module that is trained."""
    model = component(*KINDS["report"]).eval()
    model.checkpoint_activations()
    other: Any = Average(model, 0.9).module
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not predicted(copy.deepcopy(other)).any()
    assert predicted(model).any()
    assert model.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_without_a_graph_break(kind: str) -> None:
    model = component(*KINDS[kind]).eval()
    z, t, context = torch.randn(B, *model.latent_shape), torch.tensor([10, 500]), model.null(B)
    context = type(context)(context.tokens.detach(), context.mask, context.pooled.detach())
    expected = model.net(z, t, context)
    model.checkpoint_activations()
    compiled: Any = torch.compile(model.net, backend="aot_eager_decomp_partition", fullgraph=True)
    found = compiled(z, t, context)
    torch.testing.assert_close(found, expected)
    gradients = []
    for output in (expected, found):
        model.zero_grad()
        output.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.net.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.compiler.reset()
