"""A cache of arrays on disk, keyed by everything that they depend on.

A cache entry's name is the SHA-256 of its key (canonical JSON); the key and a digest of the data are stored with the
data and compared on reading. An entry made from other images, another encoder or another config has another key, so
that a stale entry can never be used. Damaged entries are computed again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from xgem.types import OutputError
from xgem.utils.files import locked, replacing
from xgem.utils.hashing import arrays_hash, canonical

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


logger = logging.getLogger(__name__)


class ArrayCache:
    """Arrays by key: ``folder/kind/<sha256 of the key>.safetensors``."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def get_or_make(
        self, kind: str, key: Mapping[str, Any], make: Callable[[], Mapping[str, NDArray[Any] | Tensor]]
    ) -> dict[str, Tensor]:
        """The stored arrays for ``key``, or those of ``make()``, which are then stored.

        Of several processes that want the same entry one makes it, and the others wait for it.

        Args:
            kind: name of the sub-folder.
            key: everything that the arrays depend on, as JSON values: data hash, encoder hash, config.
            make: called if nothing usable is stored.

        Raises:
            DataError: the key cannot be written as JSON.
            OutputError: the cache cannot be written.
        """
        text, file = canonical(key), self._file(kind, key)
        before = _stamp(file)
        stored = _read(file, text) if before else None
        if stored is not None:
            return stored
        with _alone(file):
            if _stamp(file) != before and (stored := _read(file, text)) is not None:
                return stored  # another process has made it meanwhile
            arrays = {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in make().items()}
            _write(file, text, arrays)
            shutil.rmtree(self.unfinished(kind, key), ignore_errors=True)
        return arrays

    def stored(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        """The file of an entry, None where there is none; its arrays are not read, and so not compared."""
        file = self._file(kind, key)
        try:
            with safe_open(str(file), framework="pt") as stream:
                return file if (stream.metadata() or {}).get("key") == canonical(key) else None
        except (SafetensorError, OSError):
            return None

    def unfinished(self, kind: str, key: Mapping[str, Any]) -> Path:
        """A folder for the checkpoints of an entry that takes long to compute; deleted once the entry is stored."""
        return self._file(kind, key).with_suffix(".partial")

    def _file(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.folder / kind / f"{hashlib.sha256(canonical(key).encode()).hexdigest()}.safetensors"


def _stamp(file: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Only one process at a time makes an entry."""
    lock = file.with_name(f".{file.stem}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror}); choose another path") from error
    with locked(lock, create=True):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink(missing_ok=True)


def _read(file: Path, text: str) -> dict[str, Tensor] | None:
    """The arrays in a file; None, with a warning, if it is damaged or has another key."""
    try:
        with safe_open(str(file), framework="pt") as stream:
            metadata = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        if metadata.get("key") != text:
            raise ValueError("it was made with another key")
        if arrays_hash(arrays) != metadata.get("digest"):
            raise ValueError("its data is damaged")
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("cache: %s cannot be used (%s); computing it again", file, error)
        return None
    return arrays


def _write(file: Path, text: str, arrays: Mapping[str, Tensor]) -> None:
    with replacing(file) as partial:
        save_file(dict(arrays), partial, metadata={"key": text, "digest": arrays_hash(arrays)})
    # Older versions wrote entries above 1 GiB as several files, which are no longer read
    for old in file.parent.glob(f"{file.stem}-*-of-*.safetensors"):
        old.unlink(missing_ok=True)
