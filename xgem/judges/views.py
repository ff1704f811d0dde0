"""The view of a radiograph by its pixels, for files whose header does not say: frontal, lateral, or not sure.

A logistic regression on MobileNetV2's features of ImageNet, which do not change with the weights of any checkpoint. It
knows these two views alone: an oblique view, or another part of the body, gets one of them, or is not sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xgem.checkpoints.locate import ASSETS
from xgem.configs.components import TransformConfig
from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.sources.dicom import Guess
from xgem.data.transforms import Notes, grey_levels, read_square
from xgem.judges.extractors import Extractor, open_extractor
from xgem.types import CheckpointError, ImageError
from xgem.utils.files import one_line, read_json, replacing, write_json

SHIPPED: Final = ASSETS / "judges" / "views"
RECORD: Final = "views.json"
WEIGHTS: Final = "model.safetensors"
VIEWS: Final = ("frontal", "lateral")
SPACE: Final = "mobilenet-v2"
TRANSFORM: Final = TransformConfig(size=256)
LEAST: Final = 0.9
"""Probability of a view below which an image has none."""
_BATCH: Final = 64


def vectors_of(images: NDArray[np.uint8], features: Extractor) -> NDArray[np.float32]:
    """Feature vectors (n, d) of images (n, size, size), in batches."""
    return np.concatenate([features(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)])


@dataclass(frozen=True)
class ViewGuess:
    """Tells views: ``weight`` (d,) and ``bias`` of the log odds that an image with these ``features`` is a lateral.

    ``reading`` says how the files are read; an image with a probability below ``least`` for either view gets none.
    """

    features: Extractor
    weight: NDArray[np.float64]
    bias: float
    reading: ReadOptions = AS_STATED
    least: float = LEAST

    @classmethod
    def shipped(cls, reading: ReadOptions = AS_STATED) -> ViewGuess:
        """The one that ships with xgem; CheckpointError as :meth:`load`."""
        return cls.load(SHIPPED, open_extractor(SPACE), reading)

    @classmethod
    def load(cls, folder: Path, features: Extractor, reading: ReadOptions = AS_STATED) -> ViewGuess:
        """What :meth:`save` wrote.

        Raises:
            CheckpointError: files are missing, or fitted on other features.
        """
        record = read_json(folder / RECORD)
        try:
            state = load_file(folder / WEIGHTS)
            weight, bias = state["weight"].astype(np.float64), float(state["bias"][0])
            fitted = record["features"]
        except (KeyError, TypeError, OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: not a classifier of views ({one_line(error)}); expected {RECORD} and {WEIGHTS}"
            ) from None
        if fitted != features.weights:
            raise CheckpointError(
                f"{folder}: fitted on the features {fitted}, but {features.name} has {features.weights}; fit it again "
                "(benchmarks/views.py)"
            )
        return cls(features, weight, bias, reading)

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write the weights, and ``about`` (data, accuracy) with the features that they are for; OutputError if not."""
        with replacing(folder / WEIGHTS) as partial:
            save_file({"weight": self.weight.astype(np.float32), "bias": np.array([self.bias], np.float32)}, partial)
        with replacing(folder / RECORD) as partial:
            write_json(partial, {"views": list(VIEWS), "features": self.features.weights, **about})

    def laterals(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities (n,) that images (n, size, size) are laterals."""
        return 1 / (1 + np.exp(-(vectors_of(images, self.features) @ self.weight + self.bias)))

    def __call__(self, files: Sequence[Path]) -> list[Guess]:
        """The view of each file, or why there is none: the classifier is not sure, or the file cannot be read."""
        found: list[Guess] = []
        for start in range(0, len(files), _BATCH):
            found += self._guesses(files[start : start + _BATCH])
        return found

    def _guesses(self, files: Sequence[Path]) -> list[Guess]:
        guesses: dict[Path, Guess] = {}
        squares: dict[Path, NDArray[np.uint8]] = {}
        unsaid = Notes()  # whatever uses the images says it
        for file in files:
            try:
                square = read_square(file, TRANSFORM, self.reading, noted=unsaid)
                squares[file] = grey_levels(square)
            except ImageError as error:
                guesses[file] = Guess(None, str(error).removeprefix(f"{file}: "))
        if squares:
            for file, lateral in zip(squares, self.laterals(np.stack(list(squares.values()))), strict=True):
                view, sure = (VIEWS[1], lateral) if lateral > 0.5 else (VIEWS[0], 1 - lateral)
                reason = f"the guess is {view} with probability {sure:.2f}, below {self.least:g}"
                guesses[file] = Guess(view) if sure >= self.least else Guess(None, reason)
        return [guesses[file] for file in files]
