"""Presets: one validated YAML file says everything about a model and its training."""

from xgem.configs.components import TransformConfig
from xgem.configs.preset import Preset, load_preset, preset_names

__all__ = ["Preset", "TransformConfig", "load_preset", "preset_names"]
