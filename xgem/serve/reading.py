"""Reading uploads in a process of its own, with a limit of memory and time: a file may be made to exhaust both."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from xgem.configs.preset import Preset
from xgem.configs.reading import ReadOptions
from xgem.serve.settings import MIB, Settings
from xgem.types import ImageError, InputError

PRELOADED: Final = ["xgem.serve.reading", "xgem.pipeline.conditioning", "xgem.data.dicom", "pydicom", "PIL.Image"]
_AT_ONCE: Final = threading.BoundedSemaphore(2)
"""Uploads are read two at a time."""
_METHOD: Final = "spawn" if sys.platform == "win32" else "forkserver"


def context() -> Any:
    """Where processes come from: a server that has imported what they need, so that they start at once."""
    made: Any = multiprocessing.get_context(_METHOD)
    if _METHOD == "forkserver":
        made.set_forkserver_preload(PRELOADED)
    return made


def check_readable(
    preset: Preset,
    inputs: Mapping[str, Any],
    starts: Mapping[str, Mapping[str, Any]],
    reading: ReadOptions,
    shown: Path,
    settings: Settings,
) -> None:
    """Read inputs and images to start from, as a request will, and write into ``shown`` what the model sees of them.

    ``starts``: the options ``image`` and ``mask_image``, where they are given.
    A picture becomes ``<name>.png`` (8-bit, the preset's size), one to start from ``image-<output>.png``.

    Raises:
        InputError: one cannot be used, or takes more memory or time than allowed.
    """
    with _AT_ONCE:
        answer = _answer(preset, dict(inputs), dict(starts), reading, shown, settings.read_mib, settings.read_seconds)
    if answer is None:
        limits = f"{settings.read_mib} MiB or {settings.read_seconds:g} s"
        raise ImageError(f"the inputs take more than {limits} to read; send smaller files, uncompressed")
    if answer:
        raise InputError(answer)


def _answer(*arguments: Any) -> str | None:
    """What :func:`_read` answers in a process of its own; None where that ended without an answer."""
    made, seconds = context(), arguments[-1]
    receiving, sending = made.Pipe(duplex=False)
    process = made.Process(target=_read, args=(sending, *arguments), daemon=True)
    process.start()
    sending.close()
    try:
        return receiving.recv() if receiving.poll(seconds + 5) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()
        receiving.close()


def _read(
    sending: Connection,
    preset: Preset,
    inputs: dict[str, Any],
    starts: dict[str, Mapping[str, Any]],
    reading: ReadOptions,
    shown: Path,
    read_mib: int,
    seconds: float,
) -> None:
    from xgem.pipeline.conditioning import read_prompts
    from xgem.pipeline.editing import read_areas

    images = starts.get("image", {})
    _limit(read_mib, seconds)
    try:
        prompts = read_prompts(preset, inputs, reading, images)
        start = read_prompts(preset, images, reading)
        read_areas(preset, starts.get("mask_image", {}), images)
        for name, prompt in (*prompts.items(), *((f"image-{output}", prompt) for output, prompt in start.items())):
            _show(prompt.value, shown / f"{name}.png")
        sending.send("")
    except InputError as error:
        # Messages name files; these are called as the fields of the request
        sending.send(str(error).replace(f"{shown}/", ""))
    except (MemoryError, OSError):
        pass  # no answer: too large
    finally:
        sending.close()


def _show(value: Any, file: Path) -> None:
    """A (1, s, s) tensor in [-1, 1] as PNG; nothing of other values."""
    import torch
    from PIL import Image

    from xgem.data.transforms import grey_levels

    if isinstance(value, torch.Tensor):
        Image.fromarray(grey_levels(value[0].numpy())).save(file)


def _limit(read_mib: int, seconds: float) -> None:
    """Allow this process so much more memory than it has, and so much time, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = 0
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            used = next(int(line.split()[1]) for line in lines if line.startswith("VmData:")) * 1024
        memory, cpu = used + read_mib * MIB, int(seconds) + 1
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
