"""The one training loop of all downstream tasks, and what runs a trained network over images."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from xgem.data.augment import to_input
from xgem.judges.fit import one_cycle
from xgem.judges.settings import Stage
from xgem.judges.tasks.data import Data
from xgem.judges.tasks.task import Task
from xgem.metrics.bootstrap import Array
from xgem.types import InputError

logger = logging.getLogger(__name__)


def train(task: Task, main: Data, *, pretraining: Data | None = None, seed: int, device: torch.device) -> nn.Module:
    """A network trained for a task: on ``main`` alone, or first on ``pretraining`` and then fine-tuned on ``main``.

    Raises:
        InputError: fewer than two images, or pretraining without settings for it.
    """
    settings = task.settings
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = task.network()
        task.prepare(network, main.targets)
        network.to(device)
        if pretraining is None:
            _fit(task, network, main, settings.training, seed, device)
        else:
            if settings.pretraining is None or settings.finetuning is None:
                raise InputError(f"{settings.task}: these settings have no pretraining and fine-tuning; give both")
            _fit(task, network, pretraining, settings.pretraining, seed, device)
            _fit(task, network, main, settings.finetuning, seed, device)
    return network.eval()


def _fit(task: Task, network: nn.Module, data: Data, stage: Stage, seed: int, device: torch.device) -> None:
    if len(data) < 2:
        raise InputError(f"{len(data)} training images; expected at least 2")
    size = min(stage.batch_size, len(data))
    each = len(data) // size
    total = stage.steps or each * (stage.epochs or 1)
    optimizer, rate = _optimizer(network, stage), _rate(stage)
    images = torch.from_numpy(data.images)
    targets = {name: torch.from_numpy(target) for name, target in data.targets.items()}
    chances = None
    if task.settings.sampling == "balanced":
        chances = torch.from_numpy(balanced_chances(task.presence(data.targets)))
    order = torch.empty(0, dtype=torch.long)
    network.train()
    for step in range(total):
        if step % each == 0:
            torch.manual_seed(seed * 1_000_003 + step // each)
            order = torch.randperm(len(data)) if chances is None else torch.multinomial(chances, len(data), True)
        rows = order[step % each * size : (step % each + 1) * size]
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * rate(step / total)
        x = to_input(images[rows].to(device), task.settings.size)
        batch = {name: target[rows].to(device) for name, target in targets.items()}
        # bfloat16 is ten times slower than float32 on processors that lack it, so only GPUs use it
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=task.autocast and device.type == "cuda"):
            loss = task.loss(network, x, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step == total - 1 or step % max(1, total // 10) == 0:
            logger.info("%s: step %d of %d, loss %.4f", task.settings.task, step + 1, total, float(loss.detach()))
    network.eval()


def balanced_chances(presence: np.ndarray) -> Array:
    """Chances of (n, classes) images by which every class comes equally often; those without any count as one more.

    An image's is the sum over its classes of one over the class's size.
    """
    groups = np.concatenate([presence, ~presence.any(axis=1, keepdims=True)], axis=1).astype(np.float64)
    return (groups / np.maximum(groups.sum(axis=0), 1)).sum(axis=1)


def _optimizer(network: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    parameters = [one for one in network.parameters() if one.requires_grad]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=stage.learning_rate, momentum=0.9, weight_decay=stage.weight_decay)
    kind = torch.optim.Adam if stage.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=stage.learning_rate, weight_decay=stage.weight_decay)


def _rate(stage: Stage) -> Callable[[float], float]:
    if stage.schedule == "one_cycle":
        return one_cycle
    if stage.schedule == "cosine":
        return lambda progress: 0.5 * (1 + float(np.cos(np.pi * progress)))
    return lambda progress: 1.0
