"""Feature extractors by name: the feature spaces in which sets of images are compared.

A space is written ``name`` or ``name=source``: ``source`` is a local file or folder, or a hub id for networks in the
hub's layout. Without a source only the libraries' own local caches are searched, and nothing is downloaded.

=================== ====================================================== =====
name                network                                                dims
=================== ====================================================== =====
inception-v3        the Inception of the FID (TensorFlow's, of 2015)        2048
rad-dino            microsoft/rad-dino, ``pooler_output``                    768
clip-vit-l-14       openai/clip-vit-large-patch14, image projection          768
xrv-densenet-all    TorchXRayVision's DenseNet-121 trained on all its data  1024
xrv-densenet-mimic  the same trained on MIMIC-CXR                           1024
biovil-t            microsoft/BiomedVLP-BioViL-T, image and text             128
mobilenet-v2        MobileNetV2 with ImageNet's weights; ships with xgem    1280
radiomics           first order and texture, for FRD; no network             385
xgem-classifier     xgem's judge, trained on real training images           192
xgem:MODEL/MODALITY a prompt encoder of an xgem checkpoint, image and text     -
=================== ====================================================== =====
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.types import CheckpointError, InputError, NotComputed, ShapeError

if TYPE_CHECKING:
    from xgem.data.sets import EvalSet

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Extractor:
    """A feature space.

    Attributes:
        name: as in the table above.
        weights: hash of the network's weights.
        dim: length of a feature vector.
        size: side of the network's input in pixels.
        preprocessing: description of what is done to an image before.
        encode: (b, h, w) uint8 -> (b, dim).
        encode_texts: texts -> (b, dim) in the same space, if it is a joint space of images and texts.
    """

    name: str
    weights: str
    dim: int
    size: int
    preprocessing: str
    encode: Callable[[Images], NDArray[Any]]
    encode_texts: Callable[[Sequence[str]], NDArray[Any]] | None = None

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """(b, h, w) uint8 -> (b, dim) float32."""
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ShapeError(f"{self.name}: images {images.shape} of {images.dtype}: expected (b, h, w) of uint8")
        return self._shaped(self.encode(images), len(images))

    def texts(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """n texts -> (n, dim) float32.

        Raises:
            InputError: the space is of images only.
        """
        if self.encode_texts is None:
            raise InputError(f"{self.name}: a feature space of images only; it cannot embed texts")
        starts = range(0, len(texts), batch_size)
        parts = [np.asarray(self.encode_texts(texts[start : start + batch_size])) for start in starts]
        return self._shaped(np.concatenate(parts), len(texts))

    def _shaped(self, features: NDArray[Any], n: int) -> NDArray[np.float32]:
        if features.shape != (n, self.dim):
            raise ShapeError(f"{self.name}: features {features.shape}, expected {(n, self.dim)}")
        return np.ascontiguousarray(features, dtype=np.float32)


def open_extractor(
    space: str,
    *,
    view: str = "frontal",
    device: str | None = None,
    training: EvalSet | None = None,
    cache: Path | None = None,
) -> Extractor:
    """Load the extractor of ``name``, ``name=source`` or ``xgem:MODEL/MODALITY``.

    Args:
        device: torch device; the CPU by default.
        view, training, cache: for ``xgem-classifier`` (:func:`xgem.judges.saved.open_judge`; its source is a folder or
            ``train``): the images' view, real training images, and the folder that keeps a trained network.

    Raises:
        NotComputed: weights or a package are missing, or a file holds other weights; the message says which, and where
            to put them.
        InputError: no such name.
    """
    name, _, source = space.partition("=")
    try:
        return _opened(space, name, source, view, device or "cpu", training, cache)
    except CheckpointError as error:
        raise NotComputed(f"{name}: {error}") from error


def _opened(
    space: str, name: str, source: str, view: str, place: str, training: EvalSet | None, cache: Path | None
) -> Extractor:
    if name.startswith("xgem:") and not source:
        from xgem.judges.extractors.own import prompt_encoder

        return prompt_encoder(name, place)
    if name == "xgem-classifier":
        from xgem.judges.extractors.own import judge_space
        from xgem.judges.saved import open_judge

        return judge_space(open_judge(source or None, view, training, cache=cache, device=place))
    if name not in _LOADERS:
        raise InputError(f"feature space {space!r}: expected one of {', '.join(NAMES)}, or name=folder")
    return _LOADERS[name](source or None, place)


def _inception(source: str | None, device: str) -> Extractor:
    from xgem.judges.extractors.convolutional import inception

    return inception(source, device)


def _densenet(which: str) -> Callable[[str | None, str], Extractor]:
    def load(source: str | None, device: str) -> Extractor:
        from xgem.judges.extractors.convolutional import densenet

        return densenet(which, source, device)

    return load


def _rad_dino(source: str | None, device: str) -> Extractor:
    from xgem.judges.extractors.hub import rad_dino

    return rad_dino(source, device)


def _clip(source: str | None, device: str) -> Extractor:
    from xgem.judges.extractors.hub import clip

    return clip(source, device)


def _biovil_t(source: str | None, device: str) -> Extractor:
    from xgem.judges.extractors.biovil import biovil_t

    return biovil_t(source, device)


def _mobilenet(source: str | None, device: str) -> Extractor:
    from xgem.judges.extractors.mobilenet import mobilenet

    return mobilenet(source, device)


def _radiomic(source: str | None, device: str) -> Extractor:
    from xgem.judges.extractors.radiomic import radiomic

    del source, device  # computed, not loaded
    return radiomic()


_LOADERS: Final[dict[str, Callable[[str | None, str], Extractor]]] = {
    "inception-v3": _inception,
    "rad-dino": _rad_dino,
    "clip-vit-l-14": _clip,
    "xrv-densenet-all": _densenet("all"),
    "xrv-densenet-mimic": _densenet("mimic"),
    "biovil-t": _biovil_t,
    "mobilenet-v2": _mobilenet,
    "radiomics": _radiomic,
}
NAMES: Final = (*_LOADERS, "xgem-classifier", "xgem:MODEL/MODALITY")
WITH_TEXTS: Final = ("biovil-t", "xgem:")
"""Prefixes of the names of joint spaces of images and texts."""
