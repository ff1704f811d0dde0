"""XGeM's published layout at a tiny size: encoders and image codec compute what diffusers' and transformers' own models
of the same weights do, the rest what the published code does, written out; what has no counterpart is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from tests.convert.codi_layout import (
    ATTENDS,
    BERT_HEADS,
    BERT_WIDTH,
    DIM,
    GROUPS,
    HEADS,
    LATENT,
    LAYERS,
    MULT,
    SITES,
    TOKENS,
    V_DIM,
    V_MULT,
    VIDEO,
    WIDTH,
    joint,
    made,
    optimus,
    text_unet,
    vocabularies,
)
from tests.convert.codi_reference import Published, bert_means, denoise, environment, gpt2_logits
from xgem import generate
from xgem.alignment.model import TransformerAlignment
from xgem.checkpoints.store import load_component, read_index, verify
from xgem.configs.preset import load_preset
from xgem.convert.xgem import convert_xgem
from xgem.types import CheckpointError, ConfigError, Context

SIZE, LEVELS = 32, 2
CHANNELS = tuple(WIDTH * multiple for multiple in MULT)
UNET: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "sample_size": 16, "layers_per_block": 1, "block_out_channels": CHANNELS,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": HEADS,
    "cross_attention_dim": DIM, "norm_num_groups": GROUPS,
}  # fmt: skip
VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
    "up_block_types": ("UpDecoderBlock2D",) * LEVELS, "block_out_channels": (8, 16), "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 4,
}  # fmt: skip
OUTPUTS = ("frontal", "lateral", "report")
TEXT_UNET = "model.diffusion_model.unet_text."
TEXT = ["large left pleural effusion", "no acute disease"]
UNKNOWN = ("optimus.encoder.cls.weight", "model.diffusion_model.unet_text.time_embed.4.weight", "autokl.loss.logvar")
COMPUTED = {
    "betas": torch.zeros(3),
    "sqrt_recipm1_alphas_cumprod": torch.zeros(3),
    "posterior_log_variance_clipped": torch.zeros(3),
    "clip.model.text_model.embeddings.position_ids": torch.zeros(3),
}

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def published_unet(unet: Any) -> dict[str, Tensor]:
    """diffusers' names in CoDi's layout, every residual block the first of two."""
    ends = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "conv_norm_out": "out.0",
        "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2",
    }  # fmt: skip
    found = {}
    for key, value in unet.state_dict().items():
        module, leaf = key.rsplit(".", 1)
        if module in ends:
            found[f"{ends[module]}.{leaf}"] = value
        elif match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)\.(weight|bias)$", key):
            number = int(match[2]) * 2 + int(match[4]) + (match[1] == "down")  # input block 0 is the first convolution
            block = f"{'input' if match[1] == 'down' else 'output'}_blocks.{number}"
            inside = f"0.0.{RESNET[match[5]]}" if match[3] == "resnets" else f"1.{match[5]}"
            found[f"{block}.{inside}.{leaf}"] = value
        elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", key):
            found[f"input_blocks.{(int(match[1]) + 1) * 2}.0.op.{leaf}"] = value
        elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", key):
            attends = hasattr(unet.up_blocks[int(match[1])], "attentions")
            found[f"output_blocks.{int(match[1]) * 2 + 1}.{1 + attends}.conv.{leaf}"] = value
        elif match := re.match(r"mid_block\.resnets\.(\d)\.(\w+)", key):
            found[f"middle_block.{int(match[1]) * 2}.0.{RESNET[match[2]]}.{leaf}"] = value
        else:
            found[f"middle_block.1.{key.removeprefix('mid_block.attentions.0.')}"] = value
    assert len(found) == len(unet.state_dict())
    return found


def published_vae(vae: Any) -> dict[str, Tensor]:
    """diffusers' names in Stable Diffusion's own layout."""
    found = {}
    for key, value in vae.state_dict().items():
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{LEVELS - 1 - int(m[1])}", key)
        name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name).replace("conv_norm_out", "norm_out")
        name = re.sub(r"(down|up)samplers\.0\.conv", r"\1sample.conv", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut")
        if "attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    assert len(found) == len(vae.state_dict())
    return found


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The same models in their own libraries."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIZE, "patch_size": 16}
    build: Any = UNet2DConditionModel
    found: dict[str, Any] = {
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)),
        "vae": AutoencoderKL(**VAE),
        "frontal": build(**UNET),
        "lateral": build(**UNET),
    }
    for model in found.values():
        model.eval()
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return found


@pytest.fixture(scope="module")
def published(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Every file of the published model."""
    draw = torch.Generator().manual_seed(1)
    weights = {f"clip.model.{key}": value for key, value in models["clip"].state_dict().items()}
    weights |= {f"autokl.{key}": value for key, value in published_vae(models["vae"]).items()}
    sizes = vocabularies(tmp_path_factory.mktemp("vocabularies"))
    weights |= {f"optimus.{key}": value for key, value in made(optimus(*sizes), draw).items()}
    weights["optimus.decoder.lm_head.weight"] = weights["optimus.decoder.transformer.wte.weight"]
    for name in ("frontal", "lateral", "text"):
        unet = made(text_unet(), draw) if name == "text" else published_unet(models[name])
        unet |= made(joint(spatial=name != "text"), draw)
        weights |= {f"model.diffusion_model.unet_{name}.{key}": value for key, value in unet.items()}
    return {key: value.detach().clone() for key, value in (weights | COMPUTED).items()}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``xgem-published`` at the tiny sizes."""
    values = load_preset("xgem-published").model_dump(mode="json")
    values["transform"] |= {"size": SIZE, "pixel_spacing": None}
    parts = values["components"]
    parts["image_encoder"] |= {
        "image_size": SIZE, "patch_size": 16, "width": 32, "layers": 2, "heads": 2, "embed_dim": DIM,
    }  # fmt: skip
    parts["text_encoder"] |= {"width": 16, "layers": 2, "heads": 2, "embed_dim": DIM}
    parts["image_vae"] |= {
        "image_size": SIZE, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    }  # fmt: skip
    parts["report_vae"] |= {
        "max_length": 24, "width": BERT_WIDTH, "layers": LAYERS, "heads": BERT_HEADS, "latent_dim": LATENT,
    }  # fmt: skip
    shared = {
        "context_dim": DIM, "pooled_dim": DIM, "cross_attention_dim": DIM, "attention": list(ATTENDS),
        "layers_per_block": 1, "norm_num_groups": GROUPS,
    }  # fmt: skip
    outputs = parts["alignment"]["outputs"]
    for view in ("frontal", "lateral"):
        parts[view] |= shared | {
            "latent_shape": [4, 16, 16], "block_out_channels": list(CHANNELS), "attention_head_dim": HEADS,
        }  # fmt: skip
        outputs[view] = {"latent_shape": [4, 16, 16], "sites": list(SITES)}
    parts["report"] |= shared | {
        "latent_dim": LATENT, "tokens": TOKENS, "width": WIDTH, "channel_mult": list(MULT), "heads": HEADS,
    }  # fmt: skip
    outputs["report"] = {"latent_shape": [LATENT], "sites": list(SITES)}
    parts["alignment"] |= {
        "width": WIDTH, "channel_mult": list(V_MULT), "report_tokens": TOKENS, "dim": V_DIM, "heads": HEADS,
        "norm_num_groups": GROUPS,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def written(folder: Path, weights: dict[str, Tensor]) -> Path:
    folder.mkdir()
    vocabularies(folder)
    torch.save(weights, folder / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def root(published: dict[str, Tensor], preset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xgem")
    done = convert_xgem(written(folder / "in", published), folder / "out", preset=preset)
    assert done.unused == ()  # every weight has its place
    return folder / "out"


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


def test_video_layers_are_left_out_and_named(published: dict[str, Tensor], preset: str, tmp_path: Path) -> None:
    weights = published | dict.fromkeys(VIDEO, torch.zeros(2))
    done = convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)
    assert done.unused == tuple(sorted(VIDEO))


def test_what_has_no_counterpart_is_named(published: dict[str, Tensor], preset: str, tmp_path: Path, xgem: Any) -> None:
    weights = published | dict.fromkeys((*UNKNOWN, *VIDEO), torch.zeros(2))
    source, out = written(tmp_path / "in", weights), tmp_path / "out"
    ran = xgem("convert", "xgem", source, out, "--preset", preset)
    assert ran.code == 1
    assert f"without a counterpart ({len(UNKNOWN)})" in ran.err
    assert ran.err.count("\n") == 1
    assert all(name in ran.err for name in UNKNOWN)
    assert "betas" not in ran.err
    assert not out.exists()
    ran = xgem("convert", "xgem", source, out, "--preset", preset, "--allow-unused")
    assert ran.code == 0
    assert all(name in ran.err for name in (*UNKNOWN, "temporal_self_attn"))
    verify(out)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("autokl.quant_conv.weight", r"missing vae\.quant_conv\.weight"),
        ("model.diffusion_model.unet_frontal.out.2.bias", r"missing net\.unet\.conv_out\.bias"),
        ("clip.model.vision_model.encoder.layers.1.self_attn.k_proj.bias", r"resblocks\.1\.attn\.in_proj_bias"),
        ("clip.model.text_projection.weight", r"missing text\.text_projection"),
        (
            "model.diffusion_model.unet_text.input_blocks.3.0.skip_connection.weight",
            r"missing net\.down\.2\.block\.skip",
        ),
        ("model.diffusion_model.unet_text.output_blocks.3.2.bias", r"missing net\.up\.5\.bias"),
        (
            "model.diffusion_model.unet_text.connecters_out.2.0.weight",
            r"missing environment\.report\.levels\.1\.weight",
        ),
        (
            "model.diffusion_model.unet_lateral.input_block_connecters_in.3.0.proj_out.bias",
            r"missing attention\.lateral\.sites\.1\.proj_out\.bias",
        ),
        ("optimus.decoder.transformer.linear_emb.weight", r"missing to_embedding\.weight"),
        ("optimus.encoder.pooler.dense.bias", r"missing encoder\.pooler\.dense\.bias"),
        ("optimus.decoder.transformer.wte.weight", r"missing optimus\.decoder\.transformer\.wte\.weight"),
    ],
)
def test_missing_weights(published: dict[str, Tensor], preset: str, tmp_path: Path, missing: str, said: str) -> None:
    weights = {key: value for key, value in published.items() if key != missing}
    with pytest.raises(CheckpointError, match=said):
        convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("model.diffusion_model.unet_lateral.input_blocks.1.0.0.in_layers.2.weight", (1, 2, 3, 3), (16, 16, 3, 3)),
        (f"{TEXT_UNET}out.2.weight", (3, 4), (LATENT, WIDTH * TOKENS)),
        ("model.diffusion_model.unet_frontal.connecters_out.4.2.weight", (2, 2, 3, 3), (V_DIM, 32, 3, 3)),
        ("optimus.encoder.linear.weight", (2, 2), (2 * LATENT, BERT_WIDTH)),
    ],
)
def test_weights_of_another_shape(
    published: dict[str, Tensor], preset: str, tmp_path: Path, key: str, shape: tuple[int, ...], expected: Any
) -> None:
    weights = published | {key: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=re.escape(f"{key} {shape}, expected {expected}")):
        convert_xgem(written(tmp_path / "in", weights), tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


def test_optimus_needs_its_vocabularies(published: dict[str, Tensor], preset: str, tmp_path: Path) -> None:
    head = {"optimus.decoder.lm_head.weight": published["optimus.decoder.lm_head.weight"] + 1}
    source = written(tmp_path / "in", published | head)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from optimus\.decoder\.transformer\.wte"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    with (source / "bert-base-cased-vocab.txt").open("a", encoding="utf-8") as file:
        file.write("another\n")
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight has \d+ rows, its tokenizer \d+ tokens"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    (source / "bert-base-cased-vocab.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"bert-base-cased-vocab\.txt: no vocabulary can be read"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    (source / "bert-base-cased-vocab.txt").unlink()  # no hub is asked in tests
    with pytest.raises(CheckpointError, match="'bert-base-cased': cannot be loaded"):
        convert_xgem(source, tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


def test_folders_and_presets_of_another_kind(published: dict[str, Tensor], tmp_path: Path, preset: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected a folder with the published \.pt files"):
        convert_xgem(tmp_path, tmp_path / "out")
    source = written(tmp_path / "in", published)
    with pytest.raises(ConfigError, match="expected the outputs frontal, lateral and report"):
        convert_xgem(source, tmp_path / "out", preset="chexgen-small")
    with pytest.raises(ConfigError, match="expected pretrained CLIP towers"):
        convert_xgem(source, tmp_path / "out", preset="debug")
    with pytest.raises(ConfigError, match="expected a transformer_alignment like 'xgem-published' has"):
        convert_xgem(source, tmp_path / "out", preset="paper")
    torch.save({"betas": torch.ones(3)}, source / "z.pt")
    with pytest.raises(CheckpointError, match="'betas' differs from"):
        convert_xgem(source, tmp_path / "out", preset=preset)
