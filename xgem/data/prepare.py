"""All images of a manifest at the model's size, preprocessed once and cached."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.cache import ArrayCache
from xgem.data.manifest import Manifest
from xgem.data.read import NEGATIVE
from xgem.data.stored_pixels import StoredPixels
from xgem.data.transforms import Notes, grey_levels, read_with, to_square
from xgem.types import DataError, ImageError
from xgem.utils.devices import moved
from xgem.utils.hashing import canonical, content_hash, in_threads
from xgem.utils.progress import StepBar, showing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from xgem.configs.components import TransformConfig


PART = 512
"""Images in a file of the cache."""
# To be increased when the same file and config would give different pixels
PREPARE_VERSION = 2


@dataclass(frozen=True)
class PreparedImages:
    """The preprocessed images of a split.

    ``values`` (n, size, size) uint8, where 0 is -1 and 255 is 1 in the transform's range, in memory or on the disk;
    ``index``: the rows of each (study id, view); ``paths``: the file of each row; ``sha256`` of the files' contents and
    the transform.
    """

    values: Tensor | StoredPixels
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

    noted = Notes()
    files: list[Path] = []
    changed = False
    cache, title = ArrayCache(cache_folder), f"preparing {split or 'all'} images"
    with showing(progress), StepBar(title, len(paths)) as bar:
        for start in range(0, len(paths), PART):
            rows = slice(start, start + PART)
            of_part = key | {"rows": [start, min(start + PART, len(paths))]}
            make = partial(_part, paths[rows], readings[rows], config, noted)
            file = cache.stored("images", of_part)
            if file is None:
                cache.get_or_make("images", of_part, make)
                file = cache.stored("images", of_part)
                assert file is not None
            files.append(file)
            with safe_open(str(file), "pt") as stream:
                changed |= bool(stream.get_tensor("changed").any())
            bar.advance(len(paths[rows]))
    noted.log()
    # Trainings are identified by this hash: where all pixels are those of the first version, it is that version's
    sha = hashlib.sha256(canonical(key | {"version": PREPARE_VERSION if changed else 1}).encode()).hexdigest()
    return PreparedImages(StoredPixels(files, len(paths), config.size, PART), index, tuple(paths), sha)


def _part(
    paths: Sequence[Path], readings: Sequence[ReadOptions], config: TransformConfig, noted: Notes
) -> dict[str, NDArray[Any]]:
    """What a file of the cache holds of some images."""
    with showing(False):
        values, changed = _prepare(paths, readings, config, "", noted)
    return {"values": values, "changed": changed, "crc": np.array([zlib.crc32(one.tobytes()) for one in values])}


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
