"""What the steps of a request need of a loaded checkpoint, and the samples that they pass on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

    from xgem.configs.preset import Preset


class LoadedModel(Protocol):
    """A checkpoint's preset and components on a device; :class:`xgem.pipeline.pipeline.XgemPipeline` is one."""

    root: Path
    preset: Preset
    name: str

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def component(self, name: str) -> Any: ...


class SamplingModel(LoadedModel, Protocol):
    """One that can sample: its hash, whether it is compiled, and a lock that lets one request sample at a time."""

    hash: str
    compiled: bool

    @property
    def sampling_lock(self) -> AbstractContextManager[Any]: ...


class Row(NamedTuple):
    """One sample to draw: the item of the request, the sample's index within the item, and its seed."""

    item: int
    number: int
    seed: int


Sample = dict[str, tuple[Any, dict[str, Any]]]
"""One sample by output: its value, and what its metadata say of it alone."""
