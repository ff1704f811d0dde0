"""The public surface: ``xgem.generate`` for one call, ``xgem.load`` for a pipeline to keep."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import torch

from xgem.checkpoint import checkpoint_hash
from xgem.devices import dtype_name, resolve_device, resolve_dtype
from xgem.locate import locate
from xgem.pipeline import XgemPipeline
from xgem.provenance import Generation
from xgem.request import CallOptions, Inputs

Model = XgemPipeline | str | Path | None

_kept: dict[str, XgemPipeline] = {}
_lock = threading.Lock()


def load(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> XgemPipeline:
    """A pipeline from an embedded checkpoint (by name; None: the default), a folder, or a hub id with a revision.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not valid.
        DeviceError: the device or dtype is not available.
    """
    return XgemPipeline.from_pretrained(model, revision=revision, device=device, dtype=dtype)


@overload
def generate(
    inputs: Inputs | None, outputs: str | Sequence[str], *, model: Model = None, **options: Unpack[CallOptions]
) -> Generation: ...
@overload
def generate(
    inputs: Sequence[Inputs], outputs: str | Sequence[str], *, model: Model = None, **options: Unpack[CallOptions]
) -> list[Generation]: ...


def generate(
    inputs: Inputs | Sequence[Inputs] | None,
    outputs: str | Sequence[str],
    *,
    model: Model = None,
    **options: Unpack[CallOptions],
) -> Generation | list[Generation]:
    """Generate ``outputs`` from ``inputs`` with ``model``; the last model that was used stays in memory.

    >>> generation = generate({"frontal": "cxr.dcm"}, ["lateral", "report"], seed=7)
    >>> generation.save("out")

    Args:
        inputs: from modality to value (a file, PIL image, array or tensor; text for reports), or a list of such
            mappings, which gives a list of generations.
        outputs: one or more modalities, none of them an input.
        model: a pipeline, or what ``load`` takes.
        options: ``seed``, ``generator``, ``num_samples``, ``num_inference_steps``, ``guidance_scale``, ``sampler``,
            ``greedy``, ``device``, ``dtype``, ``progress``, ``callback_on_step_end``, ``output_type``,
            ``batch_size``, ``allow_any``: see ``XgemPipeline.__call__``.

    Raises:
        InputError: an argument or input that cannot be used. CheckpointError, DeviceError: as ``load``.
    """
    pipeline: Any = model if isinstance(model, XgemPipeline) else _cached(model, options)
    return pipeline(inputs, outputs, **options)


def _cached(model: str | Path | None, options: CallOptions) -> XgemPipeline:
    location = locate(model)
    device = resolve_device(options.get("device"))
    dtype = resolve_dtype(options.get("dtype"), device)
    # The hash is part of the key: a checkpoint that was trained further meanwhile is read anew.
    key = f"{location.root.resolve()} {checkpoint_hash(location.root)} {device} {dtype_name(dtype)}"
    with _lock:
        if key not in _kept:
            _kept.clear()
            _kept[key] = XgemPipeline(location, device=device, dtype=dtype)
        return _kept[key]
