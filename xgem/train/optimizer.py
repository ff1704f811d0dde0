"""The optimizer of a stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xgem.configs.preset import StageConfig

_KINDS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def optimizer_of(module: nn.Module, config: StageConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a stage's trained parameters, at its peak learning rate.

    ``adam`` adds the weight decay to the gradient (Kingma & Ba 2015, with an L2 penalty), ``adamw`` takes it from the
    weights (Loshchilov & Hutter 2019). ``fused``: one kernel a step for all parameters.
    """
    groups = parameter_groups(module, config)
    return _KINDS[config.optimizer](groups, lr=config.learning_rate, betas=config.betas, fused=fused or None)


def parameter_groups(module: nn.Module, config: StageConfig) -> list[dict[str, Any]]:
    """Trained parameters with their weight decay: of matrices and kernels alone, or of all."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if config.decayed == "all":
        return [{"params": trained, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
