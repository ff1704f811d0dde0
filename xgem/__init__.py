"""xgem generates any missing part of a chest-radiography study (frontal, lateral, report) from the parts you have.

>>> import xgem
>>> generation = xgem.generate({"frontal": "cxr.png"}, ["lateral", "report"], seed=7)
>>> generation.lateral[0].size, generation.report[0]

Importing the package does not import torch; what needs torch is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgem._version import __version__
from xgem.types import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    ImageError,
    InputError,
    ManifestError,
    OptionError,
    OutputError,
    PrivacyError,
    SamplingError,
    ShapeError,
    XgemError,
)

if TYPE_CHECKING:
    from xgem.api import generate as generate
    from xgem.api import load as load
    from xgem.pipeline.generation import Generation as Generation
    from xgem.pipeline.pipeline import XgemPipeline as XgemPipeline
    from xgem.pipeline.privacy_gate import PrivacyGate as PrivacyGate

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "Generation",
    "ImageError",
    "InputError",
    "ManifestError",
    "OptionError",
    "OutputError",
    "PrivacyError",
    "PrivacyGate",
    "SamplingError",
    "ShapeError",
    "XgemError",
    "XgemPipeline",
    "__version__",
    "generate",
    "load",
]

_LAZY = {
    "generate": "xgem.api",
    "load": "xgem.api",
    "Generation": "xgem.pipeline.generation",
    "PrivacyGate": "xgem.pipeline.privacy_gate",
    "XgemPipeline": "xgem.pipeline.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import the generating half of the package when it is first asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'xgem' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
