"""Features of sets of images, computed in batches and cached by the content of the images.

There is one SQLite file for each extractor, weights and preprocessing: ``cache/features/<name>-<key>.sqlite``. Features
are written batch by batch, so that a killed run resumes where it stopped. Several processes may share the folder (on a
local disk: SQLite's write-ahead log does not work over a network). An image in two sets is computed once.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.headers import uneven_grid
from xgem.data.sets import EvalSet, Item
from xgem.judges.extractors import Extractor
from xgem.types import DataError, OutputError
from xgem.utils.hashing import canonical
from xgem.utils.progress import StepBar, track

logger = logging.getLogger(__name__)
Features = NDArray[np.float32]
_WAIT_S: Final = 120  # for another process to write, which takes milliseconds
_MOST_PER_QUERY: Final = 500  # maximum number of rows in one query


def extract(
    items: EvalSet,
    extractor: Extractor,
    cache: Path | None = None,
    batch_size: int = 64,
    size: int | None = None,
) -> Features:
    """Features of a set's images in order, (n, d) float32.

    The extractor gets images in their original size and resizes them as its network requires; images of a set with
    mixed sizes (``pad``) are first padded to squares of the extractor's size. At most ``batch_size`` images are in
    memory.

    Args:
        items: items without an image are left out.
        cache: folder for the features; None keeps nothing.
        size: side in pixels to which every image is resized first, so that sets of different sizes are comparable.

    Raises:
        InputError: no item has an image.
        ImageError, DataError: an image cannot be used (see :meth:`EvalSet.batches`), a feature is not finite, or a
            cache file is damaged.
        OutputError: the cache cannot be written.
    """
    items = items.with_images()
    side = size or (extractor.size if items.pad else None)
    features = np.empty((len(items), extractor.dim), dtype=np.float32)
    if cache is None:
        for start, vectors in _computed(items, extractor, batch_size, side):
            features[start : start + len(vectors)] = vectors
        return features
    # Rows of each different image
    hashes = _hashes(items)
    rows: dict[bytes, list[int]] = {}
    for row, digest in enumerate(hashes):
        rows.setdefault(digest, []).append(row)
    with _opened(_place(cache, extractor, side)) as store:
        # What is in the cache
        missing: list[bytes] = []
        for digest, vector in _stored(store, list(rows), extractor.dim):
            if vector is None:
                missing.append(digest)
            else:
                features[rows[digest]] = vector
        if not missing:
            return features
        logger.info("features: %s, %d of %d images to compute", extractor.name, len(missing), len(rows))
        # The rest, written batch by batch
        to_compute = items.subset([rows[digest][0] for digest in missing])
        for start, vectors in _computed(to_compute, extractor, batch_size, side):
            batch = missing[start : start + len(vectors)]
            with store:
                pairs = [(digest, vector.tobytes()) for digest, vector in zip(batch, vectors, strict=True)]
                store.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", pairs)
            for digest, vector in zip(batch, vectors, strict=True):
                features[rows[digest]] = vector
    return features


def _computed(
    items: EvalSet, extractor: Extractor, batch_size: int, side: int | None
) -> Iterator[tuple[int, Features]]:
    """Batches of features (b, d), each with the row of its first image; DataError where one is not finite."""
    start = 0
    with StepBar(f"features of {items.name}, {extractor.name}", len(items)) as bar:
        for images in items.batches(side, batch_size):
            vectors = extractor(images)
            if not np.isfinite(vectors).all():
                row = start + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
                raise DataError(
                    f"{items.items[row].file}: {extractor.name} gives features that are not finite for this image"
                )
            yield start, vectors
            start += len(vectors)
            bar.advance(len(vectors))


def _hashes(items: EvalSet) -> list[bytes]:
    """SHA-256 of each image file; of an image that is read in a way of its own, or resampled, with that."""

    def digest(item: Item) -> bytes:
        file = item.file
        assert file is not None
        try:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); remove it from the set") from error
        grid, told = uneven_grid(file), item.reading.model_dump()
        if grid is None and not told:
            return found
        return hashlib.sha256(found + canonical({"reading": told, "aspect": grid and grid.aspect}).encode()).digest()

    with ThreadPoolExecutor(4) as pool:
        return list(track(pool.map(digest, items.items), f"hashing {items.name}", len(items)))


def _place(cache: Path, extractor: Extractor, side: int | None) -> Path:
    """The cache file of an extractor and its preprocessing."""
    key = canonical(
        {
            "name": extractor.name,
            "weights": extractor.weights,
            "preprocessing": extractor.preprocessing,
            "padded": side,
            "dim": extractor.dim,
        }
    )
    stem = re.sub(r"[^\w.-]+", "-", extractor.name)
    return cache / "features" / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.sqlite"


@contextmanager
def _opened(place: Path) -> Iterator[sqlite3.Connection]:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(place, timeout=_WAIT_S)) as store:
            store.execute("PRAGMA journal_mode = WAL")
            store.execute(
                "PRAGMA synchronous = NORMAL"
            )  # safe with a write-ahead log: a power failure costs at most the last batches
            store.execute("CREATE TABLE IF NOT EXISTS features (image BLOB PRIMARY KEY, vector BLOB NOT NULL)")
            yield store
    except (OSError, sqlite3.OperationalError) as error:
        raise OutputError(f"{place}: the feature cache cannot be used ({error}); choose another folder") from error
    except sqlite3.DatabaseError as error:
        raise DataError(f"{place}: the feature cache is damaged ({error}); delete the file") from error


def _stored(
    store: sqlite3.Connection, hashes: Sequence[bytes], dim: int
) -> Iterator[tuple[bytes, NDArray[np.float32] | None]]:
    """The cached vector of each image; None if it is missing or has another length, and must be computed."""
    for start in range(0, len(hashes), _MOST_PER_QUERY):
        batch = hashes[start : start + _MOST_PER_QUERY]
        placeholders = ",".join("?" * len(batch))
        vectors = dict(store.execute(f"SELECT image, vector FROM features WHERE image IN ({placeholders})", batch))
        for digest in batch:
            stored = vectors.get(digest, b"")
            yield digest, np.frombuffer(stored, dtype=np.float32) if len(stored) == 4 * dim else None
