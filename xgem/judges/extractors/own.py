"""xgem's own feature spaces: a checkpoint's prompt encoders, and the judge trained on real training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import squares
from xgem.judges.extractors import Extractor, Images
from xgem.judges.judge import OwnJudge
from xgem.pipeline.embedding import open_model
from xgem.types import InputError


def prompt_encoder(name: str, device: str) -> Extractor:
    """The pooled vector of a checkpoint's prompt encoder: ``xgem:MODEL/MODALITY``, as ``xgem:openi-256/frontal``.

    Texts are encoded as the model's first report modality, in the same space, in which the encoders were aligned. A
    model is not an independent judge of its own outputs; report this with the number.
    """
    model, slash, modality = name.removeprefix("xgem:").rpartition("/")
    if not slash or not model or not modality:
        raise InputError(f"feature space {name!r}: expected xgem:MODEL/MODALITY, as xgem:openi-256/frontal")
    evaluated = open_model(model, device=device)
    if modality not in evaluated.images:
        raise InputError(f"feature space {name!r}: {model} has the image modalities {', '.join(evaluated.images)}")
    size = evaluated.transform.size
    report = evaluated.reports[0] if evaluated.reports else None

    def encode(images: Images) -> NDArray[Any]:
        return evaluated.embed(modality, squares(images, size))

    def encode_texts(texts: Sequence[str]) -> NDArray[Any]:
        return evaluated.embed(str(report), list(texts))

    dim = encode(np.zeros((1, size, size), dtype=np.uint8)).shape[1]
    steps = f"padded to a square, area to {size}, scaled to [-1, 1]"
    public_name = f"xgem:{evaluated.name}/{modality}"  # not the path of a folder
    return Extractor(public_name, evaluated.hash[:16], dim, size, steps, encode, encode_texts if report else None)


def judge_space(judge: OwnJudge) -> Extractor:
    """The penultimate layer of xgem's own judge."""

    def encode(images: Images) -> NDArray[Any]:
        return judge.classifier.features(squares(images, judge.size))

    dim = encode(np.zeros((1, judge.size, judge.size), dtype=np.uint8)).shape[1]
    steps = f"padded to a square, area to {judge.size}, standardised"
    return Extractor(judge.name, judge.weights, dim, judge.size, steps, encode)
