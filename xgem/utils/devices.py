"""Devices and floating-point formats by name, checked before they are used."""

from __future__ import annotations

import torch

from xgem.types import DeviceError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def available_devices() -> list[str]:
    """Names of the available devices, the fastest first, ``"cpu"`` last."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The named device; for None the first CUDA device if there is one, else the CPU.

    Raises:
        DeviceError: not a device, or not one that is available.
    """
    if device is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    available = available_devices()
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device {device!r} is not known, expected one of: {', '.join(available)}") from error
    if wanted.type == "cuda" and wanted.index is None:
        wanted = torch.device("cuda", 0)
    name = "cpu" if wanted.type == "cpu" else "mps" if wanted.type == "mps" else str(wanted)
    if name not in available:
        raise DeviceError(f"device {str(device)!r} is not available here, expected one of: {', '.join(available)}")
    return wanted


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The named format, ``"float32"``, ``"bfloat16"`` or ``"float16"``; float32 for None.

    Raises:
        DeviceError: another format, or one that ``device`` does not support.
    """
    if dtype is None:
        return torch.float32
    wanted = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if wanted is None or wanted not in _DTYPES.values():
        raise DeviceError(f"dtype {str(dtype)!r} is not known, expected one of: {', '.join(_DTYPES)}")
    if wanted is torch.float16 and device.type == "cpu":
        raise DeviceError("dtype 'float16' is not available on the cpu, use 'bfloat16' or 'float32'")
    if wanted is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"dtype 'bfloat16' is not available on {device}, use 'float16' or 'float32'")
    return wanted


def moved(value: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """``value`` on ``device``; to a GPU through pinned memory, so that the CPU does not wait for what the GPU does."""
    if device is None or torch.device(device).type != "cuda" or value.device.type != "cpu":
        return value if device is None else value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
