"""XGeM's published weights (``.pt``, CoDi's layout) as an xgem checkpoint that computes the published functions.

Video layers, which no image passes through, are left out, and so are buffers that are computed from settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from xgem.alignment.model import TransformerAlignment
from xgem.checkpoints.component import Component
from xgem.checkpoints.store import init_checkpoint, save_component
from xgem.configs.alignment import TransformerAlignmentConfig
from xgem.configs.base import Config
from xgem.configs.codecs import ImageVAEConfig, ReportVAEConfig
from xgem.configs.components import (
    FCReportGeneratorConfig,
    ImageEncoderConfig,
    ImageGeneratorConfig,
    TextEncoderConfig,
)
from xgem.configs.preset import Preset, load_preset
from xgem.convert.published import Converted, fill, read_weights_file, refuse_unused, tensors
from xgem.convert.xgem_report import Named, environment_weights, fc_unet_weights, joint_weights, optimus
from xgem.encoders.image import ImageEncoder
from xgem.encoders.pretrained import fresh_towers
from xgem.encoders.text import TextEncoder
from xgem.generators.image_vae import ImageVAE
from xgem.generators.latent_diffusion import FCReportLatentDiffusion, ImageLatentDiffusion
from xgem.types import CheckpointError, ConfigError
from xgem.utils.files import new_folder
from xgem.utils.progress import track

_OUTPUTS = {"frontal": "frontal", "lateral": "lateral", "report": "text"}
"""Our outputs, and their names in the published denoisers."""
_DENOISER = "model.diffusion_model.unet_"
_VISION_SCALE = 0.18215
# Buffers computed from the noise schedule or constant, and CLIP's temperature, which only training uses.
_COMPUTED = re.compile(
    r"betas|logvar|(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights"
    r"|clip\.model\.logit_scale|clip\.model\.\w+\.embeddings\.position_ids"
    r"|optimus\.decoder\.transformer\.h\.\d+\.attn\.bias"
)
# Attention over frames, and what belongs to it
_VIDEO = re.compile(
    r"(?:model\.diffusion_model\.unet_(?:frontal|lateral)\.(?:(?:(?:in|out)put_blocks|connecters_out)\.\d+\.0"
    r"|middle_block\.[02])\.1|clip\.model\.vision_model\.encoder\.layers\.\d+\.temporal_self_attn"
    r"|autokl\.decoder\.(?:mid\.video_att|up\.\d+\.video_attn\.\d+))"
    r"\.(?:temporal_attn|temporal_rel_pos_bias|ff|frameshiftblock)\..+"
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
_T = TypeVar("_T", bound=Config)
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

    def unused(self) -> tuple[set[str], set[str]]:
        """Names of weights that no component used, computed buffers excepted: video layers, and others."""
        left = {key for key in self.weights if key not in self.taken and not _COMPUTED.fullmatch(key)}
        video = {key for key in left if _VIDEO.fullmatch(key)}
        return video, left - video


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


def _part(preset: Preset, name: str | None, kind: type[_T]) -> _T:
    """The configuration of a component; ConfigError where it is of another kind than the published model's."""
    config = None if name is None else preset.components[name]
    if not isinstance(config, kind):
        found = "none" if config is None else f"{name!r}, of kind {config.kind!r}"
        wanted = kind.model_fields["kind"].default
        raise ConfigError(f"preset {preset.name!r}: expected a {wanted} like 'xgem-published' has, found {found}")
    return config


def _preset(name: str) -> Preset:
    """The preset without its training, whose outputs are those of the published model."""
    preset = load_preset(name)
    if set(preset.outputs) != set(_OUTPUTS):
        raise ConfigError(
            f"preset {name!r}: expected the outputs frontal, lateral and report, like 'xgem-published', got "
            f"{', '.join(preset.outputs)}"
        )
    return preset.model_copy(update={"train": {}})


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
def _generator(published: _Published, preset: Preset, output: str, nothing: Mapping[str, Tensor]) -> Component:
    """Generator of an output. Its single context token is the mean of the prompts' pooled vectors (identity
    projection); its null context is the mean of ``nothing``, the vectors (d,) of black images and of the empty text,
    over all its prompts (in the published code: over the prompts of the request)."""
    name, prefix = preset.generator(output), f"{_DENOISER}{_OUTPUTS[output]}."
    config: Any = _part(preset, name, FCReportGeneratorConfig if output == "report" else ImageGeneratorConfig)
    if config.context != "pooled" or config.cross_attention_dim != config.pooled_dim:
        raise ConfigError(f"preset {preset.name!r}: {name!r} needs pooled context, as wide as its cross-attention")
    weights = published.under(prefix)
    model: Any
    if output == "report":
        model, place = FCReportLatentDiffusion(config), "net."
        named = fc_unet_weights(weights, config.layers_per_block)
    else:
        model, place = ImageLatentDiffusion(config), "net.unet."
        named = unet_weights(weights, config.layers_per_block)
        for parameter in model.net.unet.class_embedding.linear_2.parameters():
            parameter.zero_()
    model.fusion.project.weight.copy_(torch.eye(config.pooled_dim))
    model.fusion.project.bias.zero_()
    model.fusion.null_token.copy_(torch.stack([nothing[prompt] for prompt in config.prompts]).mean(dim=0))
    own = ("fusion.", "net.unet.class_embedding.")
    extra = {name: value for name, value in model.state_dict().items() if name.startswith(own)}
    return _filled(published, model, prefix, place, named, extra)


def _alignment(published: _Published, config: TransformerAlignmentConfig) -> Component:
    """V and the joint attentions of all outputs."""
    model = TransformerAlignment(config)
    weights: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for output, aligned in config.outputs.items():
        prefix = f"{_DENOISER}{_OUTPUTS[output]}."
        part = published.under(prefix)
        spatial = len(aligned.latent_shape) == 3
        environment = environment_weights(part, len(config.channel_mult), spatial=spatial)
        for place, (ours, source) in (("environment", environment), ("attention", joint_weights(part))):
            weights |= {f"{place}.{output}.{name}": value for name, value in ours.items()}
            names |= {f"{place}.{output}.{name}": prefix + key for name, key in source.items()}
    return _filled(published, model, "", "", (weights, names), {})


def _codec(published: _Published, config: ImageVAEConfig) -> Component:
    c = config.latent_channels
    scale = {"latent_mean": (0.0,) * c, "latent_std": (1 / _VISION_SCALE,) * c}
    vae = ImageVAE(config.model_copy(update=scale))
    named = vae_weights(published.under("autokl."), len(config.block_out_channels))
    return _filled(published, vae, "autokl.", "vae.", named, {})


@torch.no_grad()
def convert_xgem(
    source: Path, target: Path, *, preset: str = "xgem-published", allow_unused: bool = False
) -> Converted:
    """Convert the published weights in the folder ``source`` to the checkpoint ``target``.

    On an error nothing is written.

    Args:
        source: the folder with XGeM's ``.pt`` files, and with the vocabularies of its published code; where it lacks
            those, the tokenizers of the preset's pretrained report models are taken.
        target: a new or empty folder.
        preset: the architecture.
        allow_unused: skip weights that have no counterpart, instead of failing.

    Returns:
        The components, and the names of the weights that were skipped: those of video layers, and unknown ones if they
        are allowed.

    Raises:
        CheckpointError: a file is not safe to load, weights are missing, unused or of a different shape, or there are
            no tokenizers for them.
        ConfigError: a preset of another architecture. OutputError: ``target`` is not empty or not writable.
    """
    published, chosen = _Published(source), _preset(preset)
    image_name, text_name = chosen.encoder("frontal"), chosen.encoder("report")
    image, text = _part(chosen, image_name, ImageEncoderConfig), _part(chosen, text_name, TextEncoderConfig)
    if image.pretrained is None:
        raise ConfigError(f"preset {preset!r}: expected pretrained CLIP towers as encoders, like 'xgem-published'")
    image_codec, report_codec = chosen.codec("frontal"), chosen.codec("report")
    configs = _part(chosen, image_codec, ImageVAEConfig), _part(chosen, report_codec, ReportVAEConfig)
    alignment = _part(chosen, chosen.alignment, TransformerAlignmentConfig)
    names: list[str] = []
    with new_folder(target) as folder:
        init_checkpoint(folder, chosen)

        def save(name: str, component: Component) -> None:  # one in memory at a time
            save_component(folder, name, component)
            names.append(name)

        encoders = _towers(published, image, text)
        # For the null contexts: a black image (1, 1, s, s) in [-1, 1], and the empty text
        black = encoders[0].encode(torch.full((1, 1, image.image_size, image.image_size), -1.0)).pooled[0]  # (d,)
        empty = encoders[1].encode_ids(encoders[1].tokenizer([""])).pooled[0]
        nothing = {"frontal": black, "lateral": black, "report": empty}
        save(image_name, encoders[0])
        save(text_name, encoders[1])
        del encoders
        save(image_codec, _codec(published, configs[0]))
        codec, named = optimus(published.under("optimus."), source, configs[1])
        save(report_codec, _filled(published, codec, "optimus.", "", named, {}))
        del codec, named
        for output in _OUTPUTS:
            save(chosen.generator(output), _generator(published, chosen, output, nothing))
        save(str(chosen.alignment), _alignment(published, alignment))
        video, others = published.unused()
        unknown = refuse_unused(others, published.origin, allowed=allow_unused)
    return Converted(chosen.name, tuple(names), tuple(sorted({*video, *unknown})))
