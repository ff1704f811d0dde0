"""Prepared images in files of the cache, of which only the rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xgem.types import DataError
from xgem.utils.hashing import crc


class StoredPixels:
    """Images (n, size, size) uint8, ``part`` of them in each of ``files``; each with a CRC-32 that is compared."""

    dtype = torch.uint8

    def __init__(self, files: Sequence[Path], count: int, size: int, part: int) -> None:
        self.files, self.part, self.shape = tuple(files), part, torch.Size((count, size, size))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Image ``rows`` (size, size), or several (b, size, size).

        Raises:
            IndexError: no such row. DataError: a file was deleted or altered since it was written.
        """
        if isinstance(rows, int):
            return self._read(rows)
        wanted = range(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long).tolist()
        if not wanted:
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        return torch.stack([self._read(row) for row in wanted])

    def _read(self, row: int) -> Tensor:
        part, place = divmod(range(len(self))[row], self.part)
        file = self.files[part]
        try:
            with safe_open(str(file), "pt") as stream:  # closed again: a mapped file counts as memory
                image = stream.get_slice("values")[place : place + 1][0].clone()
                written = int(stream.get_slice("crc")[place : place + 1][0])
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file}: cannot be read ({error}); start again, which makes it") from None
        if crc(image.numpy()) != written:
            raise DataError(f"{file}: image {place} was altered; delete the file and start again, which makes it")
        return image
