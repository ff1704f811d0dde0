"""All images of a manifest at the model's size, preprocessed once and cached."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.cache import ArrayCache
from xgem.data.file_hashes import FileHashes
from xgem.data.manifest import ImageFiles, Manifest
from xgem.data.read import NEGATIVE
from xgem.data.stored_pixels import StoredPixels
from xgem.data.streamed import StreamedManifest
from xgem.data.study import Study
from xgem.data.transforms import Notes, grey_levels, read_with, to_square
from xgem.types import DataError, ImageError
from xgem.utils.devices import moved
from xgem.utils.hashing import canonical, content_hash, crc, in_threads
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
    ``ends`` (studies + 1,): where the rows of a study end, view by view, and those of the next one by id start;
    ``sha256`` of the files' contents and the transform.
    """

    values: Tensor | StoredPixels
    ends: NDArray[np.uint32]
    sha256: str

    @classmethod
    def none(cls, studies: int) -> PreparedImages:
        """No image of any of the studies."""
        return cls(torch.empty(0, dtype=torch.uint8), np.zeros(studies + 1, np.uint32), "")

    def rows(self, number: int, study: Study, view: str) -> list[int]:
        """The rows with a view of ``study``, which has this ``number`` among those of the split by id; maybe none."""
        first, last = self.ends[number : number + 2].tolist()
        for name, files in study.images.items():
            if name == view:
                return list(range(first, min(last, first + len(files))))
            first += len(files)
        return []

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
    manifest: Manifest | StreamedManifest,
    split: str,
    config: TransformConfig,
    cache_folder: str | os.PathLike[str],
    *,
    progress: bool = True,
) -> PreparedImages:
    """Every image of a split with a known view, preprocessed once and cached by the files' contents and the config.

    The contents of a file are read again where its size or the time of its last change is another than before.

    Raises:
        ImageError: an image cannot be read; the message names the file.
        DataError: a file is missing, or the split has no images.
    """
    listed = _Listed()
    hashes = FileHashes(Path(cache_folder) / "files.sqlite")
    with showing(progress):
        content = hashes.content_hash(file for file, _ in listed.noting(manifest.image_files(split)))
    ends = listed.ends
    count = int(ends[-1])
    if not count:
        raise DataError(f"no images in split {split!r}; check the manifest with `xgem data check`")
    key = _key(content, config)

    noted = Notes()
    files: list[Path] = []
    changed = False
    cache, title = ArrayCache(cache_folder), f"preparing {split} images"
    images = _InParts(chain.from_iterable(manifest.image_files(split)))
    with showing(progress), StepBar(title, count) as bar:
        for number, start in enumerate(range(0, count, PART)):
            of_part = key | {"rows": [start, min(start + PART, count)]}
            if not listed.as_stated:
                of_part["reading"] = [reading.model_dump() for _, reading in images.part(number)]
            file = cache.stored("images", of_part)
            if file is None:
                cache.get_or_make("images", of_part, partial(_part, images, number, config, noted))
                file = cache.stored("images", of_part)
                assert file is not None
            files.append(file)
            with safe_open(str(file), "pt") as stream:
                changed |= bool(stream.get_tensor("changed").any())
            bar.advance(of_part["rows"][1] - start)
    noted.log()
    # Trainings are identified by this hash: where all pixels are those of the first version, it is that version's
    readings = None if listed.as_stated else (one for files in manifest.image_files(split) for _, one in files)
    sha = _sha256(key | {"version": PREPARE_VERSION if changed else 1}, readings)
    return PreparedImages(StoredPixels(files, count, config.size, PART), ends, sha)


def _part(images: _InParts, number: int, config: TransformConfig, noted: Notes) -> dict[str, NDArray[Any]]:
    """What a file of the cache holds of some images."""
    with showing(False):
        values, changed = _prepare(images.part(number), config, noted)
    return {"values": values, "changed": changed, "crc": np.array(list(map(crc, values)))}


def read_images(manifest: Manifest, split: str, config: TransformConfig, noted: Notes) -> PreparedImages:
    """Every image of a split with a known view, preprocessed and not cached; maybe none. Their notes go to ``noted``.

    Raises:
        ImageError, DataError: as :func:`prepare_images`.
    """
    listed = _Listed()
    files = list(listed.noting(manifest.image_files(split)))
    with showing(False):
        key = _key(content_hash(file for file, _ in files), config)
        values, _ = _prepare(files, config, noted)
    readings = None if listed.as_stated else (one for _, one in files)
    return PreparedImages(torch.from_numpy(values), listed.ends, _sha256(key, readings))


class _Listed:
    """What is noted of the images of a split as they are listed, study by study."""

    def __init__(self) -> None:
        self._counts, self.as_stated = array("I"), True

    def noting(self, studies: Iterable[ImageFiles]) -> Iterator[tuple[str, ReadOptions]]:
        """All images, one after the other."""
        for files in studies:
            self._counts.append(len(files))
            for file, reading in files:
                self.as_stated &= reading is AS_STATED or reading == AS_STATED
                yield file, reading

    @property
    def ends(self) -> NDArray[np.uint32]:
        """(studies + 1,), as :attr:`PreparedImages.ends`."""
        return np.concatenate([[0], np.cumsum(np.array(self._counts, np.uint32))]).astype(np.uint32)


class _InParts:
    """Images in the parts of the cache's files, which are asked for in their order; left out ones are passed over."""

    def __init__(self, images: Iterator[tuple[str, ReadOptions]]) -> None:
        self._images, self._number, self._some = images, -1, list[tuple[str, ReadOptions]]()

    def part(self, number: int) -> ImageFiles:
        while self._number < number:
            self._number, self._some = self._number + 1, list(islice(self._images, PART))
        return self._some


def _key(content: str, config: TransformConfig) -> dict[str, Any]:
    """What prepared images depend on, beside how they are read."""
    return {"content": content, "transform": config.model_dump(mode="json"), "version": PREPARE_VERSION}


def _sha256(key: Mapping[str, Any], readings: Iterable[ReadOptions] | None) -> str:
    """Of the canonical form of ``key``, with the list of ``readings`` if there is one, which is not held in memory."""
    if readings is None:
        return hashlib.sha256(canonical(key).encode()).hexdigest()
    before = {name: value for name, value in key.items() if name < "reading"}
    after = {name: value for name, value in key.items() if name not in before}
    digest = hashlib.sha256(f'{canonical(before)[:-1]},"reading":['.encode())
    for number, reading in enumerate(readings):
        digest.update(f"{',' if number else ''}{canonical(reading.model_dump())}".encode())
    digest.update(f"],{canonical(after)[1:]}".encode())
    return digest.hexdigest()


def _prepare(images: ImageFiles, config: TransformConfig, noted: Notes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(n, size, size) uint8, read in several threads; and (n,) 1 where the first version read other pixels."""
    values = np.empty((len(images), config.size, config.size), dtype=np.uint8)
    changed = np.zeros(len(images), dtype=np.uint8)

    def prepare_row(row: int) -> None:
        path, reading = Path(images[row][0]), images[row][1]
        try:
            radiograph = read_with(path, config, reading)
            square = to_square(radiograph, config)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{path}: cannot be prepared ({error})") from error
        values[row] = grey_levels(square)
        noted.add(radiograph.notes, path)
        changed[row] = bool(set(radiograph.notes) - {NEGATIVE})

    in_threads(prepare_row, range(len(images)), "")
    return values, changed
