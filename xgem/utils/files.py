"""Atomic writing of files and folders, locks, and output folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from xgem.types import CheckpointError, OutputError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``target`` at the end of the block, unless the block fails.

    Raises:
        OutputError: the target exists and is not an empty folder, or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target}: exists and is not an empty folder; choose another")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(new_file_mode(0o777))
        if target.exists():
            target.rmdir()
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``file``, which replaces the file at the end of the block, unless that fails.

    Raises:
        OutputError: the file cannot be written.
    """
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise OutputError(f"{file}: cannot be written ({reason}); choose another path") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def check_output_folder(directory: str | Path, *, overwrite: bool = False) -> Path:
    """The folder as a path, if results can be written there; nothing is created.

    Raises:
        OutputError: it is a file or inside a file, cannot be written, or contains files without ``overwrite``.
    """
    path = Path(directory).absolute()
    if path.exists() and not path.is_dir():
        raise OutputError(f"{directory}: is a file, expected a folder; choose another")
    try:
        if path.is_dir() and not overwrite and any(path.iterdir()):
            raise OutputError(f"{directory}: the folder is not empty; choose another or overwrite it (--overwrite)")
    except OSError as error:
        raise OutputError(f"{directory}: cannot be read ({error.strerror})") from error
    nearest = path if path.is_dir() else next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{directory}: cannot be written, {nearest} is not a writable folder; choose another")
    return path


def one_line(error: BaseException) -> str:
    """An error's message on one line; the name of its class if it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ``CheckpointError`` if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return cast(dict[str, Any], values)


def write_json(path: Path, values: Any) -> None:
    """Write JSON that is identical for equal values: sorted keys, two spaces, a final newline."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def sync(folder: Path, files: Iterable[str]) -> None:
    """Flush files to the disk, so that the rename that follows never exposes an empty file after a power loss."""
    for file in files:
        with (folder / file).open("rb") as opened:
            os.fsync(opened.fileno())


@contextlib.contextmanager
def locked(root: Path, *, create: bool = False) -> Iterator[None]:
    """Exclusive access to the index of a folder: several stages may train into one folder at the same time.

    The lock is on the folder itself and ends with the process, so a killed writer leaves no lock behind. With
    ``create``, ``root`` is a file, which is made where it is missing.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks: there the caller ensures a single writer
        yield
        return
    try:
        descriptor = os.open(root, os.O_RDONLY | (os.O_CREAT if create else 0), 0o666)
    except OSError as error:
        raise OutputError(f"{root}: cannot be opened ({error.strerror})") from error
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def new_file_mode(mode: int) -> int:
    """``mode`` without the bits in the user's umask, for files that were created in a private temporary folder."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mode & ~mask
