"""The image codec: folding, normalisation, shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from xgem.checkpoints.component import component_class
from xgem.types import ShapeError


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 32, 32) * 2 - 1


def test_there_and_back_has_the_right_shapes(debug_parts: dict[str, Any]) -> None:
    vae = debug_parts["image_vae"]
    with torch.no_grad():
        z = vae.encode(images(2))
        x = vae.decode(z)
    assert z.shape == (2, *vae.latent_shape) == (2, 4, 4, 4)
    assert x.shape == (2, 1, 32, 32)
    assert x.abs().max() <= 1


def test_folding_is_undone_by_unfolding(debug_parts: dict[str, Any]) -> None:
    vae, x = debug_parts["image_vae"], images(2)
    folded = vae._fold(x)
    assert folded.shape == (2, 16, 8, 8)
    torch.testing.assert_close(vae._unfold(folded), x, rtol=0, atol=0)


def test_three_channels_are_repeated_and_averaged(debug_preset: Any) -> None:
    settings = debug_preset.components["image_vae"].model_copy(update={"in_channels": 3, "patch": 1, "shortcut": False})
    vae: Any = component_class(settings.kind).from_config(settings)
    x = images(2)
    folded = vae._fold(x)
    assert folded.shape == (2, 3, 32, 32)
    torch.testing.assert_close(folded, x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(vae._unfold(folded), x)
    assert vae.decode(vae.encode(x)).shape == x.shape


def test_latents_are_normalised(debug_parts: dict[str, Any]) -> None:
    vae, x = copy.deepcopy(debug_parts["image_vae"]), images(3)
    with torch.no_grad():
        mean, _ = vae.moments(x)
        statistics = {
            "latent_mean": tuple(mean.mean(dim=(0, 2, 3)).tolist()),
            "latent_std": tuple(mean.std(dim=(0, 2, 3)).tolist()),
        }
        plain = vae.decode(mean) if vae.config.latent_mean is None else None
        vae.config = vae.config.model_copy(update=statistics)
        z = vae.encode(x)
        torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), rtol=1e-4, atol=1e-4)
        assert plain is not None
        torch.testing.assert_close(vae.decode(z), plain, rtol=1e-4, atol=1e-5)


def test_encoding_is_repeatable(debug_parts: dict[str, Any]) -> None:
    vae, x = debug_parts["image_vae"], images(2)
    with torch.no_grad():
        assert torch.equal(vae.encode(x), vae.encode(x))
        torch.testing.assert_close(vae.encode(x[:1]), vae.encode(x)[:1])


def test_other_shapes_are_refused(debug_parts: dict[str, Any]) -> None:
    vae = debug_parts["image_vae"]
    for shape in [(1, 3, 32, 32), (1, 1, 64, 64), (1, 32, 32)]:
        with pytest.raises(ShapeError, match=r"expected \(b, 1, 32, 32\)"):
            vae.encode(torch.zeros(shape))
    with pytest.raises(ShapeError, match="latents"):
        vae.decode(torch.zeros(1, 4, 8, 8))
