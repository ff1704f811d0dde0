"""Inputs of the family ``control``: annotated studies, the images generated for them, and judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xgem.configs.components import TransformConfig
from xgem.data.study import Study
from xgem.judges.classifier import ClassifierConfig
from xgem.judges.judge import Judge
from xgem.judges.segmenter import SegmenterConfig
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import NotComputed

MIN_STUDIES: Final = 5
"""Minimum number of evaluated studies with the annotation; with fewer, an interval is meaningless."""
MIN_TRAINING: Final = 16
"""Minimum number of training studies with the annotation for training a judge."""
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Annotated:
    """Studies with an annotation, and the real frontal image of each, (n, s, s) uint8."""

    studies: tuple[Study, ...]
    images: Images

    def __len__(self) -> int:
        return len(self.studies)


@dataclass(frozen=True)
class Requested:
    """Annotated studies, the images generated from their annotations alone, and annotated training studies for judges.

    ``samples``: (n, s, s) uint8 each.
    """

    real: Annotated
    samples: Sequence[Images]
    training: Annotated

    def check(self, what: str) -> None:
        """Raises NotComputed if there are too few studies."""
        for part, name, least in ((self.real, "evaluated", MIN_STUDIES), (self.training, "training", MIN_TRAINING)):
            if len(part) < least:
                raise NotComputed(f"{len(part)} {name} studies with {what}: expected at least {least}")


@dataclass(frozen=True)
class Judges:
    """The judges of the images, and the training settings of those that are trained for each kind of input.

    Attributes:
        transform: brings annotations to the grid of the images.
        encoders: embed images, for the regression of severity. ``findings``: the classifier, or the reason why it is
            not available.
        cache: folder of trained judges.
    """

    transform: TransformConfig
    encoders: PromptEncoders
    findings: Judge | NotComputed
    cache: Path
    device: str
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    patient: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(size=64, epochs=15, batch_size=32))
    draws: int = 1000
    seed: int = 0

    def bootstrap(self, n: int) -> Bootstrap:
        return Bootstrap(n, draws=self.draws, seed=self.seed)

    def logits(self, images: Images) -> Array:
        """Logits of the classifier of findings, (n, classes)."""
        assert not isinstance(self.findings, NotComputed)
        probabilities = np.clip(self.findings.scores(images), 1e-9, 1 - 1e-9)
        return np.log(probabilities / (1 - probabilities))
