"""Is a synthetic image close to an image that its model was trained on? Copies must not be published.

Latent and pixel distances and their thresholds are those of the privacy gate (:mod:`xgem.pipeline.privacy_gate`);
with a network of re-identification, frontals that it takes for those of a training patient are close, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet, Item
from xgem.eval.features import extract
from xgem.judges.reid import load_reid
from xgem.metrics.privacy import DELTA, reidentification_score
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.privacy_gate import PrivacyGate, Thresholds
from xgem.publishing.judging import Picture
from xgem.types import InputError
from xgem.utils.cache import evaluation_cache

FRONTAL = "frontal"


@dataclass(frozen=True)
class Distance:
    """Of one image: distances to the nearest training image, and the highest re-identification score, if asked for."""

    latent: float
    pixel: float
    close: bool
    reid: float | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """For tables."""
        known = {"latent_distance": self.latent, "pixel_distance": self.pixel, "reid_score": self.reid}
        return {name: f"{value:.6g}" for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class Check:
    """How images are compared.

    Attributes:
        training: a manifest of the training images (thresholds are estimated from its held-out splits), or what else
            :meth:`xgem.pipeline.privacy_gate.PrivacyGate.open` takes.
        encoder: the checkpoint whose prompt encoders give the latent distance; None takes the one that ships.
        thresholds, quantile: as for the gate.
        reid: a network as for :func:`xgem.judges.reid.load_reid`; it needs a manifest in ``training``.
    """

    training: Path
    encoder: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    quantile: float | None = None
    reid: Path | None = None
    device: str = "cpu"

    def compare(self, pictures: Sequence[Picture]) -> tuple[list[Distance], dict[str, Any]]:
        """The distances of all images, in order, and how they were found, as JSON values for the record.

        Raises:
            InputError: training images that cannot be used, too few held-out ones, a view without training images.
            ImageError: an image cannot be read; names the file.
        """
        if self.reid is not None and self.training.suffix not in (".parquet", ".jsonl"):
            raise InputError(f"{self.training}: re-identification compares with images; give a manifest of them")
        options: dict[str, Any] = {"thresholds": self.thresholds}
        if self.quantile is not None:
            options["quantile"] = self.quantile
        model = XgemPipeline.from_pretrained(self.encoder, device=self.device)
        views = sorted({picture.row.view for picture in pictures if picture.row.view})
        gate = PrivacyGate.open(self.training, **options).indexed(model, views)
        found: dict[int, Distance] = {}
        about: dict[str, Any] = {
            "training": self.training.absolute().name,
            "encoder": {"name": model.name, "hash": model.hash},
            "views": {},
        }
        for view in views:
            numbers = [number for number, picture in enumerate(pictures) if picture.row.view == view]
            files = [pictures[number].file for number in numbers]
            reading = {picture.file: picture.row.reading for picture in pictures}
            verdicts = gate.compare(model, view, files, reading)
            scores: Sequence[float | None] = [None] * len(files)
            if self.reid is not None and view == FRONTAL:
                scores, about["reid"] = self._reidentified(self.reid, [pictures[number] for number in numbers])
            for number, verdict, score in zip(numbers, verdicts, scores, strict=True):
                close = verdict.refused or (score is not None and score > DELTA)
                found[number] = Distance(verdict.latent, verdict.pixel, close, score)
            index = gate.indexes[view]
            about["views"][view] = {
                "training images": len(index.pixels),
                "latent threshold": index.latent_threshold,
                "held-out images behind the latent threshold": _known(index.latent_held_out),
                "pixel threshold": index.pixel_threshold,
                "held-out images behind the pixel threshold": _known(index.pixel_held_out),
                "images": len(files),
                "close": sum(found[number].close for number in numbers),
                "smallest latent distance kept": _smallest([found[number] for number in numbers], "latent"),
                "smallest pixel distance kept": _smallest([found[number] for number in numbers], "pixel"),
            }
        return [found[number] for number in range(len(pictures))], about

    def _reidentified(self, weights: Path, pictures: Sequence[Picture]) -> tuple[list[float], dict[str, Any]]:
        reid = load_reid(weights, device=self.device)
        known = [
            Item(f"{study.id} {number}", file, reading=study.reading_of(file))
            for study in Manifest.read(self.training).studies("train")
            for number, file in enumerate(study.images.get(FRONTAL, ()))
        ]
        sets = (tuple(known), tuple(picture.item for picture in pictures))
        training, generated = (
            extract(EvalSet("images", items, pad=True), reid.extractor, evaluation_cache()) for items in sets
        )
        head: dict[str, Any] = {"weight": reid.weight, "bias": reid.bias, "power": reid.power}
        scores = reidentification_score(generated, training, **head, device=self.device).values
        return scores.tolist(), {"network": reid.name, "weights": reid.weights, "threshold": DELTA}


def _known(held_out: int | None) -> int | str:
    if held_out is None:
        return "not recorded"
    return held_out or "none: given"


def _smallest(distances: Sequence[Distance], name: str) -> float | None:
    return min((getattr(one, name) for one in distances if not one.close), default=None)
