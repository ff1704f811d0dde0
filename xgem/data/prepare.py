"""All images of a manifest at the model's size, preprocessed once and cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.cache import ArrayCache
from xgem.data.manifest import Manifest
from xgem.data.read import NEGATIVE
from xgem.data.transforms import Notes, grey_levels, read_with, to_square
from xgem.types import DataError, ImageError
from xgem.utils.devices import moved
from xgem.utils.hashing import canonical, content_hash, in_threads
from xgem.utils.progress import showing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from xgem.configs.components import TransformConfig


# To be increased when the same file and config would give different pixels
PREPARE_VERSION = 2


@dataclass(frozen=True)
class PreparedImages:
    """The preprocessed images of a split.

    ``values`` (n, size, size) uint8, where 0 is -1 and 255 is 1 in the transform's range; ``index``: the rows of each
    (study id, view); ``paths``: the file of each row; ``sha256`` of the files' contents and the transform.
    """

    values: Tensor
    index: Mapping[tuple[str, str], list[int]]
    paths: tuple[Path, ...]
    sha256: str

    def floats(self, rows: Sequence[int] | Tensor, device: torch.device | None = None) -> Tensor:
        """Rows as (n, 1, size, size) float32 in [-1, 1], on ``device``; None: on the CPU."""
        return as_floats(self.bytes(rows), device)

    def bytes(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Rows as (n, 1, size, size) uint8."""
        return self.values[torch.as_tensor(rows, dtype=torch.long)].unsqueeze(1)


def as_floats(values: Tensor, device: torch.device | None = None) -> Tensor:
    """Grey levels 0 to 255 as float32 in [-1, 1], on ``device``, to which a quarter of the bytes travel as uint8."""
    return moved(values, device).float() / 127.5 - 1


def prepare_images(
    manifest: Manifest,
    split: str | None,
    config: TransformConfig,
    cache_folder: str | os.PathLike[str],
    *,
    progress: bool = True,
) -> PreparedImages:
    """Every image of a split with a known view, preprocessed once and cached by the files' contents and the config.

    Raises:
        ImageError: an image cannot be read; the message names the file.
        DataError: a file is missing, or the split has no images.
    """
    paths, readings, index = _listed(manifest, split)
    if not paths:
        raise DataError(f"no images in split {split!r}; check the manifest with `xgem data check`")
    key = _key(paths, readings, config)

    def make() -> dict[str, NDArray[Any]]:
        noted = Notes()
        with showing(progress):
            values, changed = _prepare(paths, readings, config, f"preparing {split or 'all'} images", noted)
        noted.log()
        return {"values": values, "changed": changed}

    arrays = ArrayCache(cache_folder).get_or_make("images", key, make)
    # Trainings are identified by this hash: where all pixels are those of the first version, it is that version's
    version = PREPARE_VERSION if bool(arrays["changed"].any()) else 1
    sha = hashlib.sha256(canonical(key | {"version": version}).encode()).hexdigest()
    return PreparedImages(arrays["values"], index, tuple(paths), sha)


def read_images(manifest: Manifest, split: str, config: TransformConfig, noted: Notes) -> PreparedImages:
    """Every image of a split with a known view, preprocessed and not cached; maybe none. Their notes go to ``noted``.

    Raises:
        ImageError, DataError: as :func:`prepare_images`.
    """
    paths, readings, index = _listed(manifest, split)
    with showing(False):
        sha = hashlib.sha256(canonical(_key(paths, readings, config)).encode()).hexdigest()
        values, _ = _prepare(paths, readings, config, "", noted)
    return PreparedImages(torch.from_numpy(values), index, tuple(paths), sha)


def _listed(
    manifest: Manifest, split: str | None
) -> tuple[list[Path], list[ReadOptions], dict[tuple[str, str], list[int]]]:
    """The images of a split, how each is read, and their numbers by study and view."""
    paths: list[Path] = []
    readings: list[ReadOptions] = []
    index: dict[tuple[str, str], list[int]] = {}
    for study in manifest.studies(split):
        for view, files in study.images.items():
            index[study.id, view] = list(range(len(paths), len(paths) + len(files)))
            paths.extend(files)
            readings += map(study.reading_of, files)
    return paths, readings, index


def _key(paths: Sequence[Path], readings: Sequence[ReadOptions], config: TransformConfig) -> dict[str, Any]:
    """What prepared images depend on."""
    key: dict[str, Any] = {
        "content": content_hash(paths),
        "transform": config.model_dump(mode="json"),
        "version": PREPARE_VERSION,
    }
    if any(one != AS_STATED for one in readings):
        key["reading"] = [one.model_dump() for one in readings]
    return key


def _prepare(
    paths: Sequence[Path], readings: Sequence[ReadOptions], config: TransformConfig, title: str, noted: Notes
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(n, size, size) uint8, read in several threads; and (n,) 1 where the first version read other pixels."""
    values = np.empty((len(paths), config.size, config.size), dtype=np.uint8)
    changed = np.zeros(len(paths), dtype=np.uint8)

    def prepare_row(row: int) -> None:
        try:
            radiograph = read_with(paths[row], config, readings[row])
            square = to_square(radiograph, config)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{paths[row]}: cannot be prepared ({error})") from error
        values[row] = grey_levels(square)
        noted.add(radiograph.notes, paths[row])
        changed[row] = bool(set(radiograph.notes) - {NEGATIVE})

    in_threads(prepare_row, range(len(paths)), title)
    return values, changed
