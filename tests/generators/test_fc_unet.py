"""The published report denoiser; that it computes the published function is in tests/convert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.published_layout import published_layout
from xgem.configs.components import FCReportGeneratorConfig
from xgem.generators.fc_unet import FCUNet
from xgem.generators.latent_diffusion import FCReportLatentDiffusion
from xgem.types import Context, ShapeError


@pytest.fixture
def config(debug_preset: Any) -> FCReportGeneratorConfig:
    found = published_layout(debug_preset).components["report"]
    assert isinstance(found, FCReportGeneratorConfig)
    return found


def test_fresh_weights_predict_zero_and_every_weight_learns(config: FCReportGeneratorConfig) -> None:
    torch.manual_seed(0)
    model = FCReportLatentDiffusion(config)
    z, t = torch.randn(3, 16), torch.tensor([1, 500, 990])
    assert not bool(model(z, t, model.null(3)).any())
    with torch.no_grad():
        for parameter in model.net.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.1)
    model(z, t, model.null(3)).square().sum().backward()
    still = {name for name, p in model.net.named_parameters() if p.grad is None or not bool(p.grad.any())}
    # One context token: its softmax is 1 whatever query and key are
    assert all(".attn2.to_q" in name or ".attn2.to_k" in name or ".norm2." in name for name in still)


def test_time_and_context_matter(config: FCReportGeneratorConfig) -> None:
    torch.manual_seed(0)
    model = FCReportLatentDiffusion(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        z, null = torch.randn(2, 16), model.null(2)
        base = model(z, torch.tensor([3, 3]), null)
        assert (base - model(z, torch.tensor([900, 900]), null)).abs().max() > 1e-3
        assert (
            base - model(z, torch.tensor([3, 3]), Context(null.tokens + 1, null.mask, null.pooled))
        ).abs().max() > 1e-3


def test_the_middle_takes_the_place_of_the_last_skip_only_if_it_is_told_to(config: FCReportGeneratorConfig) -> None:
    plain = FCUNet(config.model_copy(update={"repeat_middle": False})).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    repeating = FCUNet(config).eval()
    repeating.load_state_dict(plain.state_dict())
    given: list[Any] = []
    context = Context(torch.ones(1, 1, 32), torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 32))
    for net in (plain, repeating):
        net.up[0].register_forward_pre_hook(lambda _, args: given.append(args[0].chunk(2, dim=1)))
        with torch.no_grad():
            net(torch.ones(1, 16), torch.tensor([3]), context)
    (hidden, skip), (first, second) = given
    assert not torch.equal(hidden, skip)
    assert torch.equal(first, hidden)
    assert torch.equal(second, hidden)


def test_wrong_shapes_and_sizes_are_refused(config: FCReportGeneratorConfig) -> None:
    model = FCReportLatentDiffusion(config)
    with pytest.raises(ShapeError, match=r"expected \(b, 16\), got \(2, 8\)"):
        model(torch.zeros(2, 8), torch.tensor([1, 1]), model.null(2))
    values = config.model_dump()
    for wrong, said in (
        ({"attention": (True,)}, r"one attention flag per level \(2\)"),
        ({"heads": 3}, "a width divisible by heads 3, got 16"),
        ({"norm_num_groups": 32}, "a width divisible by norm_num_groups 32, got 16"),
    ):
        with pytest.raises(ValidationError, match=said):
            FCReportGeneratorConfig.model_validate(values | wrong)
