"""What all families of ``eval control`` share: settings, studies with their annotations, generation, judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.data.study import Study
from xgem.eval.material import Images, Training, load_training
from xgem.eval.results import Measure
from xgem.eval.route import Route
from xgem.eval.routes import RunSettings, each, generate_from
from xgem.judges.classifier import Classifier, ClassifierConfig, learnable, train_classifier, train_findings
from xgem.judges.segmenter import SegmenterConfig
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.pipeline.embedding import Evaluated

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest
    from xgem.data.prepare import PreparedImages

VIEW: Final = "frontal"
MIN_STUDIES: Final = 5
"""Evaluated studies with the annotation; fewer give no interval worth the name."""
MIN_TRAINING: Final = 16
"""Training studies with the annotation that a judge needs."""
FEMALE: Final = "F"
AGES: Final = (20, 30, 40, 50, 60, 70)
"""The estimator of age says for each of these how likely the patient is older; their mean is its estimate."""


class NotComputed(Exception):
    """Why a family of measures is left out."""


@dataclass(frozen=True)
class ControlSettings(RunSettings):
    """Settings of an evaluation with the judges of shapes and of the patient's age and sex."""

    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    patient: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(size=64, epochs=15, batch_size=32))


@dataclass(frozen=True)
class Family:
    """One kind of input: its measures, who judged, what was left out and why, and columns of its contact sheet."""

    n: int
    measures: Mapping[str, Measure]
    details: Mapping[str, Any]
    columns: Sequence[tuple[str, Any]]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Annotated:
    """The studies of a split that carry an annotation, with the (n, s, s) frontal image of each."""

    studies: tuple[Study, ...]
    images: Images

    def __len__(self) -> int:
        return len(self.studies)


@dataclass(frozen=True)
class Run:
    """What all families share. ``evaluated`` generates, ``judge`` embeds (a checkpoint with prompt encoders)."""

    evaluated: Evaluated
    judge: Evaluated
    manifest: Manifest
    split: str
    settings: ControlSettings
    cache: Path
    device: str
    progress: bool

    @cached_property
    def _prepared(self) -> dict[str, tuple[list[Study], PreparedImages]]:
        from xgem.data.prepare import prepare_images

        transform = self.evaluated.transform
        return {
            split: (
                [study for study in self.manifest.studies(split) if VIEW in study.images],
                prepare_images(self.manifest, split, transform, self.cache, progress=self.progress),
            )
            for split in ("train", self.split)
        }

    def annotated(self, split: str, has: Callable[[Study], bool]) -> Annotated:
        """The split's studies with a frontal image for which ``has`` is true; of the evaluated split at most
        ``settings.limit``, chosen by the seed."""
        studies, prepared = self._prepared[split]
        studies = [study for study in studies if has(study)]
        limit = self.settings.limit
        if split == self.split and limit is not None and limit < len(studies):
            kept = sorted(np.random.default_rng([self.settings.seed, 2]).permutation(len(studies))[:limit])
            studies = [studies[i] for i in kept]
        rows = [prepared.index[study.id, VIEW][0] for study in studies]
        return Annotated(tuple(studies), prepared.values[rows].numpy())

    def both(self, has: Callable[[Study], bool], what: str) -> tuple[Annotated, Annotated]:
        """The evaluated and the training studies with an annotation; NotComputed where they are too few."""
        found, training = self.annotated(self.split, has), self.annotated("train", has)
        for one, split, least in ((found, self.split, MIN_STUDIES), (training, "train", MIN_TRAINING)):
            if len(one) < least:
                raise NotComputed(f"split {split!r} has {len(one)} studies with {what}: expected at least {least}")
        return found, training

    def generate(self, kind: str, values: Sequence[Any]) -> list[Images]:
        """``num_samples`` sets of images (n, s, s), asked for by one kind of input alone."""
        if kind not in self.evaluated.inputs:
            raise NotComputed(f"{self.evaluated.name} takes no {kind}")
        return self.shown(
            Route((kind,), VIEW),
            len(values),
            lambda advance: generate_from(
                self.evaluated, [{kind: value} for value in values], VIEW, self.settings, advance=advance
            ),
        )

    def shown(self, route: Route, n: int, make: Callable[[Callable[[int], None]], list[Images]]) -> list[Images]:
        """What ``make`` makes, with a progress bar."""
        (samples,) = [make(advance) for _, advance in each([route], n, self.progress)]
        return samples

    def bootstrap(self, n: int) -> Bootstrap:
        return Bootstrap(n, draws=self.settings.bootstrap, seed=self.settings.seed)

    def embed(self, modality: str, values: Any) -> Array:
        """In the judge's space; images are resized to what it takes."""
        if isinstance(values, np.ndarray):
            values = _resized(values, self.judge.transform.size)
        return self.judge.embed(modality, values)

    @cached_property
    def written(self) -> Evaluated:
        """The evaluated model as the route from report to frontal sees it, with the judge's encoders."""
        return replace(self.evaluated, images=(VIEW,), reports=("report",), embed=self.embed)

    @cached_property
    def training(self) -> Training:
        return load_training(self.manifest, self.written, self.cache, progress=self.progress)

    @cached_property
    def classifier(self) -> Classifier | None:
        """The judge of findings; None where the training images have no labels to learn from."""
        if not learnable(self.training.labels[VIEW]):
            return None
        return train_findings(
            self.training.images[VIEW],
            self.training.labels[VIEW],
            config=self.settings.classifier,
            folder=self.cache / "classifier",
            device=self.device,
        )

    def patient_judge(self, training: Annotated) -> Classifier:
        """One network for sex and for age."""
        labels = np.array([_patient_labels(study) for study in training.studies])
        return train_classifier(
            training.images,
            labels,
            (FEMALE, *(f"over {age}" for age in AGES)),
            config=self.settings.patient,
            folder=self.cache / "classifier",
            device=self.device,
        )


def _resized(images: Images, size: int) -> Images:
    import torch
    from torch.nn import functional as F

    if images.shape[-1] == size:
        return images
    x = torch.from_numpy(np.array(images)).unsqueeze(1).float()
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return x.squeeze(1).round().clamp(0, 255).to(torch.uint8).numpy()


def _patient_labels(study: Study) -> list[float]:
    sex = float("nan") if study.sex is None else float(study.sex == FEMALE)
    return [sex, *(float("nan") if study.age is None else float(study.age > age) for age in AGES)]
