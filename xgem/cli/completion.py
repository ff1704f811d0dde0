"""What a shell completes as the value of an option (``xgem --install-completion``). Imports no torch."""

from __future__ import annotations

from typing import Final, get_args

STAGES: Final = (
    "image-vae", "image-decoder", "clip", "report-vae", "frontal", "lateral", "report", "joint", "control",
    "all", "reid", "lora", "full",
)  # fmt: skip
"""Of ``xgem train``: those of ``xgem.train.stages.stages``, which would import torch, and those that are none."""


def samplers(incomplete: str) -> list[str]:
    """Samplers that a preset may name."""
    from xgem.configs.preset import SamplingConfig

    return _starting(incomplete, get_args(SamplingConfig.model_fields["sampler"].annotation))


def presets(incomplete: str) -> list[str]:
    """Presets that ship with xgem."""
    from xgem.configs.preset import preset_names

    return _starting(incomplete, preset_names())


def models(incomplete: str) -> list[str]:
    """Embedded checkpoints."""
    from xgem.checkpoints.locate import embedded_names

    return _starting(incomplete, embedded_names())


def outputs(incomplete: str) -> list[str]:
    """Outputs of the default preset, after those that stand there already: ``lateral,re``."""
    from xgem.checkpoints.locate import DEFAULT_MODEL
    from xgem.configs.preset import load_preset

    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [
        f"{before}{comma}{name}" for name in _starting(last, load_preset(DEFAULT_MODEL).outputs) if name not in given
    ]


def stages(incomplete: str) -> list[str]:
    """Stages of training."""
    return _starting(incomplete, STAGES)


def _starting(incomplete: str, names: tuple[str, ...] | list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
