"""What a pipeline refuses to compile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xgem.configs.components import FCReportGeneratorConfig, ImageGeneratorConfig, ReportGeneratorConfig
from xgem.generators.onnx_denoiser import onnx_runtime
from xgem.types import DeviceError
from xgem.utils.devices import dtype_name

if TYPE_CHECKING:
    from xgem.pipeline.model import SamplingModel

_UNETS = (ImageGeneratorConfig, ReportGeneratorConfig, FCReportGeneratorConfig)


def check_compiled(model: SamplingModel, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a compiled model that cannot be compiled for this device and number format.

    Raises:
        DeviceError: UNets are compiled for the CPU in float32 alone. InputError: a package that this takes is missing.
    """
    if not model.compiled or not any(isinstance(part, _UNETS) for part in model.preset.components.values()):
        return
    if device.type != "cpu" or dtype != torch.float32:
        raise DeviceError(
            f"{model.name}: its UNets are compiled for the CPU in float32, not for {device.type} in "
            f"{dtype_name(dtype)}; leave compile out"
        )
    onnx_runtime()
