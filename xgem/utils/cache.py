"""Where evaluations keep what they would otherwise compute again: features of images, trained judges and networks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from xgem.types import OutputError

VARIABLE: Final = "XGEM_CACHE"


def cache_folder() -> Path:
    """The folder named by ``XGEM_CACHE``, else ``xgem`` in the user's cache folder; it need not exist."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xgem"


def evaluation_cache() -> Path:
    """The part of evaluations, which all commands share."""
    return cache_folder() / "eval"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def clear() -> int:
    """Remove the cache of evaluations; returns its bytes.

    Raises:
        OutputError: it cannot be removed.
    """
    folder = evaluation_cache()
    size = size_of(folder)
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be removed ({error.strerror or error})") from error
    return size
