"""What the family ``control`` measures, and by what: annotated studies, the images made for them, judges."""

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
"""Evaluated studies with the annotation; fewer give no interval worth the name."""
MIN_TRAINING: Final = 16
"""Training studies with the annotation that a judge needs."""
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Annotated:
    """Studies that carry an annotation, and the real frontal image of each, (n, s, s) uint8."""

    studies: tuple[Study, ...]
    images: Images

    def __len__(self) -> int:
        return len(self.studies)


@dataclass(frozen=True)
class Requested:
    """Annotated studies whose annotation alone was the request, the images made for them, (n, s, s) uint8 a sample, and
    the annotated training studies that judges learn from."""

    real: Annotated
    samples: Sequence[Images]
    training: Annotated

    def check(self, what: str) -> None:
        """Raises NotComputed where studies are too few."""
        for one, name, least in ((self.real, "evaluated", MIN_STUDIES), (self.training, "training", MIN_TRAINING)):
            if len(one) < least:
                raise NotComputed(f"{len(one)} {name} studies with {what}: expected at least {least}")


@dataclass(frozen=True)
class Judges:
    """What looks at the images, and how the judges that each kind trains are trained.

    Attributes:
        transform: puts annotations on the grid of the images.
        encoders: embed images, for the regression of severity. ``findings``: the classifier, or why there is none.
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
        """Of the classifier of findings, (n, classes)."""
        assert not isinstance(self.findings, NotComputed)
        inside = np.clip(self.findings.scores(images), 1e-9, 1 - 1e-9)
        return np.log(inside / (1 - inside))
