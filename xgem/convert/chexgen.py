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
from xgem.convert.published import Converted, fill, read_weights_file, refuse_unused, tensors
from xgem.generators.controlnet import ControlNet
from xgem.generators.latent_diffusion import DiTLatentDiffusion
from xgem.types import CheckpointError, ConfigError
from xgem.utils.files import new_folder

_BLOCK = r"blocks\.(\d+)\."
_OURS = r"net.pixart.transformer_blocks.\1."

# Published name -> ours; a tuple: a joint projection, (3d, d) or (2d, d), is split into parts (d, d), in this order.
_NAMES: dict[str, str | tuple[str, ...]] = {
    r"x_embedder\.proj\.": "net.pixart.pos_embed.proj.",
    r"t_embedder\.mlp\.0\.": "net.pixart.adaln_single.emb.timestep_embedder.linear_1.",
    r"t_embedder\.mlp\.2\.": "net.pixart.adaln_single.emb.timestep_embedder.linear_2.",
    r"t_block\.1\.": "net.pixart.adaln_single.linear.",
    r"y_embedder\.y_proj\.fc1\.": "fusion.project.linear_1.",
    r"y_embedder\.y_proj\.fc2\.": "fusion.project.linear_2.",
    r"y_embedder\.y_embedding$": "fusion.null_caption",
    r"final_layer\.linear\.": "net.pixart.proj_out.",
    # Two tables, (2, d) and (6, d): ChexGen's name, then PixArt's.
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
"""Prefix of the transformer's names in files that also hold a ControlNet."""
PRESETS = {256: "chexgen-xl2-256", 1024: "chexgen-xl2-512"}
"""Number of position embeddings (patches of a latent) -> preset."""


def read_chexgen(path: Path, *, ema: bool = True) -> dict[str, Tensor]:
    """The published state dict; the EMA weights if ``ema`` is set and the file has both.

    Transformer names have no prefix; those of a ControlNet begin with ``controlnet.``.
    """
    state = read_weights_file(path)
    for key in ("state_dict_ema", "state_dict") if ema else ("state_dict",):
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    return {key.removeprefix(_BASE): value for key, value in tensors(state, path.name).items()}


def dit_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The transformer's weights by our names, and the published name of each; other weights are skipped."""
    ours: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for key, value in weights.items():
        for pattern, names in _NAMES.items():
            if re.match(pattern, key):
                # Joint projections, such as (3d, d), become one (d, d) per part
                parts = (names,) if isinstance(names, str) else names
                for part, chunk in zip(parts, value.tensor_split(len(parts)), strict=True):
                    name = re.sub(f"^{pattern}", part, key)
                    ours[name], source[name] = chunk.clone(), key
                break
    return ours, source


def control_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As ``dit_weights``, for the ControlNet. Its patch embedding is the transformer's."""
    ours: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for key, value in weights.items():
        copied = re.match(r"controlnet\.(\d+)\.copied_block\.(.+)", key)
        shared = {f"blocks.{copied[1]}.{copied[2]}": value} if copied else {}
        shared |= {key: value} if key.startswith("x_embedder.") else {}
        for dit_name, chunk in dit_weights(shared)[0].items():
            name = dit_name.replace("net.pixart.transformer_blocks.", "blocks.")
            name = name.replace("net.pixart.pos_embed.", "patches.")
            ours[name], source[name] = chunk, key
        for pattern, replacement in _CONTROL_NAMES.items():
            if re.match(pattern, key):
                name = re.sub(f"^{pattern}", replacement, key)
                ours[name], source[name] = value, key
    return ours, source


def _chosen(preset: str | None, weights: Mapping[str, Tensor], origin: str) -> Preset:
    if preset is not None:
        return load_preset(preset)
    positions = weights.get(_POSITIONS)  # (1, n, d)
    count = 0 if positions is None else positions.shape[1]
    if count not in PRESETS:
        known = ", ".join(f"{n} ({name})" for n, name in PRESETS.items())
        raise CheckpointError(f"{origin}: has {count} positions, expected {known}: choose a preset with --preset")
    return load_preset(PRESETS[count])


def _check_positions(model: DiTLatentDiffusion, weights: Mapping[str, Tensor], preset: Preset, origin: str) -> None:
    """Position embeddings are computed, not learned: those in the file must match the preset's grid and scale."""
    published = weights.get(_POSITIONS)
    ours: Any = model.net.pixart.pos_embed.pos_embed
    if published is not None and (
        published.shape != ours.shape or not torch.allclose(published.float(), ours.float(), atol=1e-2)
    ):
        raise CheckpointError(
            f"{origin}: pos_embed {tuple(published.shape)} is not that of preset {preset.name!r}, {tuple(ours.shape)} "
            f"at scale {model.config.position_scale:g}: choose the preset of its resolution with --preset"
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
    """Convert the published transformer at ``path``, and its ControlNet if it has one, to the checkpoint ``target``.

    On an error nothing is written.

    Args:
        path: a ``.pth`` file published with ChexGen.
        target: a new or empty folder.
        preset: name or file; None chooses the published size by the file's number of position embeddings.
        ema: use the EMA weights if the file has both.
        pretrained: also write the preset's pretrained codec and text encoder, fetched from the hub if necessary.
        allow_unused: skip weights that have no counterpart, instead of failing.

    Raises:
        CheckpointError: the file is not safe to load, or weights are missing, unexpected or of a different shape.
        ConfigError: the preset has no diffusion transformer. OutputError: ``target`` is not empty or not writable.
    """
    weights = read_chexgen(path, ema=ema)
    chosen = _chosen(preset, weights, path.name)
    name = chosen.generator("frontal")
    config = chosen.components[name]
    if not isinstance(config, DiTGeneratorConfig):
        raise ConfigError(f"preset {chosen.name!r}: {name!r} is a {config.kind}, expected a dit_generator")
    # Map names; refuse weights that neither network uses
    ours, source = dit_weights(weights)
    taken = set(source.values())
    steering = chosen.modalities["frontal"].control
    controlled = steering is not None and any(key.startswith(_CONTROL) for key in weights)
    controls, control_source = control_weights(weights) if controlled else ({}, {})
    taken |= set(control_source.values())
    unused = refuse_unused(weights.keys() - taken - {_POSITIONS}, path.name, allowed=allow_unused)
    # Build both networks and load the weights, shapes checked; the caller's RNG state is left as it was
    with torch.random.fork_rng(devices=[]):
        model = DiTLatentDiffusion(config)
        control = ControlNet(_control_config(chosen, steering)) if controlled and steering is not None else None
    fill(model, ours, source, path.name)
    _check_positions(model, weights, chosen, path.name)
    parts: dict[str, Component] = {name: model}
    if control is not None and steering is not None:
        fill(control, controls, control_source, path.name)
        parts[steering] = control
    # Write, with the pretrained components of the preset
    with new_folder(target) as folder:
        init_checkpoint(folder, chosen)
        for part, component in parts.items():
            save_component(folder, part, component)
        written = list(parts)
        for other, other_config in chosen.components.items():
            if pretrained and other not in parts and getattr(other_config, "pretrained", None) is not None:
                save_component(folder, other, component_class(other_config.kind).from_config(other_config))
                written.append(other)
    return Converted(chosen.name, tuple(written), unused)


def _control_config(preset: Preset, name: str) -> ControlNetConfig:
    config = preset.components[name]
    assert isinstance(config, ControlNetConfig)  # guaranteed by the preset's validation
    return config
