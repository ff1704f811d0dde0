"""XGeM's published weights (``.pt``, CoDi's layout) as an xgem checkpoint: encoders, image codec, image generators.

The report models are not converted: the published report denoiser has separate normalisation weights for every token
and a projection around its attention, and the published environment encoders and joint attentions have different
layers, so no component here computes the same function. Video layers, which images never pass through, are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from xgem.checkpoints.component import Component
from xgem.checkpoints.store import init_checkpoint, save_component
from xgem.configs.codecs import ImageVAEConfig
from xgem.configs.components import ImageEncoderConfig, TextEncoderConfig
from xgem.configs.preset import Preset, load_preset
from xgem.convert.published import Converted, fill, read_weights_file, refuse_unused, tensors
from xgem.encoders.image import ImageEncoder
from xgem.encoders.pretrained import fresh_towers
from xgem.encoders.text import TextEncoder
from xgem.generators.image_vae import ImageVAE
from xgem.generators.latent_diffusion import ImageLatentDiffusion
from xgem.types import CheckpointError, ConfigError
from xgem.utils.files import new_folder
from xgem.utils.progress import track

_VIEWS = ("frontal", "lateral")
_VISION_SCALE = 0.18215
# Buffers computed from the noise schedule or constant, and CLIP's temperature, which only training uses.
_COMPUTED = re.compile(
    r"betas|logvar|(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights"
    r"|clip\.model\.logit_scale|clip\.model\.\w+\.embeddings\.position_ids"
)

_CLIP = {
    r"vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"vision_model\.embeddings\.patch_embedding\.": "visual.conv1.",
    r"vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"vision_model\.pre_layrnorm\.": "visual.ln_pre.",
    r"vision_model\.post_layernorm\.": "visual.ln_post.",
    r"visual_projection\.weight": "visual.proj",
    r"text_model\.embeddings\.token_embedding\.": "text.token_embedding.",
    r"text_model\.embeddings\.position_embedding\.weight": "text.positional_embedding",
    r"text_model\.final_layer_norm\.": "text.ln_final.",
    r"text_projection\.weight": "text.text_projection",
}
_CLIP_LAYER = {
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_TOWERS = {"vision_model": "visual", "text_model": "text"}
_TRANSPOSED = ("visual.proj", "text.text_projection")

_RESIDUAL = "in_layers|emb_layers|out_layers|skip_connection"
_TRANSFORMER = "norm|proj_in|proj_out|transformer_blocks"
# Next to video layers, a residual block is the first of two nested modules.
_NESTED = re.compile(rf"((?:in|out)put_blocks\.\d+\.0|middle_block\.[02])\.0\.({_RESIDUAL})\.")
_UNET = re.compile(
    rf"time_embed\.|out\.|input_blocks\.0\.0\.|(?:in|out)put_blocks\.\d+\.0\.(?:{_RESIDUAL}|op)\."
    rf"|(?:in|out)put_blocks\.\d+\.1\.(?:{_TRANSFORMER}|conv)\.|output_blocks\.\d+\.2\.conv\."
    rf"|middle_block\.[02]\.(?:{_RESIDUAL})\.|middle_block\.1\.(?:{_TRANSFORMER})\."
)
_VAE = re.compile(r"(?:encoder|decoder)\.(?!.*video_att)|(?:post_)?quant_conv\.")

Named = tuple[dict[str, Tensor], dict[str, str]]
"""Weights by our names, and the published name of each."""


class _Published:
    """The published weights, and the names of those that were used."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.glob("*") if path.suffix in {".pt", ".pth"})
        if not files:
            raise CheckpointError(f"{folder}: expected a folder with the published .pt files, found none")
        self.origin, self.weights, self.taken = folder.name, {}, set[str]()
        for file in track(files, "reading weights"):
            for key, value in tensors(read_weights_file(file), file.name).items():
                if key in self.weights and not torch.equal(self.weights[key], value):
                    raise CheckpointError(f"{file}: {key!r} differs from the one in an earlier file: keep one of them")
                self.weights[key] = value
        self.weights: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Weights whose names begin with ``prefix``, without it."""
        return {key.removeprefix(prefix): v for key, v in self.weights.items() if key.startswith(prefix)}

    def unused(self) -> set[str]:
        """Names of weights that no component used, computed buffers excepted."""
        return {key for key in self.weights if key not in self.taken and not _COMPUTED.fullmatch(key)}


def clip_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Weights of CLIP in transformers' layout by open_clip's names, and the published names behind each.

    open_clip joins query, key and value: three (d, d) become one (3d, d). Its projections to the shared space are
    (width, d), transformers' are (d, width).
    """
    ours: dict[str, Tensor] = {}
    source: dict[str, tuple[str, ...]] = {}
    for key, value in weights.items():
        layer = re.match(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)", key)
        if layer is not None:
            block = f"{_TOWERS[layer[1]]}.transformer.resblocks.{layer[2]}."
            if match := re.fullmatch(r"self_attn\.q_proj\.(weight|bias)", layer[3]):
                names = tuple(key.replace("q_proj", f"{part}_proj") for part in "qkv")
                if all(name in weights for name in names):
                    name = f"{block}attn.in_proj_{match[1]}"
                    ours[name], source[name] = torch.cat([weights[n] for n in names]), names
                continue
            for published, ours_part in _CLIP_LAYER.items():
                if layer[3].startswith(published):
                    name = block + ours_part + layer[3].removeprefix(published)
                    ours[name], source[name] = value, (key,)
            continue
        for pattern, replacement in _CLIP.items():
            if re.match(pattern, key):
                name = re.sub(f"^{pattern}", replacement, key)
                ours[name], source[name] = value.T.contiguous() if name in _TRANSPOSED else value, (key,)
    return ours, source


def _converted(weights: Mapping[str, Tensor], convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Named:
    """Convert with one of diffusers' converters; published names are traced through the tensors' memory addresses."""
    places = {value.data_ptr(): key for key, value in weights.items()}
    ours = convert(dict(weights))
    return ours, {name: places[value.data_ptr()] for name, value in ours.items()}


def unet_weights(weights: Mapping[str, Tensor], layers_per_block: int) -> Named:
    """Weights of an image denoiser by diffusers' names; video layers are skipped."""
    names = {_NESTED.sub(r"\1.\2.", key): key for key in weights}
    plain = {f"model.diffusion_model.{name}": weights[key] for name, key in names.items() if _UNET.match(name)}
    ours, source = _converted(plain, lambda w: convert_ldm_unet_checkpoint(w, {"layers_per_block": layers_per_block}))
    return ours, {name: names[key.removeprefix("model.diffusion_model.")] for name, key in source.items()}


def vae_weights(weights: Mapping[str, Tensor], levels: int) -> Named:
    """Weights of AutoKL by diffusers' names; video layers are skipped."""
    types = {"down_block_types": ("",) * levels, "up_block_types": ("",) * levels}
    plain = {key: value for key, value in weights.items() if _VAE.match(key)}
    return _converted(plain, lambda w: convert_ldm_vae_checkpoint(w, types))


def _preset(name: str) -> Preset:
    """The preset without the report's codec and generator, and without the alignment."""
    values: dict[str, Any] = load_preset(name).model_dump(mode="json")
    report = values["modalities"].get("report")
    if report is None or not set(_VIEWS) <= set(values["modalities"]):
        raise ConfigError(f"preset {name!r}: expected the modalities frontal, lateral and report, like 'paper'")
    for part in (report["codec"], report["generator"], values["alignment"]):
        values["components"].pop(part, None)
    values["modalities"]["report"] = {"encoder": report["encoder"]}
    values["sampling"]["guidance_scale"].pop("report", None)
    return Preset.parse(values | {"alignment": None, "train": {}}, name)


def _towers(published: _Published, image: ImageEncoderConfig, text: TextEncoderConfig) -> tuple[Any, Any]:
    """Image and text encoder (OpenAI's CLIP ViT-L/14 architecture in the paper)."""
    model_cfg = {
        "embed_dim": image.embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": image.image_size,
            "layers": image.layers,
            "width": image.width,
            "patch_size": image.patch_size,
            "head_width": image.width // image.heads,
        },
        "text_cfg": {
            "context_length": text.max_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    }
    towers = fresh_towers({"model_cfg": model_cfg})
    encoders = ImageEncoder.of_towers(image, towers), TextEncoder.of_towers(text, towers)
    ours, source = clip_weights(published.under("clip.model."))
    for encoder, tower in zip(encoders, ("visual.", "text."), strict=True):
        weights = {name: value for name, value in ours.items() if name.startswith(tower)}
        fill(encoder, weights, {name: f"clip.model.{source[name][0]}" for name in weights}, published.origin)
        published.taken |= {f"clip.model.{key}" for name in weights for key in source[name]}
        encoder.eval()
    return encoders


def _filled(
    published: _Published, component: Component, prefix: str, place: str, named: Named, extra: Mapping[str, Tensor]
) -> Component:
    """``component`` with the ``named`` weights below ``place``, and ``extra`` ones that the published model lacks."""
    ours, source = named
    weights = {f"{place}{name}": value for name, value in ours.items()} | dict(extra)
    names = {f"{place}{name}": prefix + key for name, key in source.items()}
    fill(component, weights, names, published.origin)
    published.taken |= set(names.values())
    return component


@torch.no_grad()
def _generator(published: _Published, preset: Preset, view: str, nothing: Mapping[str, Tensor]) -> Component:
    """Generator of a view. Its single context token is the mean of the prompts' pooled vectors (identity projection);
    its null context is the mean of ``nothing``, the vectors (d,) of black images and of the empty text, over all its
    prompts (in the published code: over the prompts of the request)."""
    config: Any = preset.components[preset.generator(view)]
    if (
        config.kind != "image_generator"
        or config.context != "pooled"
        or config.cross_attention_dim != config.pooled_dim
    ):
        raise ConfigError(f"preset {preset.name!r}: {view} needs an image_generator with pooled context, like 'paper'")
    model = ImageLatentDiffusion(config)
    model.fusion.project.weight.copy_(torch.eye(config.pooled_dim))  # type: ignore[union-attr, operator]
    model.fusion.project.bias.zero_()  # type: ignore[union-attr, operator]
    model.fusion.null_token.copy_(torch.stack([nothing[prompt] for prompt in config.prompts]).mean(dim=0))  # type: ignore[union-attr, operator]
    for parameter in model.net.unet.class_embedding.linear_2.parameters():
        parameter.zero_()
    extra = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("fusion.", "net.unet.class_embedding."))
    }
    prefix = f"model.diffusion_model.unet_{view}."
    named = unet_weights(published.under(prefix), config.layers_per_block)
    return _filled(published, model, prefix, "net.unet.", named, extra)


def _codec(published: _Published, config: ImageVAEConfig) -> Component:
    c = config.latent_channels
    scale = {"latent_mean": (0.0,) * c, "latent_std": (1 / _VISION_SCALE,) * c}
    vae = ImageVAE(config.model_copy(update=scale))
    named = vae_weights(published.under("autokl."), len(config.block_out_channels))
    return _filled(published, vae, "autokl.", "vae.", named, {})


@torch.no_grad()
def convert_xgem(source: Path, target: Path, *, preset: str = "paper", allow_unused: bool = False) -> Converted:
    """Convert the published weights in the folder ``source`` to the checkpoint ``target``.

    On an error nothing is written.

    Args:
        source: the folder with XGeM's ``.pt`` files.
        target: a new or empty folder.
        preset: the architecture; the checkpoint's preset lacks the report codec and generator, and the alignment.
        allow_unused: skip weights that have no counterpart, instead of failing.

    Raises:
        CheckpointError: a file is not safe to load, or weights are missing, unused or of a different shape.
        ConfigError: a preset of another architecture. OutputError: ``target`` is not empty or not writable.
    """
    published, chosen = _Published(source), _preset(preset)
    parts: dict[str, Component] = {}
    image_name, text_name = chosen.encoder("frontal"), chosen.encoder("report")
    image, text = chosen.components[image_name], chosen.components[text_name]
    codec = chosen.components[chosen.codec("frontal")]
    if not isinstance(image, ImageEncoderConfig) or not isinstance(text, TextEncoderConfig) or image.pretrained is None:
        raise ConfigError(f"preset {preset!r}: expected pretrained CLIP towers as encoders, like 'paper'")
    assert isinstance(codec, ImageVAEConfig)
    # Encoders and codec
    encoders = _towers(published, image, text)
    parts |= {image_name: encoders[0], text_name: encoders[1], chosen.codec("frontal"): _codec(published, codec)}
    # Generators, with null contexts from a black image and the empty text
    black = torch.full((1, 1, image.image_size, image.image_size), -1.0)  # (1, 1, s, s) in [-1, 1]
    pooled_image = encoders[0].encode(black).pooled[0]  # (d,)
    empty = encoders[1].encode_ids(encoders[1].tokenizer([""])).pooled[0]
    nothing: dict[str, Tensor] = {"frontal": pooled_image, "lateral": pooled_image, "report": empty}
    parts |= {chosen.generator(view): _generator(published, chosen, view, nothing) for view in _VIEWS}
    unused = refuse_unused(published.unused(), published.origin, allowed=allow_unused)
    with new_folder(target) as folder:
        init_checkpoint(folder, chosen)
        for name, component in parts.items():
            save_component(folder, name, component)
    return Converted(chosen.name, tuple(parts), unused)
