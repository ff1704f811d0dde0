"""Components of a checkpoint that others start from, at the resolution and with the architecture of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xgem.checkpoints import store
from xgem.checkpoints.component import component_class
from xgem.configs.preset import Preset
from xgem.types import ConfigError

_NOT_ARCHITECTURE = {"latent_mean", "latent_std", "known_sentences", "latents_mean", "attends"}
"""What training measures, and what no weight depends on."""
_GRID = {"image_size", "latent_shape", "position_scale"}
"""What differs between resolutions of the same weights: codecs are convolutions, and a transformer's positions are
computed (ChexGen's stage II starts from stage I's weights at twice the resolution)."""


def architecture(config: Any) -> dict[str, Any]:
    """What a component's weights depend on."""
    scalable = config.kind in ("image_vae", "dit_generator", "controlnet")
    return config.model_dump(exclude=_NOT_ARCHITECTURE | (_GRID if scalable else set()))


def _resized(component: Any, config: Any) -> Any:
    """A component at the resolution that ``config`` asks for."""
    own = component.config
    changed = {
        key: getattr(config, key) for key in _GRID if hasattr(own, key) and getattr(own, key) != getattr(config, key)
    }
    if not changed or getattr(config, "pretrained", None) is not None:
        return component
    other = component_class(own.kind).from_config(own.model_copy(update=changed))
    other.load_state_dict(component.state_dict())
    return other


def check_architecture(checkpoint: Path, name: str, preset: Preset) -> None:
    """ConfigError where a component of ``checkpoint`` is of another architecture than the preset's."""
    config, found = preset.components[name], store.read_component_config(checkpoint, name)
    if getattr(config, "pretrained", None) is None and architecture(found) != architecture(config):
        raise ConfigError(
            f"checkpoint {checkpoint.name}: its {name!r} is of another architecture than preset {preset.name!r} gives: "
            "use the preset that it was trained with"
        )


def fitting(checkpoint: Path, name: str, preset: Preset) -> Any:
    """A component of ``checkpoint`` at the resolution of the preset."""
    return _resized(store.load_component(checkpoint, name), preset.components[name])


def start_from(init: Path, preset: Preset, root: Path) -> None:
    """Put ``init``'s components into ``root`` where it lacks them; ConfigError where one is of another architecture.

    For one of several processes, as all that writes ``root``.
    """
    there = store.read_index(init).components
    for name in preset.components:
        if name not in there:
            continue
        check_architecture(init, name, preset)
        if name not in store.read_index(root).components:
            store.save_component(root, name, fitting(init, name, preset))
