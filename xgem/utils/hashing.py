"""Hashes of arrays, files and modules, for caches and records."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from xgem.types import DataError
from xgem.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

T = TypeVar("T")
R = TypeVar("R")


def canonical(key: Mapping[str, Any]) -> str:
    """A cache key as canonical JSON: equal text for equal keys.

    Raises:
        DataError: the key contains NaN or something that JSON cannot represent.
    """
    try:
        return json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"cache key cannot be written as JSON ({error}); give strings, numbers, lists, dicts"
        ) from error


def crc(*arrays: NDArray[Any]) -> int:
    """CRC-32 of the bytes of arrays, one after the other."""
    value = 0
    for array in arrays:
        value = zlib.crc32(array.tobytes(), value)
    return value


def file_digest(path: str | os.PathLike[str]) -> bytes:
    """SHA-256 of a file's contents; DataError if it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read ({error.strerror}); run `xgem data check`") from error


def content_hash(paths: Iterable[str | os.PathLike[str]]) -> str:
    """SHA-256 over the contents of files, in the given order; their names do not matter.

    Raises:
        DataError: a file cannot be read.
    """

    total = hashlib.sha256()
    with ThreadPoolExecutor(reading_threads()) as pool:
        files = list(paths)
        for digest in track(pool.map(file_digest, files), "hashing files", len(files)):
            total.update(digest)
    return total.hexdigest()


def module_hash(module: nn.Module) -> str:
    """SHA-256 over a module's state dict: names, dtypes, shapes and bytes."""
    return arrays_hash(module.state_dict())


def arrays_hash(arrays: Mapping[str, Tensor]) -> str:
    """SHA-256 over named arrays in order of their names: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        digest.update(f"{name}:{array.dtype}:{tuple(array.shape)}:".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data if array.numel() else b"")
    return digest.hexdigest()


def reading_threads() -> int:
    """Number of threads that read files concurrently: one per core, at most 8."""
    return max(1, min(8, os.cpu_count() or 1))


def in_threads(function: Callable[[T], R], items: Sequence[T], description: str) -> list[R]:
    """``function`` of each item, in order, in several threads that read files, with a progress bar; the first error
    ends them."""
    with ThreadPoolExecutor(reading_threads()) as pool:
        try:
            return list(track(pool.map(function, items), description, len(items)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def array_hash(array: NDArray[Any]) -> str:
    """SHA-256 of an array's dtype, shape and bytes (in C order, little endian)."""
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{array.dtype.name}:{array.shape}:".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()
