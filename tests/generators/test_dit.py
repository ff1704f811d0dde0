"""The diffusion transformer against diffusers' own PixArt model, and what it makes of captions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.activations import GELU
from torch import Tensor, nn

from xgem.configs.components import DiTGeneratorConfig
from xgem.convert.random_init import random_component
from xgem.generators.latent_diffusion import DiTLatentDiffusion
from xgem.generators.onednn_linear import OneDNNGELU, OneDNNLinear
from xgem.generators.sampling import sample
from xgem.types import Context, Encoded, InputError, ShapeError

SETTINGS: dict[str, Any] = {
    "modality": "frontal", "prompts": ("report",), "context_dim": 12, "pooled_dim": 8, "latent_shape": (4, 8, 8),
    "width": 32, "depth": 3, "heads": 2, "caption_tokens": 6, "diffusion": {"beta_schedule": "linear"},
}  # fmt: skip
B = 3


def model_of(**changes: Any) -> DiTLatentDiffusion:
    torch.manual_seed(0)
    model: Any = random_component(DiTGeneratorConfig(**(SETTINGS | changes)))
    return model


def caption(n: int = 5, seed: int = 1) -> dict[str, Encoded]:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(n)[None] < torch.tensor([n, 2, 3])[:, None]
    return {"report": Encoded(torch.zeros(B, 8), torch.randn(B, n, 12, generator=draw), mask)}


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(B, 4, 8, 8, generator=draw), torch.tensor([3, 500, 990])


@pytest.mark.parametrize("learned_sigma", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_it_is_the_pixart_of_diffusers(learned_sigma: bool, scale: float) -> None:
    model = model_of(learned_sigma=learned_sigma, position_scale=scale)
    theirs = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8 if learned_sigma else 4,
        num_layers=3, cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=12,
        use_additional_conditions=False, interpolation_scale=scale,  # type: ignore[arg-type]
    )  # fmt: skip
    own = {f"caption_projection.{key}": value for key, value in model.fusion.project.state_dict().items()}  # type: ignore[attr-defined]
    theirs.load_state_dict(model.net.pixart.state_dict() | own)
    (z, t), encoded = inputs(), caption()
    with torch.no_grad():
        expected = theirs(
            z,
            encoder_hidden_states=encoded["report"].tokens,
            timestep=t,
            encoder_attention_mask=encoded["report"].mask,
            return_dict=False,
        )[0]
        context = model.fuse(encoded)
        torch.testing.assert_close(model.net.predict(z, t, context), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(z, t, context), expected[:, :4], rtol=1e-5, atol=1e-5)


def test_all_its_linear_layers_run_by_onednn() -> None:
    layers = [layer for layer in model_of().net.modules() if isinstance(layer, nn.Linear | GELU)]
    assert {type(layer) for layer in layers} == {OneDNNLinear, OneDNNGELU}


def test_dropped_captions_are_the_learned_one() -> None:
    model = model_of()
    (z, t), encoded = inputs(), caption()
    keep = {"report": torch.tensor([True, False, True])}
    with torch.no_grad():
        mixed, kept, null = model(z, t, model.fuse(encoded, keep)), model(z, t, model.fuse(encoded)), model.null(B)
        unconditional = model(z, t, null)
    torch.testing.assert_close(mixed[[0, 2]], kept[[0, 2]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], unconditional[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(kept[1], unconditional[1], atol=1e-3)


def test_hidden_tokens_say_nothing_and_shown_ones_do() -> None:
    model = model_of()
    (z, t), encoded = inputs(), caption()
    item = encoded["report"]
    hidden = item.tokens.masked_fill(~item.mask[..., None], 7.0)
    shown = item.tokens.clone()
    shown[:, 0] = 7.0
    with torch.no_grad():
        outputs = [
            model(z, t, model.fuse({"report": Encoded(item.pooled, tokens, item.mask)}))
            for tokens in (item.tokens, hidden, shown)
        ]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)


def test_long_captions_are_cut_and_short_ones_filled() -> None:
    model, long = model_of(), caption(9)["report"]
    made = model.fuse({"report": long})
    assert made.tokens.shape[1] == made.mask.shape[1] == model.null(B).tokens.shape[1] == 16
    assert torch.equal(made.mask[:, :6], long.mask[:, :6])
    assert not made.mask[:, 6:].any()
    cut = model.fuse({"report": Encoded(long.pooled, long.tokens[:, :6], long.mask[:, :6])})
    assert torch.equal(made.tokens, cut.tokens)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = model_of(gradient_checkpointing=checkpointing).train()
        (z, t), context = inputs(), model_of().fuse(caption())
        model(z, t, Context(context.tokens.detach(), context.mask, context.pooled)).square().mean().backward()
        gradients.append([p.grad for p in model.net.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_it_samples_like_any_generator() -> None:
    model = model_of()
    noise = torch.randn(B, 4, 8, 8)
    context = model.fuse(caption())
    once, again = (sample(model, context, noise, num_inference_steps=3, guidance_scale=4.0) for _ in range(2))
    assert torch.equal(once, again)
    other = sample(model, model.fuse(caption(seed=9)), noise, num_inference_steps=3, guidance_scale=4.0)
    assert not torch.allclose(once, other, atol=1e-3)


def test_it_compiles_without_a_graph_break() -> None:
    model, (z, t) = model_of(), inputs()
    context = model.fuse(caption())
    compiled: Any = torch.compile(model.net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, t, context), model.net(z, t, context))
    torch.compiler.reset()


def test_wrong_input() -> None:
    model = model_of()
    with pytest.raises(ShapeError, match="diffusion transformer: expected"):
        model(torch.randn(1, 4, 8, 4), torch.tensor([1]), model.null(1))
    with pytest.raises(InputError, match="takes the prompt 'report'"):
        model.fuse({"lateral": caption()["report"]})
    with pytest.raises(InputError, match="takes one text prompt"):
        model_of(prompts=("report", "lateral"))
