"""Trains the network of a downstream task, on one set or first on synthetic images and then on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xgem.data.augment import to_input
from xgem.judges.fit import fit
from xgem.judges.settings import Stage
from xgem.judges.tasks.data import Data
from xgem.judges.tasks.task import Task
from xgem.metrics.bootstrap import Array
from xgem.types import InputError


def train(
    task: Task,
    main: Data,
    *,
    pretraining: Data | None = None,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
) -> nn.Module:
    """A network trained for a task: on ``main`` alone, or first on ``pretraining`` and then fine-tuned on ``main``.

    Args:
        folder: keeps the last whole epoch of each stage, and an interrupted training resumes from it.

    Raises:
        InputError: fewer than two images, or pretraining without settings for it.
    """
    settings = task.settings
    stages: list[tuple[str, Data, Stage]] = [("training", main, settings.training)]
    if pretraining is not None:
        if settings.pretraining is None or settings.finetuning is None:
            raise InputError(f"{settings.task}: these settings have no pretraining and fine-tuning; give both")
        stages = [("pretraining", pretraining, settings.pretraining), ("finetuning", main, settings.finetuning)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = task.network()
        task.prepare(network, main.targets)
        network.to(device)
    for name, data, stage in stages:
        _fit(task, network, data, stage, seed, device, name, folder / name if folder else None)
    return network


def _fit(
    task: Task,
    network: nn.Module,
    data: Data,
    stage: Stage,
    seed: int,
    device: torch.device,
    name: str,
    folder: Path | None,
) -> None:
    if len(data) < 2:
        raise InputError(f"{len(data)} training images; expected at least 2")
    images = torch.from_numpy(data.images)
    targets = {key: torch.from_numpy(target) for key, target in data.targets.items()}
    chances = None
    if task.settings.sampling == "balanced":
        chances = torch.from_numpy(balanced_chances(task.presence(data.targets)))

    def loss(rows: Tensor) -> Tensor:
        x = to_input(images[rows].to(device), task.settings.size)  # (b, 1, s, s)
        return task.loss(network, x, {key: target[rows].to(device) for key, target in targets.items()})

    fit(
        network,
        loss,
        len(data),
        stage,
        seed=seed,
        device=device,
        name=f"{task.settings.task} {name}",
        chances=chances,
        autocast=task.autocast,
        folder=folder,
    )


def balanced_chances(presence: np.ndarray) -> Array:
    """Chances of (n, classes) images by which every class comes equally often; those without any count as one more.

    An image's is the sum over its classes of one over the class's size.
    """
    groups = np.concatenate([presence, ~presence.any(axis=1, keepdims=True)], axis=1).astype(np.float64)
    return (groups / np.maximum(groups.sum(axis=0), 1)).sum(axis=1)
