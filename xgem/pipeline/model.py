"""What the steps of a request need of a loaded checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
