"""What an evaluation needs of a model and of a manifest, read once and shared by all routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgem.eval.statistics import Array
from xgem.labels.vocabulary import annotated_matrix
from xgem.train.corpus import report_of
from xgem.types import DataError, Study

if TYPE_CHECKING:
    from xgem.configs.schema import TransformConfig
    from xgem.data.manifest import Manifest

Images = NDArray[np.uint8]
MIN_STUDIES = 8


@dataclass(frozen=True)
class Evaluated:
    """A model as the evaluation sees it.

    Attributes:
        name, hash: which checkpoint, for the results.
        pipe: ``pipe(inputs, [output], **options) -> list[Generation]``, as :class:`xgem.pipeline.XgemPipeline`.
        pictures, reports: the model's modalities of either sort.
        transform: how pictures become (size, size).
        sections: what of a study's text makes its report.
        sampling: the model's own defaults for the options that ``RunSettings`` leaves open.
        embed: (modality, pictures (n, s, s) uint8 or texts) -> (n, d) vectors of the prompt encoders' shared space.
        reconstruct: (modality, pictures) -> what the modality's codec makes of them, (n, s, s) uint8.
        inputs: every modality that may be given, annotations and demographics included.
    """

    name: str
    hash: str
    pipe: Callable[..., Any]
    pictures: tuple[str, ...]
    reports: tuple[str, ...]
    transform: TransformConfig
    embed: Callable[[str, Any], Array]
    reconstruct: Callable[[str, Images], Images]
    sections: tuple[str, ...] = ("impression",)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        return (*self.pictures, *self.reports)


def open_model(model: str | Path | None, *, device: str | None = None, dtype: str | None = None) -> Evaluated:
    """Load a checkpoint (name, folder or hub id) for evaluation.

    Raises:
        CheckpointError, DeviceError: as :func:`xgem.load`.
    """
    import torch

    import xgem

    pipe = xgem.load(model, device=device, dtype=dtype)
    preset = pipe.preset
    kinds = {name: preset.components[preset.codec(name)].kind for name in preset.outputs}

    def batches(values: Any, size: int = 64) -> list[Any]:
        return [values[start : start + size] for start in range(0, len(values), size)]

    def to_model(pictures: Images) -> torch.Tensor:
        values = torch.from_numpy(np.array(pictures)).unsqueeze(1).float() / 127.5 - 1
        return values.to(pipe.device, pipe.dtype)

    @torch.inference_mode()
    def embed(modality: str, values: Any) -> Array:
        encoder: Any = pipe.component(preset.encoder(modality))
        pictures = isinstance(values, np.ndarray)
        parts = [encoder.encode(to_model(part) if pictures else list(part)).pooled for part in batches(values)]
        return torch.cat(parts).float().cpu().numpy().astype(np.float64)

    @torch.inference_mode()
    def reconstruct(modality: str, pictures: Images) -> Images:
        codec: Any = pipe.component(preset.codec(modality))
        parts = [codec.decode(codec.encode(to_model(part))) for part in batches(pictures, 32)]
        values = torch.cat(parts).float().clamp(-1, 1).squeeze(1)
        return ((values + 1) * 127.5).round().to(torch.uint8).cpu().numpy()

    return Evaluated(
        name=pipe.name,
        hash=pipe.hash,
        pipe=pipe,
        pictures=tuple(name for name, kind in kinds.items() if kind == "image_vae"),
        reports=tuple(name for name, kind in kinds.items() if kind != "image_vae"),
        transform=preset.transform,
        embed=embed,
        reconstruct=reconstruct,
        sections=tuple(preset.report_sections),
        sampling=preset.sampling.model_dump(),
        inputs=tuple(preset.modalities),
    )


@dataclass(frozen=True)
class Material:
    """The studies of one split that have every modality, and their real pictures and reports.

    ``pictures`` (n, s, s) uint8 by view (a study's first picture of it), ``labels`` (n, 14) as
    :func:`xgem.labels.vocabulary.annotated_matrix` gives them.
    """

    studies: tuple[Study, ...]
    pictures: Mapping[str, Images]
    reports: tuple[str, ...]
    labels: Array

    @property
    def n(self) -> int:
        return len(self.studies)

    def prompts(self, modalities: Sequence[str]) -> list[dict[str, Any]]:
        """The inputs of a route: files for pictures, text for reports."""
        return [
            {name: study.pictures[name][0] if name in study.pictures else report for name in modalities}
            for study, report in zip(self.studies, self.reports, strict=True)
        ]


@dataclass(frozen=True)
class Training:
    """Real training data: all pictures by view with their study's labels, and the complete studies as ``material``."""

    pictures: Mapping[str, Images]
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
    """All training pictures and reports (split ``train``)."""
    prepared = _prepared(manifest, "train", evaluated, cache, progress)
    studies = manifest.studies("train")
    pictures: dict[str, Images] = {}
    labels: dict[str, Array] = {}
    for view in evaluated.pictures:
        rows = [(row, study) for study in studies for row in prepared.index.get((study.id, view), [])]
        if not rows:
            raise DataError(f"split 'train' has no {view} picture: the judge is trained on real training pictures")
        pictures[view] = prepared.values[[row for row, _ in rows]].numpy()
        labels[view] = annotated_matrix(study for _, study in rows)
    material = _material(_complete(studies, evaluated), prepared, evaluated)
    impressions = tuple(study.impression for study in studies if study.impression.strip())
    return Training(pictures, labels, material, impressions)


def _complete(studies: Sequence[Study], evaluated: Evaluated) -> list[Study]:
    return [
        study
        for study in studies
        if all(view in study.pictures for view in evaluated.pictures) and report_of(study, evaluated.sections)
    ]


def _prepared(manifest: Manifest, split: str, evaluated: Evaluated, cache: Path, progress: bool) -> Any:
    from xgem.data.cache import prepare_pictures

    return prepare_pictures(manifest, split, evaluated.transform, cache, progress=progress)


def _material(studies: Sequence[Study], prepared: Any, evaluated: Evaluated) -> Material:
    pictures = {
        view: prepared.values[[prepared.index[study.id, view][0] for study in studies]].numpy()
        for view in evaluated.pictures
    }
    reports = tuple(report_of(study, evaluated.sections) for study in studies)
    return Material(tuple(studies), pictures, reports, annotated_matrix(studies))
