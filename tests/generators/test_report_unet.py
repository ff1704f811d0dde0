"""The report denoiser: what its linear layers join, the published size, and settings that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from xgem.checkpoints.component import component_class
from xgem.configs import load_preset
from xgem.configs.components import ReportGeneratorConfig
from xgem.generators.report_unet import ReportUNet, ResidualBlock


def config_of(debug_preset: Any, **changes: Any) -> ReportGeneratorConfig:
    return debug_preset.components["report"].model_copy(update=changes)


@pytest.mark.parametrize("joined", [True, False])
def test_a_fully_connected_block_joins_all_tokens(debug_preset: Any, joined: bool) -> None:
    torch.manual_seed(0)
    config = config_of(debug_preset, fully_connected=joined, tokens=3)
    block = ResidualBlock(16, 32, 8, config)
    # GroupNorm looks at all tokens: its share is taken out, what remains is the linear layers'.
    block._norm = lambda norm, x: x  # type: ignore[method-assign]
    torch.nn.init.normal_(block.fc2.weight)
    x = torch.randn(1, 3, 16, requires_grad=True)
    out = block(x, torch.randn(1, 8))
    assert out.shape == (1, 3, 32)
    out[:, 0].sum().backward()
    assert x.grad is not None
    touched = [bool(x.grad[0, token].abs().sum() > 0) for token in range(3)]
    assert touched == ([True] * 3 if joined else [True, False, False])


def test_the_paper_preset_has_the_published_size() -> None:
    config = load_preset("paper").components["report"]
    with torch.device("meta"):
        model = component_class(config.kind).from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(1_708.9e6, rel=0.02)  # without its transformers' outer projections


def test_levels_attend_where_they_are_told_to(debug_preset: Any) -> None:
    net = ReportUNet(config_of(debug_preset, attention=(True, False)))
    attending = [level.attention is not None for level in net.down if hasattr(level, "attention")]
    assert attending == [True, False]


def test_flags_must_fit_the_levels(debug_preset: Any) -> None:
    values = debug_preset.components["report"].model_dump() | {"attention": (True,)}
    with pytest.raises(ValidationError, match=r"one attention flag per level \(2\)"):
        ReportGeneratorConfig(**values)


def test_separate_tokens_are_parts_of_the_latent_at_places_of_their_own(debug_preset: Any) -> None:
    config = config_of(debug_preset, separate=True, tokens=4, fully_connected=False)
    torch.manual_seed(0)
    net = ReportUNet(config).eval()
    part = config.latent_dim // 4
    assert (net.enter.in_features, net.leave.out_features) == (part, part)
    z = torch.randn(1, config.latent_dim)
    changed = z.clone()
    changed[:, part : 2 * part] += 1
    with torch.no_grad():
        touched = (net._to_tokens(changed) - net._to_tokens(z)).abs().sum(dim=(0, 2)) > 0
        equal = net._to_tokens(z[:, :part].repeat(1, 4))[0]
    assert touched.tolist() == [False, True, False, False]
    assert not torch.allclose(equal[0], equal[1])  # the same sentence at two places


def test_separate_tokens_divide_the_latent(debug_preset: Any) -> None:
    values = debug_preset.components["report"].model_dump() | {"separate": True, "tokens": 3, "latent_dim": 16}
    with pytest.raises(ValidationError, match="latent_dim 16 does not divide into 3 separate tokens"):
        ReportGeneratorConfig(**values)
