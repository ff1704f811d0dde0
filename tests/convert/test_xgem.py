"""XGeM's published layout at a tiny size: encoders and image codec compute what diffusers' and transformers' own models
of the same weights do, the rest what the published code does, written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.convert.codi_images import DIM, LATENT, SIZE
from tests.convert.codi_layout import PUBLISHED, Shapes, joint, optimus, text_unet
from tests.convert.codi_reference import Published, bert_means, denoise, environment, gpt2_logits
from xgem import generate
from xgem.alignment.model import TransformerAlignment
from xgem.checkpoints.store import load_component, read_index, verify
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_component
from xgem.convert.xgem_report import environment_weights, fc_unet_weights, joint_weights
from xgem.types import Context

OUTPUTS = ("frontal", "lateral", "report")
TEXT = ["large left pleural effusion", "no acute disease"]


def net(published: dict[str, Tensor], output: str) -> Published:
    return Published(published, f"model.diffusion_model.unet_{'text' if output == 'report' else output}.")


def latents(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    views = {view: torch.randn(2, 4, 16, 16, generator=draw) for view in ("frontal", "lateral")}
    return views | {"report": torch.randn(2, LATENT, generator=draw)}


def vectors(models: dict[str, Any], images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """CLIP's unit vectors, of images (b, 1, s, s) in [-1, 1]."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, SimpleTokenizer

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    clip, ids = models["clip"], SimpleTokenizer(context_length=77)(texts)
    seen = clip.visual_projection(clip.vision_model(((images + 1) / 2 - mean) / std).pooler_output)
    read = clip.text_projection(clip.text_model(ids).pooler_output)
    return F.normalize(seen, dim=-1), F.normalize(read, dim=-1)


@torch.no_grad()
def test_encoders_are_clip(root: Path, models: dict[str, Any]) -> None:
    images = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    seen, read = vectors(models, images, TEXT)
    image: Any = load_component(root, "image_encoder")
    text: Any = load_component(root, "text_encoder")
    torch.testing.assert_close(image.encode(images).pooled, seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text.encode(TEXT).pooled, read, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_codec_is_autokl(root: Path, models: dict[str, Any]) -> None:
    x, vae = torch.rand(2, 1, SIZE, SIZE) * 2 - 1, models["vae"]
    codec: Any = load_component(root, "image_vae")
    latents = vae.encode(x.expand(-1, 3, -1, -1)).latent_dist.mean * 0.18215
    torch.testing.assert_close(codec.encode(x), latents, rtol=1e-4, atol=1e-5)
    images = vae.decode(latents / 0.18215).sample.mean(dim=1, keepdim=True).clamp(-1, 1)
    torch.testing.assert_close(codec.decode(latents), images, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_reference_is_diffusers_unet_but_for_the_middle(
    published: dict[str, Tensor], models: dict[str, Any]
) -> None:
    z, t, context = latents()["frontal"], torch.tensor([3, 800]), torch.randn(2, 1, DIM)
    expected = models["frontal"](z, t, encoder_hidden_states=context).sample
    torch.testing.assert_close(
        denoise(net(published, "frontal"), z, t, context, repeat=False), expected, rtol=1e-3, atol=1e-4
    )
    assert (denoise(net(published, "frontal"), z, t, context) - expected).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("output", OUTPUTS)
def test_generators_attend_to_the_mean_vector_itself(
    root: Path, published: dict[str, Tensor], models: dict[str, Any], output: str
) -> None:
    generator: Any = load_component(root, output)
    images = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    image: Any = load_component(root, "image_encoder")
    text: Any = load_component(root, "text_encoder")
    encoded = {"frontal": image.encode(images), "lateral": image.encode(-images), "report": text.encode(TEXT)}
    prompts = {name: encoded[name] for name in generator.config.prompts}
    first, second = prompts
    mean = (prompts[first].pooled + prompts[second].pooled) / 2
    z, t = latents()[output], torch.tensor([3, 800])
    for names, token in ((prompts, mean), ([first], prompts[first].pooled)):
        expected = denoise(net(published, output), z, t, token[:, None])
        made = generator(z, t, generator.fuse({name: prompts[name] for name in names}))
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)
    black, empty = vectors(models, torch.full((1, 1, SIZE, SIZE), -1.0), [""])
    nothing = black if output == "report" else (black + empty) / 2
    torch.testing.assert_close(generator.null(1).tokens[0], nothing, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_joint_outputs_see_v_as_published(root: Path, published: dict[str, Tensor]) -> None:
    """Each its own, by the published code: nothing crosses."""
    alignment: Any = load_component(root, "alignment")
    z, t, context = latents(), torch.tensor([3, 800]), torch.randn(2, 1, DIM)
    tokens = alignment.tokens(z, t)
    for output in OUTPUTS:
        seen = environment(net(published, output), z[output], t)
        torch.testing.assert_close(tokens[output], seen, rtol=1e-3, atol=1e-4)
        generator: Any = load_component(root, output)
        given = Context(context, torch.ones(2, 1, dtype=torch.bool), context[:, 0])
        with alignment.seeing(output, generator.net, tokens):
            made = generator(z[output], t, given)
        expected = denoise(net(published, output), z[output], t, context, seen)
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)
        assert (made - generator(z[output], t, given)).abs().max() > 0.01  # the joint attentions do something


@torch.no_grad()
def test_joint_outputs_may_see_each_other_instead(root: Path, published: dict[str, Tensor]) -> None:
    """The paper's Eq. 4, with the same weights."""
    stored: Any = load_component(root, "alignment")
    alignment = TransformerAlignment(stored.config.model_copy(update={"attends": "others"}))
    alignment.load_state_dict(stored.state_dict())
    z, t, context = latents(), torch.tensor([3, 800]), torch.randn(2, 1, DIM)
    tokens = alignment.tokens(z, t)
    for output in OUTPUTS:
        generator: Any = load_component(root, output)
        seen = torch.cat([environment(net(published, other), z[other], t) for other in OUTPUTS if other != output], 1)
        with alignment.seeing(output, generator.net, tokens):
            made = generator(z[output], t, Context(context, torch.ones(2, 1, dtype=torch.bool), context[:, 0]))
        expected = denoise(net(published, output), z[output], t, context, seen)
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_report_codec_is_optimus(root: Path, published: dict[str, Tensor]) -> None:
    codec: Any = load_component(root, "report_vae")
    weights = Published(published, "optimus.")
    texts = ["Large left Pleural effusion.", "no acute disease"]
    lower = [text.lower() for text in texts]
    words = codec.encoder_tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    assert codec.encoder_tokenizer.convert_ids_to_tokens(words[1][:5]) == ["[CLS]", "no", "acute", "disease", "[SEP]"]
    torch.testing.assert_close(words, codec.encoder_tokenizer(lower, padding=True, return_tensors="pt")["input_ids"])
    latent = bert_means(weights, words) * 4.3108
    torch.testing.assert_close(codec.encode(texts), latent, rtol=1e-3, atol=1e-4)
    # Token by token with a cache, and all at once
    ids = codec.decoder_ids(texts)
    size = len(codec.decoder_tokenizer)
    assert ids[:, 0].tolist() == [size - 2] * 2
    assert codec.decoder_tokenizer.convert_ids_to_tokens(ids[1][:2]) == ["<BOS>", "Ġno"]
    assert set(ids[1].tolist()) >= {size - 1, size - 3}  # <EOS>, and <PAD> behind the shorter report
    torch.testing.assert_close(
        codec.logits(ids, latent / 4.3108), gpt2_logits(weights, ids, latent / 4.3108), rtol=1e-3, atol=1e-4
    )
    z, row = 10 * torch.randn(1, LATENT), [size - 2]
    for _ in range(codec.config.max_length - 1):
        logits = gpt2_logits(weights, torch.tensor([row]), z / 4.3108)[0, -1]
        logits[[size - 3, size - 2]] = -torch.inf
        row.append(int(logits.argmax()))
        if row[-1] == size - 1:
            break
    assert codec.decode(z) == [codec.decoder_tokenizer.decode(row, skip_special_tokens=True).strip()]


def test_it_is_a_whole_checkpoint(root: Path, preset: str) -> None:
    verify(root)
    assert set(read_index(root).components) == set(load_preset(preset).components)
    made = generate({"report": TEXT[0]}, ["frontal", "lateral"], model=root, num_inference_steps=2, seed=0)
    assert made.frontal[0].size == made.lateral[0].size == (SIZE, SIZE)
    image = made.frontal[0]
    assert isinstance(generate({"frontal": image}, "report", model=root, num_inference_steps=2, seed=0).report[0], str)
    three = generate({}, list(OUTPUTS), model=root, num_inference_steps=2, seed=0)
    assert set(three.outputs) == set(OUTPUTS)


def test_reports_depend_on_their_prompts_alone(root: Path) -> None:
    """Each output latent follows its prompt, whatever the order; with joint attentions it is another one."""
    ramp = np.tile(np.linspace(0, 255, SIZE).astype(np.uint8), (SIZE, 1))
    images = [Image.fromarray(pixels) for pixels in (ramp, ramp.T)]
    options: dict[str, Any] = {"model": root, "num_inference_steps": 3, "output_type": "latent", "progress": False}

    def drawn(inputs: list[Any], outputs: Any, **more: Any) -> list[Tensor]:
        return [made.outputs["report"][0] for made in generate(inputs, outputs, **options, **more, seed=3)]

    first, second = drawn([{"frontal": image} for image in images], "report")
    assert (first - second).abs().max() > 0.01
    swapped = drawn([{"frontal": image} for image in reversed(images)], "report")
    torch.testing.assert_close(torch.stack(swapped), torch.stack([second, first]), rtol=1e-3, atol=1e-4)
    (alone,) = drawn([{"frontal": images[0]}], ["lateral", "report"], joint=False)
    (together,) = drawn([{"frontal": images[0]}], ["lateral", "report"])
    torch.testing.assert_close(alone, first, rtol=1e-3, atol=1e-4)
    assert (together - alone).abs().max() > 0.01


@pytest.mark.parametrize(
    ("shapes", "component", "place", "parameters"),
    [
        (text_unet(PUBLISHED), "report", "net.", 1_708_848_448),
        (joint(PUBLISHED, spatial=True), "alignment", "frontal", 52_352_800 + 243_947_200),
        (joint(PUBLISHED, spatial=False), "alignment", "report", 95_589_760 + 243_947_200),
        (optimus(28_996, 50_260, PUBLISHED), "report_vae", "", 241_599_744),
    ],
    ids=["report denoiser", "image V", "report V", "Optimus"],
)
def test_the_layout_has_the_published_size_and_fits(
    shapes: Shapes, component: str, place: str, parameters: int
) -> None:
    """The paper counts 1.77 and 2.04 billion for the denoisers with V and joint attentions, and 241 million (3.3)."""
    layout = dict(shapes)
    assert sum(math.prod(shape) for shape in layout.values()) == parameters
    config: Any = load_preset("xgem-published").components[component]
    if component == "report_vae":  # sizes come from the weights, which is tested at the tiny size
        return
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in layout.items()}
        model = random_component(config)
    if component == "report":
        named = [(place, fc_unet_weights(weights, config.layers_per_block)[0])]
    else:
        environment = environment_weights(weights, 3, spatial=place != "report")[0]
        named = [(f"environment.{place}.", environment), (f"attention.{place}.", joint_weights(weights)[0])]
    found = {f"{prefix}{name}": tuple(value.shape) for prefix, part in named for name, value in part.items()}
    expected = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if name.startswith(tuple(prefix for prefix, _ in named)) and f"{place}.time." not in name
    }
    assert found == expected
