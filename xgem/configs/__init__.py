"""Presets: one validated YAML file says everything about a model and its training."""

from xgem.configs.schema import Preset, TransformConfig, load_preset, preset_names

__all__ = ["Preset", "TransformConfig", "load_preset", "preset_names"]
