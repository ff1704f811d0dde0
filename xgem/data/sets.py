"""Sets of real or generated radiographs and reports, in a fixed order (:mod:`xgem.data.set_files` reads them)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.transforms import Notes, evened, pad_square, read_with, resize
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import DataError, InputError
from xgem.utils.hashing import content_hash, reading_threads

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One image with or without a report, or one report without an image.

    ``id`` identifies it within its set, ``pair`` the corresponding item of the other set (a generated item names the
    real study whose prompt it was generated from; by default ``id``). ``prompt`` is the text from which it was
    generated, ``report`` the report itself. ``labels`` maps CheXpert classes to 1, 0 or -1 (uncertain), without
    unknown classes. ``age`` is in years. ``reading`` says how its image is read.
    """

    id: str
    file: Path | None = None
    pair: str = ""
    prompt: str = ""
    report: str = ""
    labels: Mapping[str, float] = field(default_factory=dict[str, float])
    subject: str = ""
    age: float | None = None
    sex: str | None = None
    race: str | None = None
    severity: float | None = None
    reading: ReadOptions = field(default=AS_STATED, repr=False)


@dataclass(frozen=True)
class EvalSet:
    """Items of one kind, in a fixed order.

    ``labelled_by`` is the source of the labels: ``file``, ``annotators`` or the labeller's name. ``pad`` allows images
    of several sizes: each is padded to a square, then resized. ``kept``, if given, keeps the pixels that have been read
    for whoever reads them next; subsets share it.
    """

    name: str
    items: tuple[Item, ...]
    labelled_by: str = "file"
    pad: bool = False
    kept: KeptImages | None = field(default=None, repr=False, compare=False)
    _said: set[str] = field(default_factory=set[str], repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over everything in the set: contents of images, reports, prompts, labels."""
        digest = hashlib.sha256()
        files = [item.file for item in self.items if item.file is not None]
        digest.update(content_hash(files).encode() if files else b"")
        for item in self.items:
            stated = replace(item, file=None, labels={})
            digest.update(repr((stated, sorted(item.labels.items()))).encode())
            if item.reading != AS_STATED:  # sets of before keep their hash
                digest.update(repr(item.reading).encode())
            if item.reading.pixel_aspect is not None:
                digest.update(repr(item.reading.pixel_aspect).encode())
        return digest.hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """Name, size and hash, for records."""
        return {"name": self.name, "n": len(self), "sha256": self.sha256}

    @property
    def reports(self) -> list[str]:
        return [item.report for item in self.items]

    @property
    def prompts(self) -> list[str]:
        return [item.prompt for item in self.items]

    def labels(self, classes: Sequence[str] = CHEXPERT_CLASSES) -> NDArray[np.float64]:
        """Labels (n, classes): 1, 0, -1 (uncertain) and NaN (not mentioned)."""
        rows = [[item.labels.get(name, math.nan) for name in classes] for item in self.items]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(classes))

    def subset(self, rows: Sequence[int] | NDArray[Any], name: str | None = None) -> EvalSet:
        """The items in these rows, in the given order."""
        return replace(self, name=name or self.name, items=tuple(self.items[int(row)] for row in rows))

    def with_images(self) -> EvalSet:
        """The items that have an image.

        Raises:
            InputError: there are none.
        """
        rows = [row for row, item in enumerate(self.items) if item.file is not None]
        if not rows:
            raise InputError(f"{self.name}: no images; this metric needs some")
        return self if len(rows) == len(self.items) else self.subset(rows)

    def with_reports(self) -> EvalSet:
        """The items that have a report.

        Raises:
            InputError: there are none.
        """
        rows = [row for row, item in enumerate(self.items) if item.report.strip()]
        if not rows:
            raise InputError(f"{self.name}: no reports; this metric needs some")
        return self if len(rows) == len(self.items) else self.subset(rows)

    def batches(self, size: int | None = None, batch_size: int = 256) -> Iterator[Images]:
        """The images in order, square pixels, as (b, size, size) uint8; at most ``batch_size`` of them are in memory.

        Args:
            size: side in pixels; None keeps the original size, which must then be the same for all images.

        Raises:
            ImageError: an image is missing or unreadable; the message names the file. It is never replaced by a black
                one.
            DataError: images of several sizes (unless ``pad``); the message names two of them.
        """
        first: tuple[str, tuple[int, int]] | None = None
        items, noted = self.with_images().items, Notes()
        read = partial(_read, size=size) if self.kept is None else partial(self.kept.read, size=size)
        with ThreadPoolExecutor(reading_threads()) as pool:
            for start in range(0, len(items), batch_size):
                pixels: list[Images] = []
                for image in pool.map(read, items[start : start + batch_size]):
                    noted.add(image.notes, image.file)
                    first = first or (image.origin, image.shape)
                    if image.shape != first[1] and not self.pad:
                        raise DataError(
                            f"{self.name}: images of mixed sizes, {first[0]} {_by(first[1])} and {image.origin} "
                            f"{_by(image.shape)}; resize them, or pass pad=True (--pad) to pad and resize each"
                        )
                    pixels.append(image.pixels)
                yield np.stack(pixels)
        if self.name not in self._said:  # once, however often the images are read
            self._said.add(self.name)
            noted.log(self.name)

    def images(self, size: int | None = None) -> Images:
        """All images at once, (n, size, size) uint8; see :meth:`batches`."""
        return np.concatenate(list(self.batches(size)))


@dataclass(frozen=True)
class _Resized:
    """An image ``file`` as it is measured: pixels (size, size) uint8, its ``shape`` (h, w) before, and its notes."""

    file: Path
    origin: str
    shape: tuple[int, int]
    pixels: Images
    notes: tuple[str, ...]


def _read(item: Item, size: int | None) -> _Resized:
    assert item.file is not None
    image = read_with(item.file, reading=item.reading)
    pixels = evened(image.pixels, image.aspect, name=image.origin)
    shape = (int(pixels.shape[0]), int(pixels.shape[1]))
    measured = np.rint(_square(pixels, size) * 255).astype(np.uint8)
    return _Resized(item.file, image.origin, shape, measured, image.notes)


class KeptImages:
    """Images in memory once they have been read, by file, reading and size, up to ``most_bytes``; later ones are read
    again."""

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self._most = most_bytes
        self.nbytes = 0
        self._images: dict[tuple[Path | None, ReadOptions, int | None], _Resized] = {}
        self._lock = Lock()

    def read(self, item: Item, size: int | None) -> _Resized:
        """The item's image as a square of ``size`` pixels, or in its own size; safe in several threads."""
        key = (item.file, item.reading, size)
        kept = self._images.get(key)
        if kept is not None:
            return kept
        image = _read(item, size)
        with self._lock:
            if self.nbytes + image.pixels.nbytes <= self._most and key not in self._images:
                self._images[key] = image
                self.nbytes += image.pixels.nbytes
        return image


def _square(pixels: NDArray[np.float32], size: int | None) -> NDArray[np.float32]:
    """(h, w) -> (size, size), padded to a square if necessary; unchanged where ``size`` is None."""
    squared = pad_square(pixels) if size is not None and pixels.shape[0] != pixels.shape[1] else pixels
    return squared if size is None else resize(squared, (size, size), "area")


def squares(images: Images, size: int) -> Images:
    """(n, h, w) uint8 -> (n, size, size): each padded to a square, then resized by area."""
    if images.shape[1:] == (size, size):
        return images
    resized = [_square(image.astype(np.float32) / 255, size) for image in images]
    return np.stack([np.rint(image * 255).astype(np.uint8) for image in resized])


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]}"


def pairs(real: EvalSet, generated: EvalSet) -> tuple[EvalSet, EvalSet]:
    """Both sets row by row: every generated item with the real item that it names.

    Raises:
        DataError: no generated item names a real one.
    """
    rows = {item.id: row for row, item in enumerate(real.items)}
    matched = [
        (rows[item.pair or item.id], row) for row, item in enumerate(generated.items) if (item.pair or item.id) in rows
    ]
    if not matched:
        raise DataError(
            f"{generated.name}: none of its {len(generated)} items names one of the {len(real)} of {real.name} "
            f"({generated.items[0].pair or generated.items[0].id!r} for one, against {real.items[0].id!r}); a column "
            "`pair` (or equal ids) must name the real study of each: a cohort has it by a `matched:` plan"
        )
    return real.subset([r for r, _ in matched]), generated.subset([g for _, g in matched])


def check_disjoint(real: EvalSet, generated: EvalSet) -> None:
    """Refuse sets that share an image, byte for byte.

    Raises:
        DataError: they share one; the message names a file of each set.
    """

    def hashed(items: EvalSet) -> dict[str, Path]:
        files = [item.file for item in items.items if item.file is not None]
        return {content_hash([file]): file for file in files}

    known = hashed(real)
    for digest, file in hashed(generated).items():
        if digest in known:
            raise DataError(f"{real.name} and {generated.name} overlap: {file} is {known[digest]}; remove copies")
