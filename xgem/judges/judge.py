"""Judges of images: classifiers whose scores say which findings an image shows.

xgem's own judge, trained on real training images, is here; TorchXRayVision's DenseNet is in :mod:`xgem.judges.xrv`. Any
:class:`Judge` can take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet, squares
from xgem.judges.classifier import Classifier, ClassifierConfig, columns_of, learnable, train_findings
from xgem.metrics.bootstrap import Array
from xgem.types import InputError, NotComputed

Images = NDArray[np.uint8]


OWN_JUDGE: Final = "xgem-classifier"


MOST_IMAGES: Final = 20_000


class Judge(Protocol):
    """A classifier of images of any size, which it resizes to ``size``, the side that its network expects.

    ``weights`` is a hash. A judge may have ``thresholds`` (classes,); otherwise they are 0.5.
    """

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def classes(self) -> Sequence[str]: ...

    def scores(self, images: Images) -> Array:
        """(n, h, w) uint8 -> (n, classes) in [0, 1]."""
        ...


def thresholds_of(judge: Judge) -> Array:
    """(classes,) scores above which the judge considers a finding present."""
    return np.asarray(getattr(judge, "thresholds", np.full(len(judge.classes), 0.5)), dtype=np.float64)


def scores_of(judge: Judge, images: EvalSet, size: int | None = None) -> Array:
    """Scores (n, classes) of all images of a set, in order.

    Args:
        size: side to which images are resized before the judge gets them; by default their own, or the judge's for a
            set of images of several sizes.

    Raises:
        InputError: the judge gives scores of another shape, or one that is not finite.
    """
    side = size or (judge.size if images.pad else None)
    scores = np.concatenate([np.asarray(judge.scores(batch), np.float64) for batch in images.batches(side)])
    if scores.shape != (len(images.with_images()), len(judge.classes)) or not np.isfinite(scores).all():
        expected = f"(n, {len(judge.classes)}), all finite"
        raise InputError(f"{judge.name}: scores of shape {scores.shape}: expected {expected}")
    return scores


def prevalence_thresholds(scores: Array, labels: Array) -> Array:
    """For each class, the threshold at which the predicted prevalence equals that of the labels, (classes,).

    Args:
        scores, labels: (n, classes) of real training images; labels 1, 0 or NaN (unknown).
    """
    prevalence = np.nanmean(labels, axis=0)  # (classes,)
    return np.array([np.quantile(column, 1 - p) for column, p in zip(scores.T, prevalence, strict=True)])


@dataclass(frozen=True)
class OwnJudge:
    """xgem's own classifier with CheXpert's class names; its thresholds are set on the real training images."""

    classifier: Classifier
    thresholds: Array
    name: str = OWN_JUDGE

    @property
    def weights(self) -> str:
        return self.classifier.hash

    @property
    def size(self) -> int:
        return self.classifier.config.size

    @property
    def classes(self) -> tuple[str, ...]:
        return self.classifier.classes

    def scores(self, images: Images) -> Array:
        """As :class:`Judge`; probabilities."""
        return 1 / (1 + np.exp(-self.classifier.logits(squares(images, self.size))))


def train_judge(
    training: EvalSet,
    *,
    config: ClassifierConfig | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> OwnJudge:
    """Train xgem's classifier on real training images with CheXpert's labels, or load it from ``folder``.

    At most 20,000 images are used, chosen by the classifier's seed, and read at its size. Uncertain and unmentioned
    labels give no loss. A class for which ``training`` lacks positives or negatives is not among the judge's classes.

    Raises:
        NotComputed: no class is left.
    """
    config = config or ClassifierConfig()
    training = training.with_images()
    if len(training) > MOST_IMAGES:
        rows = np.random.default_rng(config.seed).choice(len(training), MOST_IMAGES, replace=False)
        training = training.subset(np.sort(rows))
    labels = training.labels()
    labels[labels == -1] = np.nan
    if not learnable(labels):
        raise NotComputed(
            f"{training.name}: no CheXpert class with positives and negatives, as a judge needs for training; in a "
            "manifest, the source tells which unlabelled findings are absent"
        )
    images = training.images(config.size)
    classifier = train_findings(images, labels, config=config, folder=folder, device=device)
    judge = OwnJudge(classifier, np.full(len(classifier.classes), 0.5))
    return OwnJudge(classifier, prevalence_thresholds(judge.scores(images), labels[:, columns_of(classifier)]))
