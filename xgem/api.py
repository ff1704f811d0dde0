"""The public API: ``xgem.generate`` for one call, ``xgem.load`` for a pipeline to reuse."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import torch

from xgem.checkpoints.locate import CONTROL_MODEL, DEFAULT_MODEL
from xgem.modalities import MODALITIES
from xgem.pipeline.generation import Generation
from xgem.pipeline.options import CallKeywords, Inputs, documented, renamed
from xgem.pipeline.pipeline import XgemPipeline
from xgem.utils.devices import dtype_name, resolve_device, resolve_dtype

Model = XgemPipeline | str | Path | None

_kept: dict[str, XgemPipeline] = {}
_lock = threading.Lock()


def load(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
) -> XgemPipeline:
    """A pipeline from an embedded checkpoint (by name; None: the default), a folder, or a hub id with a revision.

    ``diffusers:ID-OR-FOLDER`` is a text-to-image pipeline of diffusers (``docs/guides/peers.md``), with
    ``diffusers:ID-OR-FOLDER+ADAPTER`` one with a LoRA. The folder of ``xgem train lora`` brings its base with it.

    Options and errors are those of ``XgemPipeline.from_pretrained``.
    """
    return XgemPipeline.from_pretrained(model, revision=revision, device=device, dtype=dtype, compile=compile)


@overload
def generate(
    inputs: Inputs | None, outputs: str | Sequence[str], *, model: Model = None, **options: Unpack[CallKeywords]
) -> Generation: ...
@overload
def generate(
    inputs: Sequence[Inputs], outputs: str | Sequence[str], *, model: Model = None, **options: Unpack[CallKeywords]
) -> list[Generation]: ...


@documented
def generate(
    inputs: Inputs | Sequence[Inputs] | None,
    outputs: str | Sequence[str],
    *,
    model: Model = None,
    **options: Unpack[CallKeywords],
) -> Generation | list[Generation]:
    """Generate ``outputs`` from ``inputs`` with ``model``; the last model used stays in memory.

    Without a ``model`` the inputs decide: annotations (``mask``, ``boxes``, ``severity``) and ``demographics`` are for
    ``chexgen-small``, everything else for the default checkpoint.

    >>> generation = generate({"frontal": "cxr.dcm"}, ["lateral", "report"], seed=7)
    >>> generation.save("out")

    Args:
        inputs: from modality to value (a file, PIL image, array or tensor; text for reports), or a list of such
            mappings, which gives a list of generations.
        outputs: one or more modalities, none of them an input.
        model: a pipeline, or what ``load`` takes.
        options: the fields of :class:`xgem.pipeline.options.CallOptions`, as in a call of a pipeline.

    Raises:
        InputError: an argument or input that cannot be used. CheckpointError, DeviceError: as ``load``.
        PrivacyError: the gate refused every try of a sample. SamplingError: a sample is not finite.
    """
    if model is None:
        model = model_for(inputs)
    keywords: Any = renamed(options)
    pipeline: Any = model if isinstance(model, XgemPipeline) else _cached(model, keywords)
    return pipeline(inputs, outputs, **keywords)


def model_for(inputs: Inputs | Sequence[Inputs] | None) -> str:
    """The embedded checkpoint for a request that names none."""
    items: list[Any] = [inputs] if inputs is None or isinstance(inputs, Mapping) else list(inputs)
    steering = [name for name, modality in MODALITIES.items() if not modality.is_output]
    given = [name for name in steering if any(isinstance(item, Mapping) and name in item for item in items)]
    return CONTROL_MODEL if given else DEFAULT_MODEL


def _cached(model: str | Path, options: CallKeywords) -> XgemPipeline:
    device = resolve_device(options.get("device"))
    dtype = resolve_dtype(options.get("dtype"), device)
    opened = load(model, device=device, dtype=dtype)  # without weights
    # The hash is part of the key: a checkpoint that was trained further meanwhile is read anew.
    key = f"{opened.root.resolve()} {opened.hash} {device} {dtype_name(dtype)}"
    with _lock:
        if key not in _kept:
            _kept.clear()
            _kept[key] = opened
        return _kept[key]
