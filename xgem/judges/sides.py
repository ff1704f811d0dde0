"""On which side of the patient a frontal shows a finding: a small network, trained on real images only.

It looks at the two halves of an image with the same filters and gives each half a logit per group of findings; an image
shows a finding on the side with the larger one. It learns from halves whose annotation is known (a report or a box that
names one side, or both), and where a finding has no side, from the larger of the two. A bias for each place lets the
heart, which lies on the left, be no opacity. Images are never mirrored, in training or after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xgem.checkpoints.locate import ASSETS
from xgem.data.augment import augmented, standardised, to_input
from xgem.data.sets import Images, squares
from xgem.judges.fit import fit, label_loss
from xgem.judges.networks import SmallResNet, batches
from xgem.judges.settings import JudgeConfig
from xgem.labels.sides import SIDES, Side, only_side
from xgem.metrics.bootstrap import Array
from xgem.types import CheckpointError, InputError
from xgem.utils.files import one_line, read_json, replacing, write_json
from xgem.utils.hashing import module_hash

SHIPPED: Final = ASSETS / "judges" / "sides"
RECORD: Final = "sides.json"
WEIGHTS: Final = "model.safetensors"
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "effusion": ("Pleural Effusion",),
    "opacity": ("Lung Opacity", "Consolidation", "Pneumonia", "Atelectasis"),
    "lesion": ("Lung Lesion",),
    "pneumothorax": ("Pneumothorax",),
}
"""What is told apart: CheXpert classes that look alike from the side's point of view are one group."""
STAGES: Final = 10
"""Modules of :class:`xgem.judges.networks.SmallResNet` up to the end of its third stage, 16 pixels a place."""


@dataclass(frozen=True)
class SideConfig(JudgeConfig):
    """Settings of the network of sides."""

    epochs: int = 12
    learning_rate: float = 1e-3
    dropout: float = 0.2


class SideNetwork(nn.Module):
    """Logits by group and half; the first three stages are those of the judge of findings."""

    def __init__(self, groups: int, config: SideConfig) -> None:
        super().__init__()
        places = config.size // 16
        self.body = SmallResNet(1, config.width, 0).body[:STAGES]
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = nn.Conv2d(4 * config.width, groups, 1)
        self.place = nn.Parameter(torch.zeros(groups, places, places))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, s, s) in [-1, 1] -> (b, groups, 2): the patient's left and right."""
        return self.read(self.maps(x))

    def maps(self, x: Tensor) -> Tensor:
        """(b, 1, s, s) in [-1, 1] -> (b, 4 * width, s / 16, s / 16)."""
        return self.body(standardised(x))

    def read(self, maps: Tensor) -> Tensor:
        """(b, 4 * width, s / 16, s / 16) -> (b, groups, 2): the patient's left and right."""
        maps = self.head(self.dropout(maps)) + self.place  # (b, groups, s / 16, s / 16)
        half = maps.shape[-1] // 2
        return torch.stack([_pooled(maps[..., half:]), _pooled(maps[..., :half])], dim=-1)


def _pooled(maps: Tensor) -> Tensor:
    """(b, groups, h, w) -> (b, groups): between mean and maximum."""
    return maps.flatten(2).logsumexp(dim=2) - math.log(maps.shape[-1] * maps.shape[-2])


class SideJudge:
    """A trained network of sides. ``groups`` names its outputs, ``hash`` identifies its weights.

    ``told`` are the groups whose sides it tells better than chance on held-out images; all, unless given. ``accuracy``
    is what a record says of it.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[str],
        config: SideConfig,
        accuracy: Mapping[str, Any] | None = None,
        told: Sequence[str] | None = None,
    ) -> None:
        self._network = network.eval()
        self.groups = tuple(groups)
        self.told = self.groups if told is None else tuple(told)
        self.config = config
        self.accuracy = dict(accuracy or {})
        self.hash = module_hash(network)[:16]

    @torch.inference_mode()
    def leftness(self, images: Images) -> Array:
        """(n, h, w) uint8 -> (n, groups): log odds that a finding is on the patient's left less those of the right."""
        device = next(self._network.parameters()).device
        parts = [self._network(x).cpu() for x in batches(squares(images, self.config.size), self.config.size, device)]
        logits = torch.cat(parts)  # (n, groups, 2)
        return (logits[..., 0] - logits[..., 1]).numpy().astype(np.float64)

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the weights as float16, and ``about`` (data, accuracy) with groups and settings.

        Raises:
            OutputError: the folder cannot be written.
        """
        state = {name: value.half() if value.is_floating_point() else value for name, value in self._state().items()}
        with replacing(folder / WEIGHTS) as partial:
            save_file(state, partial)
        with replacing(folder / RECORD) as partial:
            write_json(partial, {"groups": list(self.groups), "config": asdict(self.config), **about})

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self._network.state_dict().items()}

    @classmethod
    def load(cls, folder: Path = SHIPPED, device: str = "cpu") -> SideJudge:
        """What :meth:`save` wrote; the one that ships with xgem by default.

        Raises:
            CheckpointError: files are missing or do not fit together.
        """
        record = read_json(folder / RECORD)
        try:
            config = SideConfig(**record["config"])
            network = SideNetwork(len(record["groups"]), config)
            state = load_file(folder / WEIGHTS)
            network.load_state_dict({name: value.to(network.state_dict()[name].dtype) for name, value in state.items()})
            return cls(network.to(device), record["groups"], config, record.get("accuracy"), record.get("told"))
        except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: not a judge of sides ({one_line(error)}); expected {RECORD} and {WEIGHTS} of "
                "benchmarks/sides.py"
            ) from None


def group_of(name: str) -> str | None:
    """The group of a CheXpert class; None where its side is not judged."""
    return next((group for group, classes in GROUPS.items() if name in classes), None)


def sides_of(named: Sequence[Mapping[str, frozenset[Side]]]) -> Array:
    """What n studies' sides say of each group: (n, groups) of 1 (left alone), -1 (right alone) and NaN."""
    values = {None: math.nan, "left": 1.0, "right": -1.0}
    rows = [[values[only_side(sides, classes)] for classes in GROUPS.values()] for sides in named]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(GROUPS))


def targets_of(named: Sequence[Mapping[str, frozenset[Side]]], labels: Sequence[Mapping[str, float]]) -> Array:
    """What is known of n studies for training: (n, groups, 3) of 1, 0 and NaN for left half, right half and either.

    Args:
        named: sides by class, for the classes that a report or a box affirms.
        labels: 1 and 0 by class; absent everywhere means absent in both halves.
    """
    targets = np.full((len(named), len(GROUPS), 3), np.nan)
    for row, (sides, known) in enumerate(zip(named, labels, strict=True)):
        for k, classes in enumerate(GROUPS.values()):
            together = frozenset[Side]().union(*(sides.get(name, frozenset()) for name in classes))
            if together:
                targets[row, k, :2] = [float(side in together) for side in SIDES]
            elif any(known.get(name) == 1 for name in classes):
                targets[row, k, 2] = 1
            elif all(known.get(name) == 0 for name in classes):
                targets[row, k, :2] = 0
    return targets


def train_sides(
    images: NDArray[np.uint8],
    targets: Array,
    *,
    start: Mapping[str, Tensor] | None = None,
    frozen: bool = False,
    config: SideConfig | None = None,
    device: str = "cpu",
    folder: Path | None = None,
) -> SideJudge:
    """Train the network of sides.

    Args:
        images: (n, s, s) uint8 real training images.
        targets: (n, groups, 3) as :func:`targets_of`.
        start: weights of a judge of findings (``Classifier.state``) of the same width for the first three stages.
        frozen: leave these as they are, and train what reads their maps alone, on images as they are.
        folder: keeps the last complete epoch, from which an interrupted training resumes.

    Raises:
        InputError: the shapes do not match, or no study names a side.
    """
    config = config or SideConfig()
    if images.ndim != 3 or targets.shape != (len(images), len(GROUPS), 3):
        raise InputError(f"images {images.shape}, targets {targets.shape}: expected (n, s, s), (n, {len(GROUPS)}, 3)")
    if not (targets[..., 0] != targets[..., 1])[np.isfinite(targets[..., :2]).all(axis=2)].any():
        raise InputError("no training image has a finding on one side alone")
    place = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = SideNetwork(len(GROUPS), config).to(place)
    if start is not None:
        stages = {name.removeprefix("body."): value for name, value in start.items() if name.startswith("body.")}
        network.body.load_state_dict({name: stages[name] for name in network.body.state_dict()})
    data, truth = torch.from_numpy(images), torch.from_numpy(targets).float()
    chances = _chances(targets)
    kept = _maps(network, images, config) if frozen else None
    if frozen:
        network.body.requires_grad_(False)

    def loss(rows: Tensor) -> Tensor:
        if kept is None:
            halves = network(augmented(to_input(data[rows].to(place), config.size))).float()  # (b, groups, 2)
        else:
            halves = network.read(kept[rows].to(place))
        known = truth[rows].to(place)  # (b, groups, 3)
        sided = torch.isfinite(known[..., 0]) & (known[..., 0] != known[..., 1])
        left = torch.where(sided, known[..., 0], torch.nan)
        either = torch.cat([halves, halves.amax(dim=-1, keepdim=True)], dim=-1)
        # Presence in each half, and which half of a one-sided finding
        return label_loss(either, known) + label_loss(halves[..., 0] - halves[..., 1], left)

    fit(
        network, loss, len(data), config.stage, seed=config.seed, device=place, name="sides", chances=chances,
        folder=folder,
    )  # fmt: skip
    return SideJudge(network, tuple(GROUPS), config)


@torch.inference_mode()
def _maps(network: SideNetwork, images: Images, config: SideConfig) -> Tensor:
    """Maps of all images, (n, 4 * width, s / 16, s / 16), on the CPU."""
    network.eval()
    device = next(network.parameters()).device
    return torch.cat([network.maps(x).cpu() for x in batches(images, config.size, device)])


def _chances(targets: Array) -> Tensor:
    """(n,) weights by which images are drawn: those that name a side of a rare group most often."""
    sided = np.isfinite(targets[..., 0]) & (targets[..., 0] != targets[..., 1])  # (n, groups)
    rarity = len(targets) / (len(GROUPS) * np.maximum(sided.sum(axis=0), 1))
    weights = 1 + (sided * np.minimum(rarity, 10)).max(axis=1)
    return torch.from_numpy(weights)


def accuracy_of(judge: SideJudge, images: Images, sides: Array) -> dict[str, dict[str, Any]]:
    """By group, and as ``all``: n images whose finding has one side, and the share on which the judge agrees."""
    leftness = judge.leftness(images)
    right = np.where(np.isfinite(sides), (leftness > 0) == (sides > 0), np.nan)  # (n, groups)
    found: dict[str, dict[str, Any]] = {}
    for name, column in {**dict(zip(judge.groups, right.T, strict=True)), "all": right.ravel()}.items():
        values = column[np.isfinite(column)]
        found[name] = {"n": len(values), "accuracy": round(float(values.mean()), 3) if len(values) else None}
    return found
