"""A store of arrays on disk, keyed by everything that they depend on.

A cache entry's name is the SHA-256 of its key (canonical JSON); the key is stored with the data and compared on
reading, and so is a digest of the data. An entry made from other pictures, another encoder or another config has
another key and so is never found: a stale cache cannot be used. What is damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from xgem.data.manifest import Manifest
from xgem.data.transforms import read_square
from xgem.types import DataError, ImageError, OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from xgem.configs.schema import TransformConfig

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30
# Raise when the same file and config would give other pixels than before.
PREPARE_VERSION = 1
_JOIN = "#"


def canonical(key: Mapping[str, Any]) -> str:
    """A key as JSON that is equal for equal keys.

    Raises:
        DataError: the key holds something that JSON has no form for, or NaN.
    """
    try:
        return json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"cache key cannot be written as JSON ({error}); give strings, numbers, lists, dicts"
        ) from error


def content_hash(paths: Iterable[str | os.PathLike[str]]) -> str:
    """SHA-256 over the contents of files, in the given order; names do not matter.

    Raises:
        DataError: a file cannot be read.
    """

    def one(path: str | os.PathLike[str]) -> bytes:
        try:
            with Path(path).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise DataError(f"{os.fspath(path)}: cannot be read ({error.strerror}); run `xgem data check`") from error

    total = hashlib.sha256()
    with ThreadPoolExecutor(_threads()) as pool:
        for digest in pool.map(one, paths):
            total.update(digest)
    return total.hexdigest()


def module_hash(module: nn.Module) -> str:
    """SHA-256 over a module's state dict: names, dtypes, shapes and bytes."""
    return _digest(module.state_dict())


class ArrayCache:
    """Arrays by key: ``folder/kind/<sha256 of the key>.safetensors``, in shards where they are large."""

    def __init__(self, folder: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = Path(folder)
        self.shard_bytes = shard_bytes

    def get_or_make(
        self, kind: str, key: Mapping[str, Any], make: Callable[[], Mapping[str, NDArray[Any] | Tensor]]
    ) -> dict[str, Tensor]:
        """The stored arrays of ``key``, or those of ``make()``, which are then stored.

        Args:
            kind: sub-folder, for people.
            key: everything that the arrays depend on: data hash, encoder hash, config. JSON-able.
            make: called where nothing usable is stored.

        Raises:
            DataError: the key is not JSON-able, or a name holds ``#``.
            OutputError: the cache cannot be written.
        """
        text = canonical(key)
        stem = hashlib.sha256(text.encode()).hexdigest()
        place = self.folder / kind
        stored = self._read(place, stem, text)
        if stored is not None:
            return stored
        made = {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in make().items()}
        self._write(place, stem, text, made)
        return made

    def _read(self, place: Path, stem: str, text: str) -> dict[str, Tensor] | None:
        shards = sorted(place.glob(f"{stem}*.safetensors"))
        if not shards:
            return None
        try:
            return self._joined(shards, text)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("cache: %s cannot be used (%s); making it again", shards[0], error)
            return None

    @staticmethod
    def _joined(shards: Sequence[Path], text: str) -> dict[str, Tensor]:
        pieces: dict[str, Tensor] = {}
        metas: list[dict[str, str]] = []
        for shard in shards:
            with safe_open(str(shard), framework="pt") as stream:
                metas.append(stream.metadata() or {})
                pieces |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        first = metas[0]
        if first.get("key") != text:
            raise ValueError("its key is another")
        if any(meta != first for meta in metas) or len(shards) != int(first["shards"]):
            raise ValueError(f"{len(shards)} shards of one writing, expected {first.get('shards')}")
        names = json.loads(first["arrays"])
        arrays = {
            name: torch.cat([pieces[f"{name}{_JOIN}{i}"] for i in range(n)]) if n else pieces[name]
            for name, n in names.items()
        }
        if _digest(arrays) != first["digest"]:
            raise ValueError("its data is damaged")
        return arrays

    def _write(self, place: Path, stem: str, text: str, arrays: Mapping[str, Tensor]) -> None:
        pieces: list[tuple[str, Tensor]] = []
        names: dict[str, int] = {}
        for name, array in arrays.items():
            if _JOIN in name:
                raise DataError(f"cache: array name {name!r} holds {_JOIN!r}; choose another")
            size = array.numel() * array.element_size()
            rows = array.shape[0] if array.ndim else 0
            if size <= self.shard_bytes or rows < 2:
                names[name] = 0
                pieces.append((name, array))
                continue
            # Copies, because a view would be saved with its whole storage.
            cut = [part.clone() for part in array.split(max(1, rows * self.shard_bytes // size))]
            names[name] = len(cut)
            pieces.extend((f"{name}{_JOIN}{index}", part) for index, part in enumerate(cut))
        shards = self._packed(pieces)
        token = uuid.uuid4().hex
        meta = {
            "key": text,
            "arrays": json.dumps(names),
            "digest": _digest(arrays),
            "shards": str(len(shards)),
            "writing": token,
        }
        partial: list[tuple[Path, Path]] = []
        try:
            place.mkdir(parents=True, exist_ok=True)
            for index, shard in enumerate(shards):
                tail = f"-{index + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
                target = place / f"{stem}{tail}.safetensors"
                part = place / f".{stem}{tail}.{token}.part"
                partial.append((part, target))
                save_file(shard, part, metadata=meta)
            keep = {target for _, target in partial}
            for old in place.glob(f"{stem}*.safetensors"):
                if old not in keep:
                    old.unlink(missing_ok=True)
            for part, target in partial:
                part.replace(target)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{place}: the cache cannot be written ({error}); choose another folder") from error
        finally:
            for part, _ in partial:
                part.unlink(missing_ok=True)

    def _packed(self, pieces: Sequence[tuple[str, Tensor]]) -> list[dict[str, Tensor]]:
        shards: list[dict[str, Tensor]] = [{}]
        filled = 0
        for name, piece in pieces:
            size = piece.numel() * piece.element_size()
            if shards[-1] and filled + size > self.shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = piece
            filled += size
        return shards


def _digest(arrays: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        digest.update(f"{name}:{array.dtype}:{tuple(array.shape)}:".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data if array.numel() else b"")
    return digest.hexdigest()


@dataclass(frozen=True)
class Pictures:
    """The pictures of a split, prepared.

    ``values`` (n, size, size) uint8, 0 is -1 and 255 is 1 of the transform; ``index`` the rows of each (study id,
    view); ``paths`` the file of each row; ``sha256`` of the files' contents and the transform.
    """

    values: Tensor
    index: Mapping[tuple[str, str], list[int]]
    paths: tuple[Path, ...]
    sha256: str

    def floats(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Rows as (n, 1, size, size) float32 in [-1, 1]."""
        picked = self.values[torch.as_tensor(rows, dtype=torch.long)]
        return picked.unsqueeze(1).float() / 127.5 - 1


def prepare_pictures(
    manifest: Manifest,
    split: str | None,
    config: TransformConfig,
    cache_folder: str | os.PathLike[str],
    *,
    progress: bool = True,
) -> Pictures:
    """Every picture with a known view of a split, preprocessed once and cached by the files' contents and the config.

    Raises:
        ImageError: a picture cannot be read; names the file.
        DataError: a file is missing, or the split has no pictures.
    """
    paths: list[Path] = []
    index: dict[tuple[str, str], list[int]] = {}
    for study in manifest.studies(split):
        for view, files in study.pictures.items():
            index[study.id, view] = list(range(len(paths), len(paths) + len(files)))
            paths.extend(files)
    if not paths:
        raise DataError(f"no pictures in split {split!r}; check the manifest with `xgem data check`")
    key = {
        "content": content_hash(paths),
        "transform": config.model_dump(mode="json"),
        "version": PREPARE_VERSION,
    }

    def make() -> dict[str, NDArray[Any]]:
        return {"values": _prepare(paths, config, f"preparing {split or 'all'} pictures", progress)}

    values = ArrayCache(cache_folder).get_or_make("pictures", key, make)["values"]
    sha = hashlib.sha256(canonical(key).encode()).hexdigest()
    return Pictures(values, index, tuple(paths), sha)


def _prepare(paths: Sequence[Path], config: TransformConfig, title: str, progress: bool) -> NDArray[np.uint8]:
    from rich.console import Console
    from rich.progress import track

    values = np.empty((len(paths), config.size, config.size), dtype=np.uint8)

    def one(row: int) -> None:
        try:
            square = read_square(paths[row], config)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{paths[row]}: cannot be prepared ({error})") from error
        values[row] = np.rint((square + 1) * 127.5).astype(np.uint8)

    with ThreadPoolExecutor(_threads()) as pool:
        rows = pool.map(one, range(len(paths)))
        shown = track(
            rows,
            description=title,
            total=len(paths),
            disable=not progress,
            console=Console(stderr=True),
            transient=True,
        )
        try:
            for _ in shown:
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return values


def _threads() -> int:
    return max(1, min(8, os.cpu_count() or 1))
