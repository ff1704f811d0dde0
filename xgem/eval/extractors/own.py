"""Spaces of xgem's own: a checkpoint's prompt encoders, and the judge that is trained on real training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.transforms import pad_square, resize
from xgem.eval.classifier import ClassifierConfig, train_classifier
from xgem.eval.extractors import Extractor, Images
from xgem.eval.label_rules import CHEXPERT_CLASSES
from xgem.eval.material import open_model
from xgem.eval.record import NotComputed
from xgem.eval.sets import EvalSet
from xgem.types import CheckpointError, InputError

TRAINING_PICTURES: Final = 20_000


def prompt_encoder(name: str, device: str) -> Extractor:
    """The pooled vector of a checkpoint's prompt encoder: ``xgem:MODEL/MODALITY``, as ``xgem:openi-128/frontal``.

    Texts are of the model's first report modality: both live in one space, in which the encoders were aligned. A model
    is no independent judge of what it generated itself; say so beside the number.
    """
    model, slash, modality = name.removeprefix("xgem:").rpartition("/")
    if not slash or not model or not modality:
        raise InputError(f"feature space {name!r}: expected xgem:MODEL/MODALITY, as xgem:openi-128/frontal")
    try:
        evaluated = open_model(model, device=device)
    except CheckpointError as error:
        raise NotComputed(f"{name}: {error}") from error
    if modality not in evaluated.pictures:
        raise InputError(f"feature space {name!r}: {model} has the picture modalities {', '.join(evaluated.pictures)}")
    size = evaluated.transform.size
    report = evaluated.reports[0] if evaluated.reports else None

    def encode(pictures: Images) -> NDArray[Any]:
        return evaluated.embed(modality, _squares(pictures, size))

    def encode_texts(texts: Sequence[str]) -> NDArray[Any]:
        return evaluated.embed(str(report), list(texts))

    dim = encode(np.zeros((1, size, size), dtype=np.uint8)).shape[1]
    steps = f"padded to a square, area to {size}, scaled to [-1, 1]"
    named = f"xgem:{evaluated.name}/{modality}"  # not the path of a folder
    return Extractor(named, evaluated.hash[:16], dim, size, steps, encode, encode_texts if report else None)


def trained_judge(
    training: EvalSet | None, cache: Path | None, device: str, *, config: ClassifierConfig | None = None
) -> Extractor:
    """The last layer but one of :mod:`xgem.eval.classifier`, trained on real training pictures and their labels.

    Of CheXpert's 14 classes; uncertain labels have no loss. At most 20,000 pictures, chosen by the classifier's seed.

    Raises:
        NotComputed: no training set, or one without labels to learn from.
    """
    if training is None:
        raise NotComputed("xgem-classifier needs real training pictures with labels: none were given")
    config = config or ClassifierConfig()
    items = training.with_pictures()
    if len(items) > TRAINING_PICTURES:
        kept = np.random.default_rng(config.seed).choice(len(items), TRAINING_PICTURES, replace=False)
        items = items.subset(np.sort(kept))
    labels = np.where(items.labels() < 0, np.nan, items.labels())
    parts = [_squares(batch, config.size) for batch in items.batches(config.size if items.pad else None)]
    folder = cache / "classifier" if cache else None
    try:
        judge = train_classifier(
            np.concatenate(parts), labels, CHEXPERT_CLASSES, config=config, folder=folder, device=device
        )
    except InputError as error:
        raise NotComputed(f"xgem-classifier: {error}") from error

    def encode(pictures: Images) -> NDArray[Any]:
        return judge.features(_squares(pictures, config.size))

    dim = encode(np.zeros((1, config.size, config.size), dtype=np.uint8)).shape[1]
    steps = f"padded to a square, area to {config.size}, standardised"
    return Extractor("xgem-classifier", judge.hash, dim, config.size, steps, encode)


def _squares(pictures: Images, size: int) -> Images:
    if pictures.shape[1:] == (size, size):
        return pictures
    made = [resize(pad_square(one.astype(np.float32) / 255), (size, size), "area") for one in pictures]
    return np.stack([np.rint(one * 255).astype(np.uint8) for one in made])
