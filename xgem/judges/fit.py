"""The training loop shared by judges and downstream networks: seeded, resumable by epoch, cached by content."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.checkpoints import training as checkpoint
from xgem.data.cache import ArrayCache
from xgem.judges.settings import Stage
from xgem.types import CheckpointError
from xgem.utils.progress import StepBar

logger = logging.getLogger(__name__)

RowsLoss = Callable[[Tensor], Tensor]
"""From the indices (b,) of a batch in the training set to the batch's loss."""


def one_cycle(progress: float) -> float:
    """One cycle: linear warm-up over the first tenth, then a cosine to zero."""
    return progress / 0.1 if progress < 0.1 else cosine((progress - 0.1) / 0.9)


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: Final[dict[str, Callable[[float], float]]] = {
    "constant": lambda progress: 1.0,
    "cosine": cosine,
    "one_cycle": one_cycle,
}
"""Factors of the learning rate as functions of progress in [0, 1)."""


def fit(
    network: nn.Module,
    loss: RowsLoss,
    n: int,
    stage: Stage,
    *,
    seed: int,
    device: torch.device,
    name: str,
    chances: Tensor | None = None,
    autocast: bool = True,
    folder: Path | None = None,
) -> None:
    """Train a network in place on a set of ``n`` images; afterwards it is in evaluation mode.

    Every epoch draws its order and augmentation from its own seed, so that a resumed training equals an uninterrupted
    one. The global random state is left alone. An incomplete last batch of an epoch is dropped.

    Args:
        chances: (n,) weights by which images are drawn with replacement; by default each comes once per epoch.
        autocast: whether a GPU trains in bfloat16.
        folder: keeps the last complete epoch, from which an interrupted training resumes.

    Raises:
        CheckpointError: ``folder`` holds the training of another network.
    """
    # Length of the training, and where it resumes
    size = min(stage.batch_size, n)
    steps_per_epoch = n // size
    total = stage.steps or steps_per_epoch * (stage.epochs or 1)
    epochs = math.ceil(total / steps_per_epoch)
    optimizer, rate = _optimizer(network, stage), SCHEDULES[stage.schedule]
    first = _resumed(network, optimizer, folder, name) if folder else 0
    network.train()
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(generators), StepBar(f"training {name}", total, done=first * steps_per_epoch) as bar:
        for epoch in range(first, epochs):
            torch.manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(n) if chances is None else torch.multinomial(chances, n, replacement=True)
            steps = range(epoch * steps_per_epoch, min(total, (epoch + 1) * steps_per_epoch))
            loss_sum = 0.0
            for step in steps:
                rows = order[(step - steps.start) * size :][:size]  # (b,)
                for group in optimizer.param_groups:
                    group["lr"] = stage.learning_rate * rate(step / total)
                # bfloat16 is ten times slower than float32 on CPUs without native support, so only GPUs use it
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast and device.type == "cuda"):
                    value = loss(rows)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                loss_sum += float(value.detach())
                bar.move_to(step + 1, f"epoch {epoch + 1} of {epochs}")
            logger.info("%s: epoch %d of %d, loss %.4f", name, epoch + 1, epochs, loss_sum / len(steps))
            if folder:
                parts = {"network": network.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)}
                checkpoint.save(folder, checkpoint.TrainState(step=epoch + 1), name, parts, keep=1)
    network.eval()


def _resumed(network: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, name: str) -> int:
    """Load the last complete epoch; returns the number of finished epochs."""
    latest = checkpoint.latest(folder)
    if latest is None:
        return 0
    state, tensors = checkpoint.load_state(latest, name), checkpoint.load(latest)
    if not {"network", "optimizer"} <= tensors.keys():
        raise CheckpointError(f"training checkpoint {latest} holds {', '.join(tensors)}: delete it")
    checkpoint.load_weights(network, tensors["network"], latest)
    checkpoint.load_optimizer(optimizer, tensors["optimizer"])
    logger.info("%s: resuming after epoch %d", name, state.step)
    return state.step


def _optimizer(network: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=stage.learning_rate, momentum=0.9, weight_decay=stage.weight_decay)
    optimizer_class = torch.optim.Adam if stage.optimizer == "adam" else torch.optim.AdamW
    return optimizer_class(parameters, lr=stage.learning_rate, weight_decay=stage.weight_decay)


def train_or_load(
    network: nn.Module, train: Callable[[Path | None], None], cache: Path | None, kind: str, key: Mapping[str, Any]
) -> None:
    """Train a network in place, or load its weights from ``cache`` if it holds them for the same data and settings.

    Args:
        train: trains the network, given the folder that keeps its complete epochs (None without a cache).
        kind, key: as :meth:`xgem.data.cache.ArrayCache.get_or_make`.
    """
    if cache is None:
        train(None)
        return
    store = ArrayCache(cache)

    def weights() -> Mapping[str, Tensor]:
        train(store.unfinished(kind, key))
        return network.state_dict()

    network.load_state_dict(store.get_or_make(kind, key, weights))


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of (b, classes) logits over the known labels: 1 or 0, not NaN."""
    known = torch.isfinite(labels)
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)
