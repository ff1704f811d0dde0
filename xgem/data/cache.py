"""A store of arrays on disk, keyed by everything that they depend on.

A cache entry's name is the SHA-256 of its key (canonical JSON); the key is stored with the data and compared on
reading, and so is a digest of the data. An entry made from other images, another encoder or another config has
another key and so is never found: a stale cache cannot be used. What is damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from xgem.types import DataError, OutputError
from xgem.utils.hashing import _digest, canonical

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


logger = logging.getLogger(__name__)


SHARD_BYTES = 1 << 30


# Raise when the same file and config would give other pixels than before.
PREPARE_VERSION = 1


_JOIN = "#"


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
