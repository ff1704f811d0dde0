"""What travels between the rooms of xgem, and the errors that users see.

This module imports no torch, so that ``import xgem`` stays light.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class XgemError(Exception):
    """Base of every error that xgem raises on purpose. Its one line says what came, what was expected, what to do."""


class InputError(XgemError, ValueError):
    """A value given by the user cannot be used: an argument, a report, a request."""


class OptionError(InputError, TypeError):
    """A keyword argument that is no option; the message lists the known ones, and suggests the nearest."""


class ImageError(InputError):
    """An image is missing, unreadable, or not a radiograph that xgem can use."""


class ShapeError(InputError):
    """A tensor or array has another shape than the one expected."""


class ManifestError(InputError):
    """A manifest breaks its schema, names missing files, or leaks subjects between splits."""


class ConfigError(InputError):
    """A preset or configuration file is not valid."""


class CheckpointError(XgemError):
    """A checkpoint is missing, incomplete, altered, or of another format."""


class DeviceError(XgemError):
    """The requested device or dtype is not available here."""


class OutputError(XgemError):
    """An output place cannot be written, or holds results already."""


class DataError(XgemError):
    """A data set cannot be prepared or used as it is."""


class SamplingError(XgemError):
    """What was sampled or decoded is not finite (NaN or infinite): nothing is returned or saved."""


class PrivacyError(XgemError):
    """Every draw of a sample came too close to a training image."""


class PacsError(XgemError):
    """A PACS cannot be reached, refuses, or has stored a part of what was sent; the message says which."""


class EndpointError(XgemError):
    """A chat endpoint cannot be reached, refuses, or answered with something that cannot be used."""


class StoppedError(XgemError):
    """A signal has stopped a training, which a checkpoint lets go on."""


@dataclass(frozen=True)
class Prompt:
    """One input made ready for its encoder.

    ``value`` is what the modality's encoder takes: a (1, h, w) float tensor in [-1, 1] for images, text
    for reports; an ``Annotation`` for masks, boxes and severity, a mapping for demographics. ``sha256``
    identifies the input's content in the output's metadata; ``origin`` says where it came from (a file's
    name, ``"array"``, ``"text"``); ``notes`` are warnings worth keeping (truncation, ...). ``text`` is the
    input as text, where reading that gives it again: it goes into the metadata. ``pixel_aspect`` is that of an image
    which was given with it (:class:`xgem.data.transforms.SquashedFile`). ``pixel_spacing``: row and column spacing of
    ``value`` in mm, where the file of an image states one.
    """

    value: Any
    sha256: str
    origin: str
    notes: tuple[str, ...] = ()
    text: str | None = None
    pixel_aspect: float | None = None
    pixel_spacing: tuple[float, float] | None = None


@dataclass(frozen=True)
class Encoded:
    """A prompt encoder's answer for a batch.

    ``pooled`` (b, d), L2-normalised, in the shared space; ``tokens`` (b, n, c), the encoder's last token
    sequence; ``mask`` (b, n) bool, True where a token counts.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Encoded:
        """The same on another device."""
        return Encoded(self.pooled.to(device), self.tokens.to(device), self.mask.to(device))


@dataclass(frozen=True)
class Context:
    """What a generator attends to, made by ``fuse`` from any number of ``Encoded`` prompts.

    ``tokens`` (b, n, c), ``mask`` (b, n) bool, ``pooled`` (b, d): the prompts' pooled vectors, their mean (XGeM,
    Eq. 2) or their sum by the mode of ``ContextFusion``; zeros for the null context.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class NotComputed(Exception):
    """Weights, a package or enough data are missing; the message is the reason that stands in place of the number."""
