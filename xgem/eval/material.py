"""What an evaluation needs of a model and of a manifest, read once and shared by all routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgem.data.study import Study, report_of
from xgem.labels.vocabulary import annotated_matrix
from xgem.metrics.bootstrap import Array
from xgem.pipeline.embedding import Evaluated
from xgem.types import DataError

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest


Images = NDArray[np.uint8]


MIN_STUDIES = 8


@dataclass(frozen=True)
class Material:
    """The studies of one split that have every modality, and their real images and reports.

    ``images`` (n, s, s) uint8 by view (a study's first image of it), ``labels`` (n, 14) as
    :func:`xgem.labels.vocabulary.annotated_matrix` gives them.
    """

    studies: tuple[Study, ...]
    images: Mapping[str, Images]
    reports: tuple[str, ...]
    labels: Array

    @property
    def n(self) -> int:
        return len(self.studies)

    def prompts(self, modalities: Sequence[str]) -> list[dict[str, Any]]:
        """The inputs of a route: files for images, text for reports."""
        return [
            {name: study.images[name][0] if name in study.images else report for name in modalities}
            for study, report in zip(self.studies, self.reports, strict=True)
        ]


@dataclass(frozen=True)
class Training:
    """Real training data: all images by view with their study's labels, and the complete studies as ``material``."""

    images: Mapping[str, Images]
    labels: Mapping[str, Array]
    material: Material
    impressions: tuple[str, ...]


def load_material(
    manifest: Manifest,
    split: str,
    evaluated: Evaluated,
    cache: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Material:
    """The complete studies of ``split``; ``limit`` keeps that many, chosen at random by ``seed``.

    Raises:
        DataError: fewer than 8 complete studies.
    """
    prepared = _prepared(manifest, split, evaluated, cache, progress)
    studies = _complete(manifest.studies(split), evaluated)
    if len(studies) < MIN_STUDIES:
        wanted = ", ".join(evaluated.modalities)
        raise DataError(
            f"split {split!r} has {len(studies)} studies with all of {wanted}: expected at least {MIN_STUDIES}"
        )
    if limit is not None and limit < len(studies):
        kept = sorted(np.random.default_rng([seed, 2]).permutation(len(studies))[:limit])
        studies = [studies[i] for i in kept]
    return _material(studies, prepared, evaluated)


def load_training(manifest: Manifest, evaluated: Evaluated, cache: Path, *, progress: bool = True) -> Training:
    """All training images and reports (split ``train``)."""
    prepared = _prepared(manifest, "train", evaluated, cache, progress)
    studies = manifest.studies("train")
    images: dict[str, Images] = {}
    labels: dict[str, Array] = {}
    for view in evaluated.images:
        rows = [(row, study) for study in studies for row in prepared.index.get((study.id, view), [])]
        if not rows:
            raise DataError(f"split 'train' has no {view} image: the judge is trained on real training images")
        images[view] = prepared.values[[row for row, _ in rows]].numpy()
        labels[view] = annotated_matrix(study for _, study in rows)
    material = _material(_complete(studies, evaluated), prepared, evaluated)
    impressions = tuple(study.impression for study in studies if study.impression.strip())
    return Training(images, labels, material, impressions)


def _complete(studies: Sequence[Study], evaluated: Evaluated) -> list[Study]:
    return [
        study
        for study in studies
        if all(view in study.images for view in evaluated.images) and report_of(study, evaluated.sections)
    ]


def _prepared(manifest: Manifest, split: str, evaluated: Evaluated, cache: Path, progress: bool) -> Any:
    from xgem.data.prepare import prepare_images

    return prepare_images(manifest, split, evaluated.transform, cache, progress=progress)


def _material(studies: Sequence[Study], prepared: Any, evaluated: Evaluated) -> Material:
    images = {
        view: prepared.values[[prepared.index[study.id, view][0] for study in studies]].numpy()
        for view in evaluated.images
    }
    reports = tuple(report_of(study, evaluated.sections) for study in studies)
    return Material(tuple(studies), images, reports, annotated_matrix(studies))
