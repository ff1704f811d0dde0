"""What a modality knows: how its values are read, batched and written. Everything else is in components."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xgem.configs.preset import Preset
from xgem.data.annotations import Annotation
from xgem.data.headers import Grid
from xgem.data.study import Study
from xgem.types import InputError, Prompt

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from xgem.dicom.identity import Identity

OutputType = Literal["pil", "np", "pt"]


class Modality(ABC):
    """One kind of data that xgem reads and, if it is an output, generates."""

    name: str
    suffix: str
    """Ending of the files that ``write`` makes."""
    is_image: bool = False
    """Whether it is a view: a study keeps its files among the images, under this name."""
    is_output: bool = True
    """Whether it can be generated."""

    def of_study(self, study: Study, sections: Sequence[str]) -> Any:
        """What a study of a manifest has of it, as ``read`` takes it; None where it has none.

        ``sections`` of the report make its text.
        """
        del study, sections
        return None

    def placed(self, value: Any, grid: Grid | None) -> Any:
        """A user's value, of an annotation on an image with this grid, as ``read`` takes it."""
        del grid
        return value

    @abstractmethod
    def read(self, value: Any, preset: Preset, *, allow_any: bool = False) -> Prompt:
        """A user's value as a prompt, or InputError. ``allow_any`` accepts radiographs of other body parts too."""

    def preface(self, value: Any) -> dict[str, Any]:
        """What a ``Prompt.value`` writes in front of a text: keyword arguments of ``captions.preface``."""
        del value
        return {}

    def annotation(self, value: Any) -> Annotation | None:
        """The annotation by which a ``Prompt.value`` steers a ControlNet."""
        del value
        return None

    @abstractmethod
    def collate(self, values: Sequence[Any]) -> Any:
        """Several ``Prompt.value`` s as the batch that encoders and codecs take."""

    @abstractmethod
    def to_output(self, batch: Any, output_type: OutputType) -> list[Any]:
        """A decoded batch as users get it."""

    @abstractmethod
    def write(self, output: Any, directory: Path, stem: str, metadata: Mapping[str, Any]) -> Path | None:
        """Write one output with its metadata into ``directory``; returns the file's path, None where there is none."""

    def to_dicom(self, output: Any, identity: Identity, image: Dataset | None = None) -> Dataset | None:
        """One output as a DICOM object, or an annotation as one of the ``image`` it is of; None where there is none.

        Raises:
            InputError: it is not what is generated.
        """
        del identity, image
        raise InputError(f"{self.name}: a {type(output).__name__} has no DICOM object; save as png")


class InputOnly(Modality):
    """A modality that conditions other outputs and has neither encoder nor codec of its own."""

    suffix = ""
    is_output = False

    def collate(self, values: Sequence[Any]) -> Any:
        raise InputError(f"{self.name}: no encoder takes it; it steers what is generated from other inputs")

    def to_output(self, batch: Any, output_type: OutputType) -> list[Any]:
        raise InputError(f"{self.name}: is an input only; ask for another output")

    def write(self, output: Any, directory: Path, stem: str, metadata: Mapping[str, Any]) -> Path | None:
        """Nothing: a generation's metadata hold all of it."""
        del output, directory, stem, metadata
        return None

    def to_dicom(self, output: Any, identity: Identity, image: Dataset | None = None) -> Dataset | None:
        """None, as of :meth:`write`."""
        del output, identity, image
        return None
