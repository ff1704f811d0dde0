"""Contexts: what a generator sees of its prompts, in both modes, and what may not make a difference."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from xgem.checkpoints.component import component_class
from xgem.convert.random_init import random_component
from xgem.encoders.fusion import ContextFusion, stack
from xgem.generators.latent_diffusion import LatentDiffusion
from xgem.types import Context, Encoded, InputError

B, D = 3, 32
MODES = ("tokens", "pooled")


def encoded(n: int, seed: int, lengths: tuple[int, ...] | None = None) -> Encoded:
    """Made-up answers of a prompt encoder; ``lengths`` are the tokens that count in each sample."""
    draw = torch.Generator().manual_seed(seed)
    pooled = torch.nn.functional.normalize(torch.randn(B, D, generator=draw), dim=-1)
    mask = torch.ones(B, n, dtype=torch.bool)
    if lengths is not None:
        mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    return Encoded(pooled, torch.randn(B, n, D, generator=draw), mask)


@pytest.fixture(scope="module", params=["frontal", "report"])
def generator(request: pytest.FixtureRequest, debug_preset: Any) -> Any:
    """Builds the image's or the report's generator in a mode, with three prompts."""

    def build(mode: str) -> LatentDiffusion:
        torch.manual_seed(0)
        update = {"context": mode, "prompts": ("a", "b", "c"), "modality": "x"}
        model: Any = random_component(debug_preset.components[request.param].model_copy(update=update))
        return model

    return build


def prediction(model: LatentDiffusion, context: Context) -> Tensor:
    draw = torch.Generator().manual_seed(9)
    z = torch.randn(B, *model.latent_shape, generator=draw)
    with torch.no_grad():
        return model(z, torch.tensor([10, 500, 900]), context)


PROMPTS = {"a": encoded(4, 1), "b": encoded(6, 2, (6, 3, 1)), "c": encoded(5, 3)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given", [("a",), ("b",), ("a", "b"), ("a", "b", "c")], ids="-".join)
def test_context_of_any_subset(generator: Any, mode: str, given: tuple[str, ...]) -> None:
    model = generator(mode)
    context = model.fuse({name: PROMPTS[name] for name in given})
    total = sum(PROMPTS[name].pooled for name in given)
    torch.testing.assert_close(context.pooled, total / len(given) if mode == "pooled" else total)  # XGeM, Eq. 2
    tokens = 1 if mode == "pooled" else 1 + sum(PROMPTS[name].tokens.shape[1] for name in given)
    assert context.tokens.shape[:2] == context.mask.shape == (B, tokens)
    assert torch.isfinite(prediction(model, context)).all()


@torch.no_grad()
def test_the_tokens_are_the_null_token_and_each_prompts_projection_plus_its_embedding() -> None:
    fusion = ContextFusion(("a", "b"), "tokens", D, D, 8)
    context = fusion({"b": PROMPTS["b"], "a": PROMPTS["a"]})
    expected = [fusion.null_token.expand(B, 1, 8)]
    for name in ("b", "a"):
        norm, linear = fusion.project[name]  # type: ignore[index, misc]
        tokens = PROMPTS[name].tokens
        tokens = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        assert (norm.weight == 1).all()
        expected.append(tokens @ linear.weight.T + linear.bias + fusion.modality[name])
    torch.testing.assert_close(context.tokens, torch.cat(expected, dim=1))
    masks = [torch.ones(B, 1, dtype=torch.bool), PROMPTS["b"].mask, PROMPTS["a"].mask]
    assert torch.equal(context.mask, torch.cat(masks, dim=1))


def test_learned_tokens_start_small() -> None:
    fusion = ContextFusion(("a", "b"), "tokens", D, D, 1000)
    for parameter in (fusion.null_token, *fusion.modality.values()):
        assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15)
        assert abs(float(parameter.detach().mean())) < 0.003


@torch.no_grad()
def test_the_pooled_token_is_the_projected_mean_or_the_null_token() -> None:
    fusion = ContextFusion(("a", "b"), "pooled", D, D, 8)
    keep = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, False])}
    context = fusion({name: PROMPTS[name] for name in keep}, keep)
    a, b = PROMPTS["a"].pooled, PROMPTS["b"].pooled
    project: Any = fusion.project
    torch.testing.assert_close(
        context.tokens[:, 0], torch.stack([*project(torch.stack([(a[0] + b[0]) / 2, a[1]])), fusion.null_token])
    )
    assert context.mask.tolist() == [[True]] * B


@pytest.mark.parametrize("mode", MODES)
def test_the_context_reaches_the_prediction(generator: Any, mode: str) -> None:
    model = generator(mode)
    contexts = [model.fuse({"a": PROMPTS["a"]}), model.fuse({"b": PROMPTS["b"]}), model.fuse(PROMPTS), model.null(B)]
    made = [prediction(model, context) for context in contexts]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert float((one - other).abs().max()) > 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_the_null_context(generator: Any, mode: str) -> None:
    null = generator(mode).null(B)
    assert null.tokens.shape[:2] == null.mask.shape == (B, 1)
    assert null.mask.all()
    assert not null.pooled.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropped", ["a", "b"])
def test_a_dropped_prompt_is_one_that_was_not_given(generator: Any, mode: str, dropped: str) -> None:
    model = generator(mode)
    keep = {name: torch.full((B,), name != dropped) for name in PROMPTS}
    others = {name: item for name, item in PROMPTS.items() if name != dropped}
    torch.testing.assert_close(prediction(model, model.fuse(PROMPTS, keep)), prediction(model, model.fuse(others)))


@pytest.mark.parametrize("mode", MODES)
def test_all_prompts_dropped_is_the_null_context(generator: Any, mode: str) -> None:
    model = generator(mode)
    context = model.fuse(PROMPTS, dict.fromkeys(PROMPTS, torch.zeros(B, dtype=torch.bool)))
    assert not context.pooled.any()
    torch.testing.assert_close(prediction(model, context), prediction(model, model.null(B)))


@pytest.mark.parametrize("mode", MODES)
def test_prompts_are_dropped_by_sample(generator: Any, mode: str) -> None:
    model = generator(mode)
    keep = {
        "a": torch.tensor([True, False, False]),
        "b": torch.tensor([True, True, False]),
        "c": torch.tensor([True, False, False]),
    }
    mixed = prediction(model, model.fuse(PROMPTS, keep))
    whole = prediction(model, model.fuse(PROMPTS))
    only_b = prediction(model, model.fuse({"b": PROMPTS["b"]}))
    null = prediction(model, model.null(B))
    torch.testing.assert_close(mixed, torch.stack([whole[0], only_b[1], null[2]]))


def test_tokens_beyond_the_mask_change_nothing(generator: Any) -> None:
    model = generator("tokens")
    item = PROMPTS["b"]
    other = replace(item, tokens=torch.where(item.mask[..., None], item.tokens, 50.0))
    longer = Encoded(
        item.pooled,
        torch.cat([item.tokens, torch.full((B, 7, D), -3.0)], dim=1),
        torch.cat([item.mask, torch.zeros(B, 7, dtype=torch.bool)], dim=1),
    )
    made = [prediction(model, model.fuse({"a": PROMPTS["a"], "b": x})) for x in (item, other, longer)]
    torch.testing.assert_close(made[1], made[0])
    torch.testing.assert_close(made[2], made[0])
    inside = replace(item, tokens=torch.where(item.mask[..., None], 50.0, item.tokens))
    assert float((prediction(model, model.fuse({"a": PROMPTS["a"], "b": inside})) - made[0]).abs().max()) > 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_prompts_is_irrelevant(generator: Any, mode: str) -> None:
    model = generator(mode)
    made = [prediction(model, model.fuse({n: PROMPTS[n] for n in order})) for order in permutations(PROMPTS)]
    for one in made[1:]:
        torch.testing.assert_close(one, made[0])


@pytest.mark.parametrize("mode", MODES)
def test_unknown_and_missing_prompts_are_refused(generator: Any, mode: str) -> None:
    model = generator(mode)
    with pytest.raises(InputError, match=r"takes prompts \['a', 'b', 'c'\], got \['d'\]"):
        model.fuse({"a": PROMPTS["a"], "d": PROMPTS["b"]})
    with pytest.raises(InputError, match="no prompts"):
        model.fuse({})


def test_stacked_contexts_are_the_single_ones(generator: Any) -> None:
    model = generator("tokens")
    context, null = model.fuse(PROMPTS), model.null(B)
    both = stack([context, null])
    assert both.tokens.shape[:2] == both.mask.shape == (2 * B, context.tokens.shape[1])
    wider = stack([context, null], context.tokens.shape[1] + 3)
    assert wider.tokens.shape[:2] == wider.mask.shape == (2 * B, context.tokens.shape[1] + 3)
    assert not wider.mask[:, -3:].any()
    assert not wider.tokens[:, -3:].any()
    assert stack([null, null]).tokens.shape[1] == 1
    z = torch.randn(B, *model.latent_shape)
    t = torch.tensor([10, 500, 900])
    with torch.no_grad():
        one, other = model(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        torch.testing.assert_close(one, model(z, t, context))
        torch.testing.assert_close(other, model(z, t, null))


@pytest.mark.parametrize("mode", MODES)
def test_one_context_token_leaves_cross_attention_nothing_to_learn(debug_preset: Any, mode: str) -> None:
    """Softmax over one key is 1: `pooled` gives queries and keys no gradient, `tokens` does. Hence the two modes."""
    torch.manual_seed(0)
    settings = debug_preset.components["frontal"].model_copy(update={"context": mode, "prompts": ("a", "b")})
    model: Any = component_class(settings.kind).from_config(settings)
    context = model.fuse({"a": PROMPTS["a"], "b": PROMPTS["b"]})
    z = torch.randn(B, *model.latent_shape)
    model(z, torch.tensor([10, 500, 900]), context).square().mean().backward()
    cross = [module for name, module in model.named_modules() if name.endswith("attn2")]
    assert cross
    for attention in cross:
        largest = {name: float(getattr(attention, name).weight.grad.abs().max()) for name in ("to_q", "to_k", "to_v")}
        assert largest["to_v"] > 1e-5
        for name in ("to_q", "to_k"):
            share = largest[name] / largest["to_v"]
            assert share > 1e-4 if mode == "tokens" else share < 1e-6  # what is left is rounding
