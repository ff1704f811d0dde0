"""What a request's inputs become before sampling: prompts, encoded prompts, latents of annotations and of images.

Every input is encoded by itself, in a batch of one: what else is in a request cannot change it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from xgem.checkpoints import store
from xgem.configs.components import ControlNetConfig, DiTGeneratorConfig
from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.annotations import Annotation, render
from xgem.data.captions import preface
from xgem.data.headers import uneven_grid
from xgem.data.study import ANNOTATED_VIEW
from xgem.generators.sampling import Control
from xgem.modalities import get_modality
from xgem.pipeline.editing import Edit, edits_of
from xgem.types import CheckpointError, Context, Encoded, Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgem.configs.preset import Preset
    from xgem.pipeline.model import LoadedModel

logger = logging.getLogger(__name__)


class Conditions(NamedTuple):
    """An item's inputs as the generators take them.

    ``encoded``: prompts by modality, each of batch 1. ``annotations``: by output, the latents (1, c, h, w) of the
    annotation image that its ControlNet follows. ``images``: by output, the latents (1, ...) to start from; ``edits``:
    of those that change in a part only, which.
    """

    encoded: Mapping[str, Encoded]
    annotations: Mapping[str, Tensor]
    images: Mapping[str, Tensor]
    edits: Mapping[str, Edit]


def read_prompts(
    preset: Preset,
    item: Mapping[str, Any],
    reading: ReadOptions = AS_STATED,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Prompt]:
    """The item's inputs, read, in the preset's order: the order in which a caller lists them changes nothing.

    Annotations given with an image to ``start`` from, by output, are put through the same resampling as it.
    """
    file = (start or {}).get(ANNOTATED_VIEW)
    grid = uneven_grid(Path(file)) if isinstance(file, str | os.PathLike) else None
    names = [name for name in preset.modalities if name in item]
    preset = preset.model_copy(update={"transform": reading.on(preset.transform)})
    known = {name: get_modality(name) for name in names}
    return {
        name: one.read(one.placed(item[name], grid), preset, allow_any=bool(reading.allow_any))
        for name, one in known.items()
    }


def with_notes(model: LoadedModel, prompts: Mapping[str, Prompt], outputs: Sequence[str]) -> dict[str, Prompt]:
    """Prompts with their encoder's notes (a report that is truncated, or in another language); each is logged."""
    preset = model.preset
    noted: dict[str, Prompt] = dict(prompts)
    generators = [preset.components[preset.generator(name)] for name in outputs]
    limits = [part.caption_tokens for part in generators if isinstance(part, DiTGeneratorConfig)]
    for name, value in _encoder_inputs(preset, prompts).items():
        encoder = model.component(preset.encoder(name))
        notes = encoder.notes(value, min(limits, default=None))
        if name in prompts:
            notes = (*encoder.unfamiliar(prompts[name].value), *notes)
        # Without a text of its own, the encoder reads only what other modalities write in front of it.
        joining = [other for other in prompts if preset.modalities[other].joins == name]
        target = name if name in prompts else joining[0]
        noted[target] = replace(prompts[target], notes=(*prompts[target].notes, *notes))
    for name, prompt in noted.items():
        for note in prompt.notes:
            logger.warning("%s: %s", name, note)
    return noted


def _encoder_inputs(preset: Preset, prompts: Mapping[str, Prompt]) -> dict[str, Any]:
    """What encoders read, by modality: the prompts that have one, with what joins them written in front."""
    values = {name: prompt.value for name, prompt in prompts.items() if preset.modalities[name].encoder}
    prefixes: dict[str, dict[str, Any]] = {}
    for name, prompt in prompts.items():
        target = preset.modalities[name].joins
        if target is not None:
            prefixes.setdefault(target, {}).update(get_modality(name).preface(prompt.value))
    for target, fields in prefixes.items():
        values[target] = f"{preface(**fields)} {values.get(target, '')}".strip()
    return values


def encode_conditions(
    model: LoadedModel,
    prompts: Mapping[str, Prompt],
    images: Mapping[str, Prompt],
    areas: Mapping[str, Prompt],
    outputs: Sequence[str],
) -> Conditions:
    """Encode an item's prompts, the annotations among them for each output, and the images to start from."""
    return Conditions(
        encode_prompts(model, prompts),
        annotation_latents(model, prompts, outputs),
        start_latents(model, images),
        edits_of(images, areas),
    )


def encode_prompts(model: LoadedModel, prompts: Mapping[str, Prompt]) -> dict[str, Encoded]:
    """Encoded prompts by modality, each of batch 1."""
    encoded: dict[str, Encoded] = {}
    for name, value in _encoder_inputs(model.preset, prompts).items():
        batch = _on_device(model, get_modality(name).collate([value]))
        encoded[name] = model.component(model.preset.encoder(name)).encode(batch).to(model.device)
    return encoded


def annotation_latents(model: LoadedModel, prompts: Mapping[str, Prompt], outputs: Sequence[str]) -> dict[str, Tensor]:
    """By output, the latents (1, c, h, w) of all annotations drawn as one image; empty without annotations."""
    annotations = list(annotations_of(prompts).values())
    latents: dict[str, Tensor] = {}
    for name in outputs:
        control = model.preset.modalities[name].control
        if annotations and control is not None:
            settings = cast(ControlNetConfig, model.preset.components[control])
            merged = annotations[0].united(*annotations[1:])
            image = render(  # (h, w)
                merged, model.preset.transform.size, filled=settings.filled_boxes, vocabulary=settings.vocabulary
            )
            codec = model.component(model.preset.codec(name))
            latents[name] = codec.encode(torch.tensor(image)[None, None].to(model.device, model.dtype))
    return latents


def start_latents(model: LoadedModel, images: Mapping[str, Prompt]) -> dict[str, Tensor]:
    """By output, the latents (1, ...) of the image (or report) that it starts from."""
    latents: dict[str, Tensor] = {}
    for name, prompt in images.items():
        codec = model.component(model.preset.codec(name))
        latents[name] = codec.encode(_on_device(model, get_modality(name).collate([prompt.value])))
    return latents


def fuse(model: LoadedModel, output: str, encoded: Mapping[str, Encoded]) -> Context:
    """The context (1, n, d) that the generator of ``output`` attends to; without prompts, its null context."""
    generator = model.component(model.preset.generator(output))
    return generator.fuse(encoded) if encoded else generator.null(1)


def control_of(
    model: LoadedModel, output: str, annotations: Sequence[Tensor | None], scale: float, end: float
) -> Control | None:
    """The ControlNet's part in a batch: annotation latents (1, c, h, w) by row, None for rows without annotation.

    Raises:
        CheckpointError: the checkpoint has no trained ControlNet.
    """
    first = next((latents for latents in annotations if latents is not None), None)
    if first is None:
        return None
    name = str(model.preset.modalities[output].control)
    if name not in store.read_index(model.root).components:
        raise CheckpointError(
            f"{model.name}: has no trained ControlNet for annotations: leave them out, or train it with "
            "`xgem train control`"
        )
    rows = [torch.zeros_like(first) if latents is None else latents for latents in annotations]
    scales = torch.tensor([0.0 if latents is None else scale for latents in annotations])  # (b,)
    return Control(model.component(name), torch.cat(rows), scales.to(model.device, model.dtype), end)


def annotations_of(prompts: Mapping[str, Prompt]) -> dict[str, Annotation]:
    """The annotations among the prompts, by modality."""
    drawn = {name: get_modality(name).annotation(prompt.value) for name, prompt in prompts.items()}
    return {name: annotation for name, annotation in drawn.items() if annotation is not None}


def files_of(given: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> dict[str, Path]:
    """The files among the inputs, by modality: those whose origin is the name of what was given."""
    paths = {name: Path(value) for name, value in given.items() if isinstance(value, str | os.PathLike)}
    return {name: path for name, path in paths.items() if prompts[name].origin == path.name}


@torch.inference_mode()
def embed(model: LoadedModel, modality: str, values: NDArray[np.uint8] | Sequence[str]) -> NDArray[np.float64]:
    """Pooled vectors (n, d) of images (n, size, size) uint8, or of n reports, by the modality's prompt encoder."""
    encoder = model.component(model.preset.encoder(modality))
    parts = [
        encoder.encode(_pixels(model, part) if isinstance(part, np.ndarray) else list(part)).pooled
        for part in _batches(values, 64)
    ]
    return torch.cat(parts).float().cpu().numpy().astype(np.float64)


@torch.inference_mode()
def reconstruct_reports(model: LoadedModel, modality: str, reports: Sequence[str]) -> list[str]:
    """Reports, encoded and decoded by the modality's codec."""
    codec = model.component(model.preset.codec(modality))
    return [text for part in _batches(reports, 64) for text in codec.decode(codec.encode(list(part)))]


@torch.inference_mode()
def reconstruct(model: LoadedModel, modality: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (n, size, size) uint8, encoded and decoded by the modality's codec."""
    codec = model.component(model.preset.codec(modality))
    parts = [codec.decode(codec.encode(_pixels(model, part))) for part in _batches(images, 32)]
    values = torch.cat(parts).float().clamp(-1, 1).squeeze(1)  # (n, h, w)
    return ((values + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def _batches(values: Any, size: int) -> Iterable[Any]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _pixels(model: LoadedModel, images: NDArray[np.uint8]) -> Tensor:
    """uint8 (b, h, w) -> (b, 1, h, w) in [-1, 1]."""
    values = torch.from_numpy(np.array(images)).unsqueeze(1).float() / 127.5 - 1
    return values.to(model.device, model.dtype)


def _on_device(model: LoadedModel, batch: Any) -> Any:
    return batch.to(model.device, model.dtype) if isinstance(batch, Tensor) else batch
