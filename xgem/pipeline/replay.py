"""Make a generated file again from the metadata it carries, identically on the same machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xgem._version import __version__
from xgem.configs.reading import ReadOptions
from xgem.data.headers import is_dicom
from xgem.data.transforms import SquashedFile
from xgem.dicom.stored import sample_in
from xgem.modalities import get_modality
from xgem.pipeline.conditioning import annotations_of, read_prompts
from xgem.pipeline.editing import read_areas
from xgem.pipeline.generation import REPORT_ENDINGS, Generation, dicom_name, read_metadata
from xgem.pipeline.metadata import upgraded
from xgem.pipeline.options import DEFAULT_BATCH_SIZE, CallOptions, renamed
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import CheckpointError, InputError, Prompt

logger = logging.getLogger(__name__)

_MAX_ROWS = 64 * DEFAULT_BATCH_SIZE


class _Batch(BaseModel):
    size: int = Field(ge=1, le=_MAX_ROWS)
    position: int = Field(ge=0)


class _Together(BaseModel):
    guidance_scale: float
    context_tokens: int = Field(ge=1, le=65536)


class _Checkpoint(BaseModel):
    name: str
    hash: str


class _Input(BaseModel):
    sha256: str
    origin: str
    text: str | None = None
    sha256_on_grid: str | None = None
    pixel_aspect: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    def as_read(self, value: Any) -> Any:
        """A file with the aspect of its pixels that was told when it was read; anything else as it is."""
        if self.pixel_aspect is None or not isinstance(value, str | os.PathLike):
            return value
        return SquashedFile(os.fspath(value), self.pixel_aspect)


class _Record(BaseModel):
    """What replaying needs of a sample's metadata beside its options, which :class:`CallOptions` checks.

    A file may come from anywhere, so all of it is checked. Options that the preset decides unless given must be there.
    """

    model_config = ConfigDict(extra="ignore")

    output: str
    sample: int = Field(ge=0)
    seed: int = Field(ge=0)
    checkpoint: _Checkpoint
    inputs: dict[str, _Input]
    image: dict[str, _Input]
    mask_image: dict[str, _Input] = Field(default_factory=dict)
    sampler: str
    num_inference_steps: int
    together: dict[str, _Together]
    batch: _Batch
    xgem: str
    torch: str
    device: str
    dtype: str
    threads: int = Field(ge=1, le=4096)
    compiled: bool = False


@dataclass(frozen=True)
class Replayed:
    """A sample made again: its ``generation``, and whether it is ``identical`` to the file it was replayed from."""

    generation: Generation
    identical: bool


def replay(
    file: str | Path,
    *,
    inputs: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    mask_image: Mapping[str, Any] | None = None,
    model: XgemPipeline | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool = True,
    **old_names: Any,
) -> Replayed:
    """Make the sample in ``file`` (a PNG, report or DICOM file that xgem wrote) again.

    Args:
        file: what to replay.
        inputs: the inputs it was made from. Of those left out, an annotation is read from the file written with
            ``file``, and others are looked up by their recorded name, in the working folder and in that of ``file``.
            Reports that were inputs are recorded as text and need not be given.
        image: likewise, by output, the images that outputs started from.
        mask_image: likewise, by output, where these could change.
        model: the checkpoint; the recorded one (embedded or hub) when left out.
        device, dtype: the recorded ones when left out; others round differently.
        progress: show progress bars.
        old_names: ``keep``, the name of ``image`` in 0.1.0.

    Raises:
        InputError: no xgem metadata, an input that is not found or is another one than recorded.
        CheckpointError: the checkpoint is not found or is another one than recorded.
        DeviceError: the device is not available here.
    """
    if old_names.keys() - {"keep"}:
        raise TypeError(f"replay() got an unexpected keyword argument {sorted(old_names.keys() - {'keep'})[0]!r}")
    if old_names:
        image = renamed({"image": image, **old_names} if image is not None else old_names)["image"]
    path = Path(file)
    metadata, record = _check(path, read_metadata(path))
    stored = _stored(path)
    pipeline = model if isinstance(model, XgemPipeline) else _open(path, record, model, device, dtype)
    if pipeline.hash != record.checkpoint.hash:
        raise CheckpointError(
            f"{path}: was generated with checkpoint {record.checkpoint.name!r} (hash {record.checkpoint.hash}), "
            f"{pipeline.name!r} has hash {pipeline.hash}; give the right one as model (--model)"
        )
    for what, then, now in (("xgem", record.xgem, __version__), ("torch", record.torch, torch.__version__)):
        if then != now:
            logger.warning("generated with %s %s, replayed with %s: pixels may differ", what, then, now)
    given = _find(path, pipeline, record.inputs, inputs or {}, "input", "--")
    images = _find(path, pipeline, record.image, image or {}, "start image", "--image ")
    masks = _find(path, pipeline, record.mask_image, mask_image or {}, "mask image", "--mask-image ")
    reading = ReadOptions(allow_any=True).over(CallOptions.recorded(metadata).reading)
    prompts = read_prompts(pipeline.preset, given, reading, images)
    _check_inputs(record.inputs, given, prompts, "input")
    _check_inputs(record.image, images, read_prompts(pipeline.preset, images, reading), "start image")
    _check_inputs(record.mask_image, masks, read_areas(pipeline.preset, masks, images), "mask image")
    threads = torch.get_num_threads()
    try:
        # How many threads share a sum decides the order of its additions.
        torch.set_num_threads(record.threads)
        sample = pipeline.regenerate(given, metadata, image=images, mask_image=masks, progress=progress)
    finally:
        torch.set_num_threads(threads)
    now = {**metadata, "xgem": __version__, "torch": torch.__version__, "device": str(pipeline.device)}
    names = ("output", "sample", "guidance_scale", "together", "batch", "privacy_gate", "candidates")
    of_sample = {key: metadata[key] for key in names if key in metadata}
    common = {key: value for key, value in now.items() if key == "guidance_scale" or key not in of_sample}
    generation = Generation({record.output: [sample]}, common, {record.output: [of_sample]}, annotations_of(prompts))
    return Replayed(generation, _same(sample, stored))


def _stored(path: Path) -> Image.Image | str:
    """The image or text that is replayed, to compare with."""
    if is_dicom(path):
        return sample_in(path)
    if path.suffix.lower() not in REPORT_ENDINGS:
        with Image.open(path) as image:
            image.load()
            return image
    text = path.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{path}: the report itself, {text.name}, cannot be read; put it beside its .json file, to be compared with"
        ) from None


def _same(sample: Any, stored: Image.Image | str) -> bool:
    """Whether a sample equals the one in the file: the same text, or the same pixels byte for byte."""
    if isinstance(sample, str) or isinstance(stored, str):
        return isinstance(sample, str) and isinstance(stored, str) and stored.strip() == sample.strip()
    return stored.size == sample.size and stored.mode == sample.mode and stored.tobytes() == sample.tobytes()


def _check(path: Path, found: Mapping[str, Any]) -> tuple[dict[str, Any], _Record]:
    """Metadata in today's format, and what of them was checked."""
    try:
        metadata = upgraded(found)
        record = _Record.model_validate(metadata)
        CallOptions.recorded(metadata)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: its metadata cannot be replayed: {where}: {first['msg']}") from error
    except InputError as error:
        raise InputError(f"{path}: its metadata cannot be replayed: {error}") from error
    if record.batch.position >= record.batch.size:
        raise InputError(f"{path}: its metadata cannot be replayed: batch position {record.batch.position} is too high")
    if record.output not in record.together:
        raise InputError(
            f"{path}: its metadata cannot be replayed: output {record.output!r} is not among its own group"
        )
    return metadata, record


def _open(
    path: Path,
    record: _Record,
    model: str | Path | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> XgemPipeline:
    where: dict[str, Any] = {
        "device": record.device if device is None else device,
        "dtype": record.dtype if dtype is None else dtype,
        "compile": record.compiled,
    }
    if model is not None:
        return XgemPipeline.from_pretrained(model, **where)
    name, _, revision = record.checkpoint.name.partition("@")
    try:
        return XgemPipeline.from_pretrained(name, revision=revision or None, **where)
    except CheckpointError as error:
        reason = (
            f"was generated with checkpoint {record.checkpoint.name!r}, which is not found; give it as model (--model)"
        )
        raise CheckpointError(f"{path}: {reason}") from error


def _find(
    path: Path,
    pipeline: XgemPipeline,
    recorded: Mapping[str, _Input],
    given: Mapping[str, Any],
    what: str,
    option: str,
) -> dict[str, Any]:
    """Each recorded input (or start image): as given, as recorded text, as written beside, or by its recorded name."""
    unknown = [name for name in given if name not in recorded]
    if unknown:
        sources = ", ".join(recorded) or "nothing"
        raise InputError(f"{path}: was generated from {sources}, not from {unknown[0]!r}; leave that out")
    found: dict[str, Any] = {}
    for name, was in recorded.items():
        if name in given:
            found[name] = was.as_read(given[name])
        elif was.text is not None:
            found[name] = was.text
        elif (file := _annotation_file(path, pipeline, name, was)) is not None:
            found[name] = file
        else:
            # Only the plain name counts: a file from elsewhere must not decide which paths are opened here.
            places = [folder / Path(was.origin).name for folder in (Path(), path.parent)]
            there = [place for place in places if place.is_file()]
            if not there:
                raise InputError(
                    f"{path}: its {what} {name!r} was {was.origin!r}, which is not found; give it ({option}{name})"
                )
            found[name] = was.as_read(there[0])
    return found


def _annotation_file(path: Path, pipeline: XgemPipeline, name: str, was: _Input) -> Path | None:
    """The file that was written with the sample for the annotation ``name``; None where it says less than that did."""
    modality = get_modality(name)
    if was.sha256_on_grid is None or not modality.suffix:
        return None
    names = (f"{path.stem}{modality.suffix}", dicom_name(path.stem, modality.suffix))
    file = path.parent / names[is_dicom(path)]
    if not file.is_file():
        return None
    try:
        prompt = modality.read(file, pipeline.preset)
    except InputError:
        return None
    return file if prompt.sha256 == was.sha256_on_grid else None


def _check_inputs(
    recorded: Mapping[str, _Input], found: Mapping[str, Any], prompts: Mapping[str, Prompt], what: str
) -> None:
    """InputError where what was found is not what was recorded."""
    for name, prompt in prompts.items():
        was = recorded[name]
        as_text = isinstance(found[name], str) and found[name] == was.text
        if not as_text and prompt.sha256 not in (was.sha256, was.sha256_on_grid):
            raise InputError(
                f"{what} {name!r} is not the recorded one: its SHA-256 starts with {prompt.sha256[:12]}, "
                f"recorded is {was.sha256[:12]}; give the original file"
            )
