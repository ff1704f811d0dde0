"""Models in the formats of other libraries: which pipeline opens one.

The classes lie in rooms above this one, and are found by name when a model asks for one, as components are by their
kind.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

DIFFUSERS: Final = "diffusers:"
"""What names of diffusers pipelines begin with."""
PEER_RECORD: Final = "xgem_peer.json"
"""The file that says what a trained peer is: a LoRA with its base, or a whole pipeline."""
_CLASS: Final = "xgem.peers.pipeline:PeerPipeline"


def is_peer(model: Any) -> bool:
    """Whether a model is a diffusers pipeline, or was trained from one."""
    if not isinstance(model, str | Path):
        return False
    return str(model).startswith(DIFFUSERS) or (Path(model) / PEER_RECORD).is_file()


def other_pipeline(model: Any) -> type[Any] | None:
    """The class, a kind of ``XgemPipeline``, that opens what is no checkpoint of xgem; None for one that is."""
    if not is_peer(model):
        return None
    module, name = _CLASS.split(":")
    return getattr(importlib.import_module(module), name)
