"""V and the joint attentions with published layers: what crosses, what does not, and nothing before training."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.published_layout import published_layout
from xgem.alignment.model import TransformerAlignment
from xgem.configs.preset import Preset
from xgem.convert.random_init import random_component
from xgem.types import CheckpointError, ConfigError, ShapeError

NAMES = ("frontal", "lateral", "report")
B = 3
T = torch.tensor([10, 400, 990])


@pytest.fixture(scope="module")
def preset(debug_preset: Preset) -> Preset:
    return published_layout(debug_preset)


@pytest.fixture(scope="module")
def parts(preset: Preset) -> dict[str, Any]:
    """With random weights in evaluation mode, in the alignment large ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {name: random_component(preset.components[name]) for name in (*NAMES, "alignment")}
        with torch.no_grad():
            for parameter in made["alignment"].parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return made


def like(alignment: Any, **changes: Any) -> TransformerAlignment:
    """The same weights with other settings."""
    made = TransformerAlignment(alignment.config.model_copy(update=changes)).eval()
    made.load_state_dict(alignment.state_dict())
    return made


def latents_of(parts: dict[str, Any]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(B, *parts[name].latent_shape, generator=draw) for name in NAMES}


@torch.no_grad()
def predictions(parts: dict[str, Any], alignment: Any, z: dict[str, Tensor], seen: dict[str, Tensor]) -> dict[str, Any]:
    """Of latents ``z``, while V is that of the latents ``seen``."""
    tokens, made = alignment.tokens(seen, T), {}
    for name, latent in z.items():
        with alignment.seeing(name, parts[name].net, tokens):
            made[name] = parts[name](latent, T, parts[name].null(B))
    return made


@pytest.mark.parametrize(("attends", "source"), list(itertools.product(("own", "others"), NAMES)))
def test_outputs_see_v_of_their_own_or_of_all_others(attends: str, source: str, parts: dict[str, Any]) -> None:
    alignment, z = like(parts["alignment"], attends=attends), latents_of(parts)
    before, after = (predictions(parts, alignment, z, seen) for seen in (z, z | {source: -z[source]}))
    for name in NAMES:
        assert bool((before[name] != after[name]).any()) == ((name == source) == (attends == "own"))


def test_fresh_weights_change_nothing(preset: Preset, parts: dict[str, Any]) -> None:
    fresh: Any = TransformerAlignment(preset.components["alignment"]).eval()  # type: ignore[arg-type]
    z = latents_of(parts)
    made = predictions(parts, fresh, z, z)
    with torch.no_grad():
        for name, latent in z.items():
            assert torch.equal(made[name], parts[name](latent, T, parts[name].null(B)))


@torch.no_grad()
@pytest.mark.parametrize("guided", [True, False])
def test_the_unconditional_half_sees_the_others_unless_they_are_guided(guided: bool, parts: dict[str, Any]) -> None:
    alignment = like(parts["alignment"], guided=NAMES if guided else ())
    z = latents_of(parts)
    tokens = alignment.tokens(z, T)
    for name in NAMES:
        model, twice = parts[name], torch.cat([z[name]] * 2)
        alone = model(twice, T.repeat(2), model.null(2 * B))
        with alignment.seeing(name, model.net, tokens):
            coupled = model(twice, T.repeat(2), model.null(2 * B))
        assert not torch.equal(coupled[:B], alone[:B])
        assert torch.equal(coupled[B:], alone[B:]) == guided


def test_tokens_are_unit_vectors_that_know_the_time(parts: dict[str, Any]) -> None:
    z = latents_of(parts)
    with torch.no_grad():
        tokens, later = (parts["alignment"].tokens(z, torch.tensor([t])) for t in (5, 900))
    for name in NAMES:
        assert tokens[name].shape == (B, 1, 24)
        torch.testing.assert_close(tokens[name].norm(dim=2), torch.ones(B, 1))
        assert (tokens[name] - later[name]).abs().max() > 1e-3
    with pytest.raises(ShapeError, match="environment encoder"):
        parts["alignment"].tokens({"report": z["frontal"]}, T)


def test_generators_of_another_kind_are_refused(debug_parts: dict[str, Any], parts: dict[str, Any]) -> None:
    tokens = parts["alignment"].tokens(latents_of(parts), T)
    with (
        pytest.raises(CheckpointError, match="not in a ReportUNet: they are not of the same model"),
        parts["alignment"].seeing("report", debug_parts["report"].net, tokens),
    ):
        pass


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 24}, "half the width divisible by norm_num_groups 8, got width 24"),
        ({"heads": 3}, r"channels of sites divisible by 3 heads, got \[16, 32\]"),
        ({"attends": "own", "guided": ["report"]}, "has nothing to be guided by"),
        ({"outputs": {"report": {"latent_shape": [7], "sites": [16]}}}, r"takes report latents \(7,\), they are"),
    ],
)
def test_settings_that_do_not_fit(debug_preset: Preset, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        published_layout(debug_preset, **wrong)
