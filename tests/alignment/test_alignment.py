"""What crosses between outputs: everything asked for, nothing else, and nothing at all before training."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from xgem.alignment.cross_attention import attention_sites
from xgem.alignment.environment import EnvironmentEncoder, summary
from xgem.alignment.model import Alignment
from xgem.alignment.unet_blocks import FullyConnected
from xgem.checkpoints.component import component_class
from xgem.configs.preset import load_preset, preset_names
from xgem.generators.fc_unet import FCLevel
from xgem.types import CheckpointError, ShapeError

NAMES = ("frontal", "lateral", "report")
B = 3


@pytest.fixture
def trained(debug_parts: dict[str, Any]) -> Alignment:
    """Random weights everywhere, as if training had happened."""
    alignment = copy.deepcopy(debug_parts["alignment"])
    with torch.no_grad():
        for parameter in alignment.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5)
    return alignment


@pytest.fixture
def fresh(debug_preset: Any) -> Alignment:
    torch.manual_seed(0)
    return Alignment(debug_preset.components["alignment"]).eval()


def latents_of(parts: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(B, *parts[name].latent_shape, generator=draw) for name in NAMES}


@torch.no_grad()
def predictions(parts: dict[str, Any], alignment: Alignment, z: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
    tokens = alignment.tokens(z, t)
    made = {}
    for name, latent in z.items():
        model = parts[name]
        with alignment.seeing(name, model.net, tokens):
            made[name] = model(latent, t, model.null(B))
    return made


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(NAMES, 2)))
def test_each_output_sees_each_other(
    source: str, target: str, debug_parts: dict[str, Any], trained: Alignment, fresh: Alignment
) -> None:
    t = torch.tensor([10, 400, 990])
    z = latents_of(debug_parts)
    moved = z | {source: -z[source]}
    changed = predictions(debug_parts, trained, moved, t)[target] - predictions(debug_parts, trained, z, t)[target]
    assert changed.abs().amax(dim=tuple(range(1, changed.ndim))).min() > 1e-4
    for one, other in ((z, moved), (moved, z)):
        assert torch.equal(
            predictions(debug_parts, fresh, one, t)[target], predictions(debug_parts, fresh, other, t)[target]
        )


def test_fresh_weights_change_nothing(debug_parts: dict[str, Any], fresh: Alignment) -> None:
    t = torch.tensor([10, 400, 990])
    z = latents_of(debug_parts)
    for name, made in predictions(debug_parts, fresh, z, t).items():
        model = debug_parts[name]
        with torch.no_grad():
            assert torch.equal(made, model(z[name], t, model.null(B)))


@pytest.mark.parametrize("name", NAMES)
def test_an_output_never_sees_its_own_tokens(name: str, debug_parts: dict[str, Any], trained: Alignment) -> None:
    model, t = debug_parts[name], torch.tensor([300] * B)
    z = latents_of(debug_parts)
    tokens = trained.tokens(z, t)
    with torch.no_grad():
        with trained.seeing(name, model.net, tokens):
            one = model(z[name], t, model.null(B))
        with trained.seeing(name, model.net, tokens | {name: torch.randn_like(tokens[name])}):
            assert torch.equal(one, model(z[name], t, model.null(B)))


def test_the_hooks_leave_with_the_block(debug_parts: dict[str, Any], trained: Alignment) -> None:
    model, t = debug_parts["frontal"], torch.tensor([300] * B)
    z = latents_of(debug_parts)
    with torch.no_grad():
        before = model(z["frontal"], t, model.null(B))
        with pytest.raises(RuntimeError, match="stop"), trained.seeing("frontal", model.net, trained.tokens(z, t)):
            raise RuntimeError("stop")
        assert torch.equal(before, model(z["frontal"], t, model.null(B)))


@pytest.mark.parametrize("guided", [True, False])
def test_guidance_exaggerates_agreement_only_where_it_is_to(
    guided: bool, debug_parts: dict[str, Any], trained: Alignment
) -> None:
    trained.config = trained.config.model_copy(update={"guided": ("report",) if guided else ("frontal",)})
    model, t = debug_parts["report"], torch.tensor([300])
    z = latents_of(debug_parts)
    twice = torch.cat([z["report"]] * 2)
    blind = model(z["report"], t.expand(B), model.null(B))
    with torch.no_grad(), trained.seeing("report", model.net, trained.tokens(z, t)):
        conditional, unconditional = model(twice, t.expand(2 * B), model.null(2 * B)).chunk(2)
        seeing = model(z["report"], t.expand(B), model.null(B))
    assert not torch.allclose(seeing, blind, atol=1e-3)
    torch.testing.assert_close(conditional, seeing)
    torch.testing.assert_close(unconditional, blind if guided else seeing)


def test_tokens_are_unit_vectors_that_know_the_time() -> None:
    encoder = EnvironmentEncoder((4, 8, 8), width=16, tokens=3, dim=8)
    z = torch.randn(2, 4, 8, 8)
    tokens = encoder(z, torch.tensor([5, 5]))
    assert tokens.shape == (2, 3, 8)
    torch.testing.assert_close(tokens.norm(dim=2), torch.ones(2, 3))
    torch.testing.assert_close(summary(tokens).norm(dim=1), torch.ones(2))
    assert not torch.allclose(tokens, encoder(z, torch.tensor([900, 900])), atol=1e-3)
    with pytest.raises(ShapeError, match="environment encoder"):
        encoder(torch.randn(2, 4, 8, 4), torch.tensor([5, 5]))


def test_another_generator_is_refused(debug_parts: dict[str, Any], trained: Alignment) -> None:
    tokens = trained.tokens(latents_of(debug_parts), torch.tensor([5]))
    with pytest.raises(CheckpointError, match="not of the same model"):
        trained.attention["frontal"].attached(torch.nn.Linear(2, 2), tokens["report"], guided=True).__enter__()  # type: ignore[operator]


@pytest.mark.parametrize("name", [name for name in preset_names() if load_preset(name).alignment])
def test_presets_name_the_sites_of_their_generators(name: str) -> None:
    preset = load_preset(name)
    alignment: Any = preset.components[str(preset.alignment)]
    for output, aligned in alignment.outputs.items():
        config: Any = preset.components[preset.generator(output)]
        if getattr(config, "pretrained", None):
            config = config.model_copy(update={"pretrained": None})
        build: Any = component_class(config.kind)
        with torch.device("meta"):
            generator = build(config)
        if alignment.kind == "alignment":
            assert tuple(block.dim for block in attention_sites(generator.net)) == aligned.sites
        else:
            assert tuple(map(channels, generator.net.joint_sites())) == aligned.sites


def channels(site: Any) -> int:
    """Of the map that a site of a ``transformer_alignment`` gives."""
    if isinstance(site, FullyConnected):
        return site.out_features // site.tokens
    return site.block.norm2.num_channels // site.block.tokens if isinstance(site, FCLevel) else site.out_channels
