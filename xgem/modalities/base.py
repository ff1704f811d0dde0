"""What a modality knows: how its values come in, form batches, and go out. Everything else is in components."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from xgem.configs.schema import Preset
from xgem.types import Prompt

OutputType = Literal["pil", "np", "pt"]


class Modality(ABC):
    """One kind of data that xgem reads and generates."""

    name: str
    suffix: str
    """Ending of the files that ``write`` makes."""
    is_picture: bool
    """Whether a study keeps it among its pictures, under this name, or in its text."""

    @abstractmethod
    def read(self, value: Any, preset: Preset, *, allow_any: bool = False) -> Prompt:
        """A user's value as a prompt, or InputError. ``allow_any`` takes radiographs of other body parts too."""

    @abstractmethod
    def collate(self, values: Sequence[Any]) -> Any:
        """``Prompt.value`` s as the batch that encoders and codecs take."""

    @abstractmethod
    def to_output(self, batch: Any, output_type: OutputType) -> list[Any]:
        """A decoded batch as what users get."""

    @abstractmethod
    def write(self, output: Any, directory: Path, stem: str, metadata: Mapping[str, Any]) -> Path:
        """Write one output with its metadata into ``directory``; returns the file's path."""
