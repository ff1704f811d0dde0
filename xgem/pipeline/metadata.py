"""What is written about a sample, so that it can be traced and made again; JSON values only.

``format`` is 3. Metadata without one are of 0.1.0, with ``keep``, ``control_scale`` and ``control_end``; until 2, the
sampler ``ddim`` was what is now ``ddim-leading``. All of them replay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from xgem._version import __version__
from xgem.data.annotations import Annotation
from xgem.pipeline.options import renamed
from xgem.types import InputError, Prompt
from xgem.utils.devices import dtype_name
from xgem.utils.hashing import canonical

if TYPE_CHECKING:
    from xgem.pipeline.model import SamplingModel
    from xgem.pipeline.request import Request

FORMAT: Final = 3


def describe_request(
    model: SamplingModel,
    request: Request,
    item: int,
    prompts: Mapping[str, Prompt],
    images: Mapping[str, Prompt],
    areas: Mapping[str, Prompt],
) -> dict[str, Any]:
    """What all samples of one item have in common."""
    asked = {
        "format": FORMAT,
        "synthetic": True,
        "xgem": __version__,
        "checkpoint": {"name": model.name, "hash": model.hash},
        "preset": model.preset.name,
        "inputs": {name: describe_prompt(prompt) for name, prompt in prompts.items()},
        "outputs": list(request.outputs),
        "image": {name: describe_prompt(prompt) for name, prompt in images.items()},
        **({"mask_image": {name: describe_prompt(prompt) for name, prompt in areas.items()}} if areas else {}),
        "seed": request.seeds[item],
        **request.options.record(),
    }
    return {
        **asked,
        "request": hashlib.sha256(canonical(asked).encode()).hexdigest(),  # what one request made shares it
        "torch": torch.__version__,
        "device": str(model.device),
        "dtype": dtype_name(model.dtype),
        "compiled": model.compiled,
        "threads": torch.get_num_threads(),
    }


def describe_prompt(prompt: Prompt) -> dict[str, Any]:
    """Hash and origin of an input; a report's text too, but never an image."""
    described: dict[str, Any] = {"sha256": prompt.sha256, "origin": prompt.origin, "notes": list(prompt.notes)}
    if prompt.text is not None:
        described["text"] = prompt.text
    if prompt.pixel_aspect is not None:
        described["pixel_aspect"] = prompt.pixel_aspect
    if prompt.pixel_spacing is not None:
        described["pixel_spacing"] = list(prompt.pixel_spacing)  # on the model's grid
    if isinstance(prompt.value, Annotation):
        described["sha256_on_grid"] = prompt.value.sha256  # of what is written beside the images
    if any("truncated" in note for note in prompt.notes):
        described["truncated"] = True
    return described


def upgraded(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of any format in today's.

    Raises:
        InputError: a format of a later version.
    """
    version = metadata.get("format", 1)
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise InputError(f"metadata format is {version!r}, expected 1 to {FORMAT}; replay it with a newer xgem")
    values = renamed(metadata, quietly=True)
    if version < 3 and values.get("sampler") == "ddim":
        values["sampler"] = "ddim-leading"
    return {**values, "format": FORMAT}
