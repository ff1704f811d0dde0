"""A state dict as safetensors files, split into shards above a size limit, with tied weights stored once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgem.types import CheckpointError, ConfigError
from xgem.utils.files import one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor


WEIGHTS_NAME = "model.safetensors"


WEIGHTS_INDEX_NAME = "model.safetensors.index.json"


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def write_weights(
    folder: Path,
    name: str,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "2GB",
) -> None:
    """Write ``state`` into ``folder`` as ``model.safetensors``, or as shards and their index.

    Raises:
        CheckpointError: a weight is not finite, or has values that ``dtype`` cannot hold.
        ConfigError: a size that is not one.
    """
    import torch
    from safetensors.torch import save_file

    # Tensors to store, each once and in the requested dtype
    max_bytes = parse_size(max_shard_size)
    kept: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        # Tied weights (an embedding used as output layer) appear under two names: store them once
        storage = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() and storage in kept:
            tied[key] = kept[storage]
            continue
        kept[storage] = key
        stored = value.detach().to("cpu", dtype if dtype is not None and value.is_floating_point() else value.dtype)
        check_finite(name, key, value)
        if stored.dtype != value.dtype and not bool(torch.isfinite(stored).all()):
            raise CheckpointError(f"{name}: the weight {key!r} does not fit into {dtype}; use a wider dtype")
        tensors[key] = stored.contiguous().clone()

    # Shards of at most ``max_bytes``, in the order of the state dict
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        bytes_ = value.numel() * value.element_size()
        if shards[-1] and size + bytes_ > max_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += bytes_
    # A single key: safetensors writes several in random order, so that equal weights would get different hashes
    metadata = {"tied": json.dumps(tied, sort_keys=True)}
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS_NAME, metadata=metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata=metadata)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_weights(folder: Path, files: Iterable[str]) -> dict[str, tuple[Tensor, str]]:
    """Every tensor in the weight files among ``files``, with the file's name; tied weights appear under all names.

    Raises:
        CheckpointError: no weight files, one that is not readable safetensors, or a weight that is not finite.
    """
    from safetensors import SafetensorError, safe_open

    shards = sorted(file for file in files if _FILE.fullmatch(file))
    if not shards:
        raise CheckpointError(f"{folder}: no weights, expected {WEIGHTS_NAME}")
    weights: dict[str, tuple[Tensor, str]] = {}
    tied: dict[str, str] = {}
    for file in shards:
        try:
            with safe_open(folder / file, framework="pt", device="cpu") as opened:
                tied.update(json.loads((opened.metadata() or {}).get("tied", "{}")))
                for key in opened.keys():  # noqa: SIM118  (not a mapping)
                    weights[key] = (opened.get_tensor(key), file)
                    check_finite(str(folder / file), key, weights[key][0])
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{folder / file}: not a readable safetensors file: {one_line(error)}") from error
    for key, source in tied.items():
        if source not in weights:
            raise CheckpointError(f"{folder}: weight {key!r} is tied to {source!r}, which is missing")
        weights[key] = weights[source]
    return weights


def check_finite(where: str, key: str, value: Tensor) -> None:
    """Raise ``CheckpointError`` that names the weight if any of its values is NaN or infinite."""
    import torch

    if not value.is_floating_point() or bool(torch.isfinite(value).all()):
        return
    bad = int((~torch.isfinite(value)).sum())
    raise CheckpointError(
        f"{where}: {bad} of {value.numel()} values of the weight {key!r} are not finite (NaN or infinite): the weights "
        "are damaged, or training diverged; fetch them again, or go back to an earlier checkpoint"
    )


def parse_size(size: str | int) -> int:
    """The number of bytes of ``"2GB"`` (powers of ten), ``"512MiB"`` (powers of two), or a plain number."""
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ConfigError(f"max_shard_size is {size!r}, expected bytes or text like '2GB'")
    power = "KMGT".find(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
