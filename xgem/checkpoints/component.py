"""The base class of all trainable parts of xgem, and the registry of their kinds.

A component is an ``nn.Module`` that is built from one configuration object and nothing else, so that a checkpoint
folder (``config.json``, safetensors, assets such as tokenizers) is all that is needed to load it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from xgem.types import ConfigError

COMPONENTS: dict[str, str] = {
    "image_encoder": "xgem.encoders.image:ImageEncoder",
    "text_encoder": "xgem.encoders.text:TextEncoder",
    "t5_encoder": "xgem.encoders.t5:T5Encoder",
    "image_vae": "xgem.generators.image_vae:ImageVAE",
    "report_vae": "xgem.generators.report_vae:ReportVAE",
    "image_generator": "xgem.generators.latent_diffusion:ImageLatentDiffusion",
    "dit_generator": "xgem.generators.latent_diffusion:DiTLatentDiffusion",
    "report_generator": "xgem.generators.latent_diffusion:ReportLatentDiffusion",
    "fc_report_generator": "xgem.generators.latent_diffusion:FCReportLatentDiffusion",
    "controlnet": "xgem.generators.controlnet:ControlNet",
    "alignment": "xgem.alignment.model:Alignment",
    "transformer_alignment": "xgem.alignment.model:TransformerAlignment",
}


class Component(nn.Module):
    """A module with a ``config``; subclasses set ``kind`` and are listed in ``COMPONENTS``."""

    kind: ClassVar[str]
    config: Any

    @classmethod
    def from_config(cls, config: Any, assets: Path | None = None) -> Self:
        """Build the module with newly initialised weights; ``assets`` is a folder written by ``save_assets``."""
        del assets
        return cls(config)  # type: ignore[call-arg]

    def save_assets(self, directory: Path) -> None:
        """Write what is needed besides config and weights (tokenizers); nothing by default."""
        del directory


def component_class(kind: str) -> type[Component]:
    """The class registered under ``kind``; ConfigError lists the known kinds."""
    if kind not in COMPONENTS:
        raise ConfigError(f"unknown component kind {kind!r}: expected one of {', '.join(COMPONENTS)}")
    module, name = COMPONENTS[kind].split(":")
    return getattr(importlib.import_module(module), name)
