"""Pretrained open_clip towers, from a hub id or a local directory, or rebuilt from a saved architecture."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from xgem.types import CheckpointError


def open_clip_part(name: str) -> Any:
    """A module of open_clip, ``"transformer"`` say, by itself: open_clip's ``__init__`` imports all of timm.

    It is a copy with its own classes, in a package of another name, so that ``import open_clip`` works as ever.
    """
    alias = "_xgem_open_clip"
    if alias not in sys.modules:
        spec = find_spec("open_clip")
        if spec is None:
            raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
        package = ModuleType(alias)
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[alias] = package
    module: ModuleType = importlib.import_module(f"{alias}.{name}")
    return module


@dataclass
class Towers:
    """Both towers of an open_clip model, and the configuration that rebuilds them without pretrained weights."""

    visual: Any
    text: Any
    tokenizer: Any
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and standard deviations (3 each, images in [0, 1]) that the towers were trained with."""
        import open_clip

        mean, std = (self.preprocess_cfg.get(key) for key in ("mean", "std"))
        return tuple(mean or open_clip.OPENAI_DATASET_MEAN), tuple(std or open_clip.OPENAI_DATASET_STD)

    @property
    def image_size(self) -> int:
        return int(self.model_cfg["vision_cfg"]["image_size"])

    @property
    def embed_dim(self) -> int:
        return int(self.model_cfg["embed_dim"])

    @property
    def context_length(self) -> int:
        return int(self.model_cfg["text_cfg"].get("context_length", 77))

    def described(self) -> Towers:
        """A copy without the towers, which does not keep their weights in memory."""
        return replace(self, visual=None, text=None)

    def save_architecture(self, directory: Path) -> None:
        saved = {"model_cfg": self.model_cfg, "preprocess_cfg": self.preprocess_cfg}
        (directory / "open_clip_config.json").write_text(json.dumps(saved, indent=2))


def _build(cfg: dict[str, Any]) -> nn.Module:
    import open_clip

    known = {key: cfg[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in cfg}
    return open_clip.CustomTextCLIP(**known)


def _towers(model: Any, read: dict[str, Any]) -> Towers:
    import open_clip

    cfg = read["model_cfg"]
    tokenizer = open_clip.SimpleTokenizer(context_length=int(cfg["text_cfg"].get("context_length", 77)))
    return Towers(model.visual, model.text, tokenizer, cfg, read.get("preprocess_cfg") or {})


def _read(config: Path) -> dict[str, Any]:
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
        _ = read["model_cfg"]["embed_dim"], read["model_cfg"]["vision_cfg"]["image_size"], read["model_cfg"]["text_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config}: not an open_clip configuration ({type(error).__name__}: {error})") from None
    return read


def load_towers(source: str) -> Towers:
    """Towers with their weights from ``source``: a directory with ``open_clip_config.json`` and
    ``open_clip_model.safetensors``, or a hub id (``org/name``) laid out the same way.

    Raises CheckpointError if it cannot be found, has no safetensors file, or does not match its configuration.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=["open_clip_*.json", "open_clip_model.safetensors"]))
        except Exception as error:  # the hub client raises many types; all mean that the towers cannot be fetched
            raise CheckpointError(
                f"open_clip towers {source!r}: no such directory, and the hub did not answer ({type(error).__name__}): "
                "give a local directory"
            ) from None
    config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise CheckpointError(f"open_clip towers {source}: {file.name} is missing")
    from safetensors.torch import load_file

    read = _read(config)
    model = _build(read["model_cfg"])
    state = load_file(weights)
    if "text.transformer.resblocks.0.ln_1.weight" not in state:  # CLIP keeps the text tower's parts at the top level
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    state.pop("text.attn_mask", None)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"open_clip towers {source}: {str(error).splitlines()[-1].strip()}") from None
    return _towers(model, read)


def saved_architecture(directory: Path) -> Towers:
    """Towers with fresh weights, from the files of ``save_architecture``."""
    return fresh_towers(_read(directory / "open_clip_config.json"))


def fresh_towers(read: dict[str, Any]) -> Towers:
    """Towers with fresh weights, from the contents of an open_clip configuration."""
    return _towers(_build(read["model_cfg"]), read)
