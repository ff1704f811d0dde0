"""Training settings of downstream networks: those of the papers, and small ones for a laptop."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from xgem.types import InputError

TaskName = Literal["classification", "segmentation", "detection", "severity"]


@dataclass(frozen=True)
class Stage:
    """One training run of ``epochs`` or of ``steps`` (updates, the same for every training set), never both.

    ``schedule`` of the learning rate: constant, a cosine to zero, or a warm-up over the first tenth and then a cosine.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None) or min(self.epochs or 1, self.steps or 1, self.batch_size) < 1:
            raise InputError(
                f"a training of {self.epochs} epochs, {self.steps} steps, batches of {self.batch_size}: expected "
                "either epochs or steps, and all of them at least 1"
            )


@dataclass(frozen=True)
class JudgeConfig:
    """Settings of a judge that xgem trains.

    ``size``: side of its input in pixels, ``width``: channels of the first stage. The learning rate follows one cycle.
    """

    size: int = 128
    width: int = 24
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0

    @property
    def stage(self) -> Stage:
        """How the network is trained."""
        return Stage(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule="one_cycle",
        )


@dataclass(frozen=True)
class UtilitySettings:
    """Settings of one task.

    Attributes:
        network: ``small`` (``width`` channels in the first stage), or the name of a published network.
        size: side of the network's input in pixels.
        training: settings for a network that starts from ``weights``.
        pretraining, finetuning: settings for a network that is pretrained on synthetic images only.
        weights: None is random initialisation, ``imagenet`` torchvision's; else a file, ``.safetensors`` or a state
            dict.
        sampling: ``balanced`` draws images such that all classes are equally frequent (ChexGen).
        augment: small shifts, rotations and changes of exposure, never mirroring: the heart is on the left.
        unmentioned: what an unmentioned class counts as; -1 (uncertain) is never counted.
        absent: what a study without a mask or box of a class counts as: not annotated, or annotated as free of it.
        threshold: probability from which on a class is predicted.
        runs: training runs per protocol, with seeds ``seed``, ``seed + 1``, ...
        draws: number of bootstrap resamplings.
    """

    task: TaskName
    network: str
    size: int
    training: Stage
    pretraining: Stage | None = None
    finetuning: Stage | None = None
    width: int = 24
    weights: str | None = None
    sampling: Literal["uniform", "balanced"] = "uniform"
    augment: bool = True
    unmentioned: Literal["unknown", "negative"] = "unknown"
    absent: Literal["unknown", "empty"] = "unknown"
    threshold: float = 0.5
    runs: int = 5
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.runs < 1 or self.size < 16 or not 0 < self.threshold < 1:
            raise InputError(
                f"{self.runs} runs at {self.size} pixels with threshold {self.threshold:g}: expected at least 1 run, "
                "at least 16 pixels, and a threshold between 0 and 1"
            )

    def of_training(self) -> dict[str, Any]:
        """The settings on which a trained network's outputs depend, for the cache key."""
        settings = asdict(self)
        for name in ("runs", "draws", "seed", "threshold"):
            del settings[name]
        if self.weights and self.weights != "imagenet":
            from xgem.utils.hashing import content_hash

            settings["weights"] = content_hash([Path(self.weights)])
        return settings


_SMALL: Final = Stage(epochs=12, batch_size=32, learning_rate=2e-3, schedule="one_cycle")
_CHEXGEN_PRETRAINING: Final = Stage(epochs=100, batch_size=128, learning_rate=1e-4, schedule="cosine")
_CHEXGEN_FINETUNING: Final = Stage(epochs=40, batch_size=32, learning_rate=1e-5)

PRESETS: Final[dict[tuple[TaskName, str], UtilitySettings]] = {
    # CheXGenBench, section 3.3: the batch size is not stated
    ("classification", "chexgenbench"): UtilitySettings(
        "classification",
        "resnet50",
        224,
        Stage(epochs=20, batch_size=64, learning_rate=1e-4, weight_decay=1e-5, optimizer="adam"),
        unmentioned="negative",
        augment=False,
    ),
    # ChexGen, Methods, "Disease Classification": the learning rate is not stated; that of its pretraining is used
    ("classification", "chexgen"): UtilitySettings(
        "classification",
        "densenet121",
        256,
        Stage(epochs=40, batch_size=128, learning_rate=1e-4),
        _CHEXGEN_PRETRAINING,
        _CHEXGEN_FINETUNING,
        sampling="balanced",
        unmentioned="negative",
    ),
    # XGeM, section 4.4: DenseNet-121 from scratch at the model's 256 pixels; the rest is not stated, taken from ChexGen
    ("classification", "xgem"): UtilitySettings(
        "classification",
        "densenet121",
        256,
        Stage(epochs=40, batch_size=128, learning_rate=1e-4),
        unmentioned="negative",
    ),
    ("classification", "small"): UtilitySettings("classification", "small", 128, _SMALL, _SMALL, _SMALL),
    # ChexGen, Methods, "Anatomical Segmentation"
    ("segmentation", "chexgen"): UtilitySettings(
        "segmentation", "unet-resnet34", 512, Stage(epochs=40, batch_size=32, learning_rate=1e-3)
    ),
    ("segmentation", "small"): UtilitySettings(
        "segmentation", "small", 128, replace(_SMALL, batch_size=8), replace(_SMALL, batch_size=8), _SMALL
    ),
    # ChexGen, Methods, "Abnormality Localization": the optimizer is not stated
    ("detection", "chexgen"): UtilitySettings(
        "detection",
        "fasterrcnn_resnet50_fpn",
        1000,
        Stage(steps=70_000, batch_size=8, learning_rate=1e-3, weight_decay=1e-4, optimizer="sgd"),
    ),
    ("detection", "small"): UtilitySettings("detection", "small", 128, replace(_SMALL, epochs=30, batch_size=8)),
    # ChexGen, Methods, "Severity Score Regression"
    ("severity", "chexgen"): UtilitySettings(
        "severity", "resnet50", 224, Stage(epochs=50, batch_size=32, learning_rate=1e-3)
    ),
    ("severity", "small"): UtilitySettings("severity", "small", 128, replace(_SMALL, epochs=20)),
}
"""By task and name. Comments say what a paper does not state."""


def preset(task: str, name: str = "small", **changes: Any) -> UtilitySettings:
    """The named settings of a task, with ``changes``.

    Raises:
        InputError: no such task or preset.
    """
    settings = next((value for key, value in PRESETS.items() if key == (task, name)), None)
    if settings is None:
        available = ", ".join(f"{of_task} {preset_name}" for of_task, preset_name in PRESETS)
        raise InputError(f"no settings {name!r} for task {task!r}; expected one of {available}")
    return replace(settings, **changes)
