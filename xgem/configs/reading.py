"""How radiographs are read whose files say too little, or the wrong thing: one set of options for all that read any.

``xgem.data.read.read_image`` says what each does. Imports no numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final, Self

from pydantic import Field

from xgem.configs.base import Config, Rescale, Voi
from xgem.configs.components import TransformConfig


class ReadOptions(Config):
    """Options of reading; None leaves one to the preset, or to the default of ``read_image``.

    A manifest's row, an item of a set and a request have them; only what is stated is written.
    """

    added: ClassVar[tuple[str, ...]] = ("voi", "rescale", "invert", "allow_any", "pixel_aspect")
    voi: Voi | None = Field(default=None, description="VOI transform of DICOM: none, or the header's window or LUT.")
    rescale: Rescale | None = Field(
        default=None,
        description="Values that become 0 and 1: header (bit depth), auto (lower if 16 bits are hardly used), minmax, "
        "percentile (auto, and the 99.5th percentile is white).",
    )
    invert: bool | None = Field(default=None, description="Turn the radiographs around: negatives that do not say so.")
    allow_any: bool | None = Field(
        default=None, description="Accept DICOM files of another modality, body part or view."
    )

    pixel_aspect: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        repr=False,
        description="Height of a pixel divided by its width, of an image whose file lost it: squashed to a square.",
    )
    """Of one image: rows of a study may differ in it, and no command line has it."""

    def over(self, other: ReadOptions) -> ReadOptions:
        """These options, and for what they leave open those of ``other``."""
        return ReadOptions(**{**other.model_dump(), **self.model_dump()})

    def on(self, config: TransformConfig) -> TransformConfig:
        """A preset's preprocessing with these options; itself where they leave all to it."""
        changes = {
            name: value for name, value in self.model_dump().items() if name not in ("allow_any", "pixel_aspect")
        }
        return config.model_copy(update=changes) if changes else config

    @property
    def of_study(self) -> ReadOptions:
        """What all images of a study have in common: all but ``pixel_aspect``."""
        return self if self.pixel_aspect is None else self.model_copy(update={"pixel_aspect": None})

    @classmethod
    def common(cls, several: Iterable[Self]) -> Self | None:
        """The options that all of ``several`` have; None where they differ."""
        found = list(dict.fromkeys(several))
        return None if len(found) > 1 else found[0] if found else cls()


AS_STATED: Final = ReadOptions()
"""As a file states it and the preset says."""


def read_help(name: str) -> str:
    """What the option ``name`` does, for command lines and ``help()``."""
    return ReadOptions.model_fields[name].description or ""
