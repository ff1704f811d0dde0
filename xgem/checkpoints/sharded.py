"""Tensors in parts on several processes, to disk and back: safetensors, by ``torch.distributed.checkpoint``.

What some processes have written, another number of them, or a single one, reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, distribute_tensor

from xgem.types import CheckpointError
from xgem.utils.files import one_line

_FILES = "shard-*.safetensors"


def is_sharded(folder: Path) -> bool:
    """Whether the tensors in ``folder`` were written in parts."""
    return any(folder.glob(_FILES))


def write(folder: Path, tensors: Mapping[str, Tensor], rank: int, group: Any) -> list[str]:
    """Write a process's parts of ``tensors``, together with the other processes; the names of its files.

    Raises:
        OSError: a process could not write, on a full disk for one.
    """
    try:
        dcp.save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            process_group=group,
        )
    except dcp.CheckpointException as error:
        raise OSError(one_line(next(iter(error.failures.values()))[0])) from error
    return sorted(file.name for file in folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def sizes(folder: Path) -> dict[str, torch.Size]:
    """The shapes of the tensors in ``folder``, by name."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: value.size for name, value in found.items() if hasattr(value, "size")}  # type: ignore[union-attr]


def read(folder: Path, wanted: dict[str, Tensor], group: Any) -> None:
    """Fill ``wanted``, whole tensors or the parts of a process of ``group``, from the files of ``folder``.

    Raises:
        CheckpointError: they do not fit, or the files cannot be read.
    """
    try:
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load(wanted, storage_reader=reader, process_group=group, no_dist=group is None)
    except (dcp.CheckpointException, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({one_line(error)})") from None


def part_of(whole: Tensor, like: Tensor | None) -> Tensor:
    """The part of a whole tensor that belongs where ``like`` is, without the rest of its storage."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
