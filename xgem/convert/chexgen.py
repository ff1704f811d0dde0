"""ChexGen's published diffusion transformers (PixArt's layout, ``.pth``) as xgem checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xgem.checkpoints.component import Component, component_class
from xgem.checkpoints.store import init_checkpoint, save_component
from xgem.configs.components import ControlNetConfig, DiTGeneratorConfig
from xgem.configs.preset import Preset, load_preset
from xgem.convert.published import Converted, fill, read_weights_file, refuse_left_over, tensors
from xgem.generators.controlnet import ControlNet
from xgem.generators.latent_diffusion import DiTLatentDiffusion
from xgem.types import CheckpointError, ConfigError
from xgem.utils.files import new_folder

_BLOCK = r"blocks\.(\d+)\."
_OURS = r"net.pixart.transformer_blocks.\1."

# Published name -> ours, or several: a joint projection is cut into equal parts, in this order.
_NAMES: dict[str, str | tuple[str, ...]] = {
    r"x_embedder\.proj\.": "net.pixart.pos_embed.proj.",
    r"t_embedder\.mlp\.0\.": "net.pixart.adaln_single.emb.timestep_embedder.linear_1.",
    r"t_embedder\.mlp\.2\.": "net.pixart.adaln_single.emb.timestep_embedder.linear_2.",
    r"t_block\.1\.": "net.pixart.adaln_single.linear.",
    r"y_embedder\.y_proj\.fc1\.": "fusion.project.linear_1.",
    r"y_embedder\.y_proj\.fc2\.": "fusion.project.linear_2.",
    r"y_embedder\.y_embedding$": "fusion.null_caption",
    r"final_layer\.linear\.": "net.pixart.proj_out.",
    # ChexGen's names of the two tables, then PixArt's.
    r"final_layer\.(?:shift_scale_table|scale_shift_table)$": "net.pixart.scale_shift_table",
    _BLOCK + r"(?:shift_scale_gate_table|scale_shift_table)$": _OURS + "scale_shift_table",
    _BLOCK + r"attn\.qkv\.": tuple(f"{_OURS}attn1.to_{part}." for part in "qkv"),
    _BLOCK + r"attn\.proj\.": _OURS + "attn1.to_out.0.",
    _BLOCK + r"cross_attn\.q_linear\.": _OURS + "attn2.to_q.",
    _BLOCK + r"cross_attn\.kv_linear\.": tuple(f"{_OURS}attn2.to_{part}." for part in "kv"),
    _BLOCK + r"cross_attn\.proj\.": _OURS + "attn2.to_out.0.",
    _BLOCK + r"mlp\.fc1\.": _OURS + "ff.net.0.proj.",
    _BLOCK + r"mlp\.fc2\.": _OURS + "ff.net.2.",
}
_CONTROL = "controlnet."
_CONTROL_NAMES = {
    r"controlnet\.0\.before_proj\.": "enter.",
    r"controlnet\.(\d+)\.after_proj\.": r"leave.\1.",
}
_POSITIONS = "pos_embed"
_BASE = "base_model."
"""What the transformer's names begin with where a ControlNet is published with it."""
PRESETS = {256: "chexgen-xl2-256", 1024: "chexgen-xl2-512"}
"""By the number of positions."""


def read_chexgen(path: Path, *, ema: bool = True) -> dict[str, Tensor]:
    """The published state dict, of the averaged weights where the file has both and ``ema`` is set.

    Names are those of the transformer alone; a ControlNet's begin with ``controlnet.``.
    """
    found = read_weights_file(path)
    for key in ("state_dict_ema", "state_dict") if ema else ("state_dict",):
        if isinstance(found.get(key), Mapping):
            found = found[key]
            break
    return {key.removeprefix(_BASE): value for key, value in tensors(found, path.name).items()}


def dit_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Published weights by our names, and the published name of each; what is no transformer's is left out."""
    ours: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for key, value in weights.items():
        for pattern, names in _NAMES.items():
            if re.match(pattern, key):
                parts = (names,) if isinstance(names, str) else names
                for part, chunk in zip(parts, value.tensor_split(len(parts)), strict=True):
                    name = re.sub(f"^{pattern}", part, key)
                    ours[name], source[name] = chunk.clone(), key
                break
    return ours, source


def control_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As ``dit_weights``, of the ControlNet; it reads annotations as the transformer reads latents."""
    ours: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for key, value in weights.items():
        copied = re.match(r"controlnet\.(\d+)\.copied_block\.(.+)", key)
        found = {f"blocks.{copied[1]}.{copied[2]}": value} if copied else {}
        found |= {key: value} if key.startswith("x_embedder.") else {}
        for name, chunk in dit_weights(found)[0].items():
            own = name.replace("net.pixart.transformer_blocks.", "blocks.").replace("net.pixart.pos_embed.", "patches.")
            ours[own], source[own] = chunk, key
        for pattern, name in _CONTROL_NAMES.items():
            if re.match(pattern, key):
                own = re.sub(f"^{pattern}", name, key)
                ours[own], source[own] = value, key
    return ours, source


def _chosen(preset: str | None, weights: Mapping[str, Tensor], origin: str) -> Preset:
    if preset is not None:
        return load_preset(preset)
    positions = weights.get(_POSITIONS)
    count = 0 if positions is None else positions.shape[1]
    if count not in PRESETS:
        known = ", ".join(f"{n} ({name})" for n, name in PRESETS.items())
        raise CheckpointError(f"{origin}: has {count} positions, expected {known}: name a preset with --preset")
    return load_preset(PRESETS[count])


def _check_positions(model: DiTLatentDiffusion, weights: Mapping[str, Tensor], preset: Preset, origin: str) -> None:
    """Positions are computed, not learned: those in the file tell whether the preset's grid and scale are its own."""
    published = weights.get(_POSITIONS)
    ours: Any = model.net.pixart.pos_embed.pos_embed
    if published is not None and (
        published.shape != ours.shape or not torch.allclose(published.float(), ours.float(), atol=1e-2)
    ):
        raise CheckpointError(
            f"{origin}: pos_embed {tuple(published.shape)} is not that of preset {preset.name!r}, {tuple(ours.shape)} "
            f"at scale {model.config.position_scale:g}: name the preset of its resolution with --preset"
        )


def convert_chexgen(
    path: Path,
    target: Path,
    *,
    preset: str | None = None,
    ema: bool = True,
    pretrained: bool = True,
    allow_unused: bool = False,
) -> Converted:
    """Write the published transformer at ``path``, with its ControlNet if it has one, as the checkpoint ``target``.

    All of it is written, or nothing.

    Args:
        path: a ``.pth`` file as ChexGen publishes.
        target: a new or empty folder.
        preset: name or file; None takes that of the published size whose number of positions the file has.
        ema: take the averaged weights where there are both.
        pretrained: write the preset's pretrained codec and encoder too, which may be fetched from the hub.
        allow_unused: leave out weights that have no place, instead of an error.

    Raises:
        CheckpointError: the file is not safe to read, lacks a weight, has one of another shape or one too many.
        ConfigError: the preset has no diffusion transformer. OutputError: the target is used or cannot be written.
    """
    weights = read_chexgen(path, ema=ema)
    chosen = _chosen(preset, weights, path.name)
    name = chosen.generator("frontal")
    config = chosen.components[name]
    if not isinstance(config, DiTGeneratorConfig):
        raise ConfigError(f"preset {chosen.name!r}: {name!r} is a {config.kind}, expected a dit_generator")
    ours, source = dit_weights(weights)
    taken = set(source.values())
    steering = chosen.modalities["frontal"].control
    controlled = steering is not None and any(key.startswith(_CONTROL) for key in weights)
    controls, control_source = control_weights(weights) if controlled else ({}, {})
    taken |= set(control_source.values())
    unused = refuse_left_over(weights.keys() - taken - {_POSITIONS}, path.name, allowed=allow_unused)
    with torch.random.fork_rng(devices=[]):
        model = DiTLatentDiffusion(config)
        control = ControlNet(_control_config(chosen, steering)) if controlled and steering is not None else None
    fill(model, ours, source, path.name)
    _check_positions(model, weights, chosen, path.name)
    parts: dict[str, Component] = {name: model}
    if control is not None and steering is not None:
        fill(control, controls, control_source, path.name)
        parts[steering] = control
    with new_folder(target) as folder:
        init_checkpoint(folder, chosen)
        for part, component in parts.items():
            save_component(folder, part, component)
        written = list(parts)
        for other, its_config in chosen.components.items():
            if pretrained and other not in parts and getattr(its_config, "pretrained", None) is not None:
                save_component(folder, other, component_class(its_config.kind).from_config(its_config))
                written.append(other)
    return Converted(chosen.name, tuple(written), unused)


def _control_config(preset: Preset, name: str) -> ControlNetConfig:
    config = preset.components[name]
    assert isinstance(config, ControlNetConfig)  # as the preset's validation has it
    return config
