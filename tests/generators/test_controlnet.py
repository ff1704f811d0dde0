"""Control by an annotation image: nothing before training, everything after it, and the transformer untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.generators.test_dit import caption, inputs, model_of
from xgem.configs.components import ControlNetConfig
from xgem.generators.controlnet import ControlNet
from xgem.generators.sampling import Control, Output, guided, sample, sample_together
from xgem.types import CheckpointError, ShapeError

CONFIG = ControlNetConfig(annotations=("mask",), blocks=2, latent_shape=(4, 8, 8), width=32, heads=2)


def control_of(model: Any, *, trained: bool = True) -> ControlNet:
    control = ControlNet.copying(CONFIG, model.net)
    if trained:
        torch.manual_seed(3)
        for layer in (control.enter, *control.leave):
            torch.nn.init.normal_(layer.weight, std=0.5)  # type: ignore[arg-type]
    return control.eval()


def annotation(seed: int = 5, b: int = 3) -> torch.Tensor:
    return torch.randn(b, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_it_starts_as_a_copy_that_changes_nothing() -> None:
    model = model_of()
    control = control_of(model, trained=False)
    (z, t), context = inputs(), model.fuse(caption())
    with torch.no_grad():
        free = model(z, t, context)
        with control.steering(model.net, annotation()):
            assert torch.equal(model(z, t, context), free)
        assert torch.equal(model(z, t, context), free)
    first = model.net.pixart.transformer_blocks[0].state_dict()
    assert all(torch.equal(value, first[key]) for key, value in control.blocks[0].state_dict().items())


def test_fresh_patches_read_drawings_as_if_they_were_standardised() -> None:
    drawings = 3 + annotation() * torch.tensor([0.1, 0.5, 1.0, 2.0])[:, None, None]  # (3, 4, 8, 8)
    control = control_of(model_of(), trained=False)
    mean = drawings.mean(dim=(0, 2, 3), keepdim=True)
    deviation = ((drawings - drawings.mean(dim=0)) ** 2).mean(dim=(0, 2, 3)).sqrt()[:, None, None]
    with torch.no_grad():
        expected = control.patches((drawings - mean) / deviation)
        control.standardise(drawings)
        torch.testing.assert_close(control.patches(drawings), expected, rtol=1e-4, atol=1e-4)
        control.standardise(torch.ones(2, 4, 8, 8))
        assert torch.isfinite(control.patches(drawings)).all()


def test_the_annotation_and_its_scale_matter() -> None:
    model = model_of()
    control = control_of(model)
    (z, t), context = inputs(), model.fuse(caption())

    def predicted(seed: int, scale: Any = 1.0) -> torch.Tensor:
        with torch.no_grad(), control.steering(model.net, annotation(seed), scale):
            return model(z, t, context)

    with torch.no_grad():
        free = model(z, t, context)
    assert not torch.allclose(predicted(5), predicted(6), atol=1e-3)
    torch.testing.assert_close(predicted(5, 0.0), free)
    mixed = predicted(5, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(mixed[[0, 2]], free[[0, 2]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], predicted(5)[1], rtol=1e-5, atol=1e-5)


def test_guidance_strengthens_the_annotation_too() -> None:
    model = model_of()
    control = control_of(model)
    (z, _), context, t = inputs(), model.fuse(caption()), torch.tensor(500)
    with torch.no_grad():
        null = model(z, t.expand(3), model.null(3))
    with torch.no_grad(), control.steering(model.net, annotation()):
        conditional = model(z, t.expand(3), context)
        both = guided(model, context, 2.0)(z, t)
    torch.testing.assert_close(both, null + 2 * (conditional - null), rtol=1e-4, atol=1e-4)


def test_gradient_reaches_the_control_alone() -> None:
    model = model_of(gradient_checkpointing=True).train().requires_grad_(False)
    control = control_of(model).train()
    (z, t), context = inputs(), model.fuse(caption())
    with control.steering(model.net, annotation()):
        model(z, t, context).square().mean().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in control.leave.parameters())
    assert control.enter.weight.grad is not None
    assert control.enter.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = model_of(gradient_checkpointing=checkpointing).train()
        control = control_of(model).train()
        (z, t), context = inputs(), model.fuse(caption())
        with control.steering(model.net, annotation()):
            loss = model(z, t, context).square().mean()
        loss.backward()  # as in training: after the forward pass, which alone is steered
        gradients.append([p.grad for p in control.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_control_ends_where_it_is_told_to() -> None:
    model = model_of()
    control = control_of(model)
    context, noise = model.fuse(caption()), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))

    def made(end: float, seed: int = 5) -> torch.Tensor:
        output = Output(model, context, noise, control=Control(control, annotation(seed), end=end))
        return sample_together({"frontal": output}, num_inference_steps=4)["frontal"]

    free = sample(model, context, noise, num_inference_steps=4, guidance_scale=1.0)
    assert torch.equal(made(0.0), free)
    assert not torch.allclose(made(0.5), free, atol=1e-3)
    assert not torch.allclose(made(0.5), made(1.0), atol=1e-3)


def test_wrong_input() -> None:
    model = model_of()
    control = control_of(model)
    with pytest.raises(ShapeError, match="ControlNet: expected"), control.steering(model.net, torch.zeros(1, 4, 8, 4)):
        pass
    short = model_of(depth=2)
    with pytest.raises(CheckpointError, match="not of the same model"), control.steering(short.net, annotation()):
        pass
