"""Radiomic features as a feature space: no network, no weights."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import squares
from xgem.judges.extractors import Extractor, Images
from xgem.metrics.radiomics import radiomics

NAME: Final = "radiomics"
SIZE: Final = 256
_FEATURES: Final = 385
_VERSION: Final = "frd-v1"


def radiomic() -> Extractor:
    """The features of :func:`xgem.metrics.radiomics.radiomics`, of images of one size: they depend on it."""

    def encode(images: Images) -> NDArray[Any]:
        return np.array([list(radiomics(image).values()) for image in squares(images, SIZE)])

    return Extractor(NAME, _VERSION, _FEATURES, SIZE, f"padded to a square, area to {SIZE}", encode)
