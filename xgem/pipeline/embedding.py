"""Images and reports as a checkpoint's prompt encoders embed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array
from xgem.modalities import get_modality
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.configs.components import TransformConfig


Images = NDArray[np.uint8]


@dataclass(frozen=True)
class PromptEncoders:
    """Encoders of images and reports into one space.

    ``images`` takes (n, size, size) uint8, ``reports`` n texts; both give (n, d). ``weights`` is a hash.
    """

    name: str
    weights: str
    size: int
    images: Callable[[Images], Array]
    reports: Callable[[Sequence[str]], Array]

    @classmethod
    def of(cls, evaluated: Evaluated, view: str = "frontal") -> PromptEncoders:
        """Those of an opened model (:func:`xgem.pipeline.embedding.open_model`) for one view and its report."""
        if view not in evaluated.images or not evaluated.reports:
            known = ", ".join(evaluated.modalities)
            raise InputError(f"{evaluated.name}: has {known}; expected {view} and a report")
        report = evaluated.reports[0]
        return cls(
            f"prompt encoders of {evaluated.name}",
            evaluated.hash,
            evaluated.transform.size,
            lambda images: evaluated.embed(view, images),
            lambda reports: evaluated.embed(report, list(reports)),
        )


@dataclass(frozen=True)
class Evaluated:
    """A model as the evaluation sees it.

    Attributes:
        name, hash: which checkpoint, for the results.
        pipe: ``pipe(inputs, [output], **options) -> list[Generation]``, as ``XgemPipeline``.
        images, reports: the model's modalities of either sort.
        transform: how images become (size, size).
        sections: what of a study's text makes its report.
        sampling: the model's own defaults for the options that ``RunSettings`` leaves open.
        embed: (modality, images (n, s, s) uint8 or texts) -> (n, d) vectors of the prompt encoders' shared space.
        reconstruct: (modality, images) -> what the modality's codec makes of them, (n, s, s) uint8.
        inputs: every modality that may be given, annotations and demographics included.
        outputs: the modalities that it generates; empty: all of them.
        encodes: whether ``embed`` works. The modalities of a model without prompt encoders include the report that it
            reads, though it writes none.
    """

    name: str
    hash: str
    pipe: Callable[..., Any]
    images: tuple[str, ...]
    reports: tuple[str, ...]
    transform: TransformConfig
    embed: Callable[[str, Any], Array]
    reconstruct: Callable[[str, Images], Images]
    sections: tuple[str, ...] = ("impression",)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    encodes: bool = True

    def makes(self, modality: str) -> bool:
        """Whether it generates a modality."""
        return modality in (self.outputs or self.modalities)

    @property
    def modalities(self) -> tuple[str, ...]:
        return (*self.images, *self.reports)


def open_model(
    model: str | Path | None, *, device: str | None = None, dtype: str | None = None, compile: bool = False
) -> Evaluated:
    """Load a checkpoint (name, folder or hub id) for evaluation.

    Raises:
        CheckpointError, DeviceError, InputError: as :func:`xgem.load`.
    """
    pipe = XgemPipeline.from_pretrained(model, device=device, dtype=dtype, compile=compile)
    preset = pipe.preset
    measured = preset.outputs if pipe.encodes else tuple(preset.modalities)
    return Evaluated(
        name=pipe.name,
        hash=pipe.hash,
        pipe=pipe,
        images=tuple(name for name in measured if get_modality(name).is_image),
        reports=tuple(name for name in measured if not get_modality(name).is_image),
        transform=preset.transform,
        embed=pipe.embed,
        reconstruct=pipe.reconstruct,
        sections=tuple(preset.report_sections),
        sampling=preset.sampling.model_dump(),
        inputs=tuple(preset.modalities),
        outputs=preset.outputs,
        encodes=pipe.encodes,
    )
