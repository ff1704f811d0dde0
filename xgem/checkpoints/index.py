"""The index of a checkpoint folder: its components, the hash of every file, and the checks against it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from xgem.types import CheckpointError, OutputError
from xgem.utils.files import file_sha256, read_json, sync, write_json

INDEX_NAME = "model_index.json"


CONFIG_NAME = "config.json"


FORMAT = "xgem-checkpoint"


FORMAT_VERSION = 1


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ComponentEntry:
    """The index entry of one component: its ``kind``, and the SHA-256 of each of its files by relative path."""

    kind: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class CheckpointIndex:
    """A checked ``model_index.json``: the raw ``preset`` as JSON values, and the components by name."""

    preset: Mapping[str, Any]
    components: Mapping[str, ComponentEntry]
    xgem_version: str

    def to_json(self) -> dict[str, Any]:
        """The index as the JSON values of ``model_index.json``."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "xgem_version": self.xgem_version,
            "preset": dict(self.preset),
            "components": {
                name: {"kind": entry.kind, "files": dict(sorted(entry.files.items()))}
                for name, entry in sorted(self.components.items())
            },
        }


def read_index(root: str | Path) -> CheckpointIndex:
    """Read and check ``root/model_index.json``; the files that it names are not opened.

    Raises:
        CheckpointError: no folder, no index, not JSON, another format, or an invalid entry.
    """
    path = Path(root) / INDEX_NAME
    if not Path(root).is_dir():
        raise CheckpointError(f"{root}: no such checkpoint folder")
    if not path.is_file():
        raise CheckpointError(f"{root}: not an xgem checkpoint, it has no {INDEX_NAME}")
    raw = read_json(path)
    if raw.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format is {raw.get('format')!r}, expected {FORMAT!r}")
    if raw.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {raw.get('format_version')!r}, this xgem reads {FORMAT_VERSION}; "
            "use a matching xgem"
        )
    preset, components = raw.get("preset"), raw.get("components")
    if not isinstance(preset, dict) or not isinstance(components, dict):
        raise CheckpointError(f"{path}: expected 'preset' and 'components' to be JSON objects")
    entries = {
        str(name): _read_entry(path, str(name), entry) for name, entry in cast(dict[str, Any], components).items()
    }
    return CheckpointIndex(cast(dict[str, Any], preset), entries, str(raw.get("xgem_version", "")))


def _read_entry(path: Path, name: str, entry: Any) -> ComponentEntry:
    check_name(name)
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: component {name!r} should be a JSON object with 'kind' and 'files'")
    values = cast(dict[str, Any], entry)
    kind, files = values.get("kind"), values.get("files")
    if not isinstance(kind, str) or not isinstance(files, dict):
        raise CheckpointError(f"{path}: component {name!r} should have a 'kind' and a 'files' object")
    checked: dict[str, str] = {}
    for file, digest in cast(dict[str, Any], files).items():
        parts = PurePosixPath(file).parts
        # An index may come from anywhere: it must not name a file outside its own component
        if not parts or ".." in parts or file.startswith("/") or "\\" in file or ":" in file:
            raise CheckpointError(f"{path}: component {name!r} names the file {file!r}, which is outside its folder")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise CheckpointError(f"{path}: the hash of {name}/{file} is not a SHA-256 in hexadecimal")
        checked[file] = digest
    if CONFIG_NAME not in checked:
        raise CheckpointError(f"{path}: component {name!r} lists no {CONFIG_NAME}")
    return ComponentEntry(kind, checked)


def component_hash(root: str | Path, name: str) -> str:
    """16 hexadecimal digits that identify one component's files, computed from the hashes in the index.

    Raises:
        CheckpointError: no such checkpoint or component.
    """
    entry = index_entry(root, read_index(root), name)
    return _short_hash({"kind": entry.kind, "files": dict(entry.files)})


def checkpoint_hash(root: str | Path) -> str:
    """16 hexadecimal digits that identify the whole checkpoint: its preset and every file's hash.

    The model card, the version of xgem that wrote it, and the preset's training schedule are not included: they do not
    affect any output.
    """
    index = read_index(root)
    preset = {key: value for key, value in index.preset.items() if key != "train"}
    components = {n: {"kind": e.kind, "files": dict(e.files)} for n, e in index.components.items()}
    return _short_hash({"preset": preset, "components": components})


def _short_hash(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def verify_component(root: str | Path, name: str) -> None:
    """Compare every file of one component with its hash.

    Raises:
        CheckpointError: a file is missing, altered, or not listed; the message names it.
    """
    root = Path(root)
    folder, entry = root / name, index_entry(root, read_index(root), name)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: the component's folder is missing; fetch the checkpoint again")
    for file, digest in entry.files.items():
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; fetch the checkpoint again")
        try:
            actual = file_sha256(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        if actual != digest:
            raise CheckpointError(
                f"{path}: altered, truncated or swapped: its SHA-256 starts with {actual[:12]}, "
                f"{INDEX_NAME} says {digest[:12]}; fetch the checkpoint again"
            )
    for path in listed_files(folder):
        # A tokenizer folder is read as a whole: a stray file in it could change the tokenizer
        if path not in entry.files:
            raise CheckpointError(f"{folder / path}: not listed in {INDEX_NAME}; remove it")


def verify(root: str | Path) -> None:
    """Compare every file of every component with the index, and check that no component of the preset is missing.

    Raises:
        CheckpointError: as ``verify_component``, or a component of the preset is missing.
    """
    index = read_index(root)
    wanted = index.preset.get("components")
    missing = sorted(set(cast(dict[str, Any], wanted)) - set(index.components)) if isinstance(wanted, dict) else []
    if missing:
        raise CheckpointError(f"{root}: incomplete, the preset's components {', '.join(missing)} are missing")
    for name in index.components:
        verify_component(root, name)


def check_name(name: str) -> None:
    """Raise ``CheckpointError`` unless ``name`` is a valid component name; it is used as a folder name."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"component name {name!r} is not valid (letters, digits, '_' and '-' only)")


def index_entry(root: str | Path, index: CheckpointIndex, name: str) -> ComponentEntry:
    """The index entry of a component; otherwise ``CheckpointError`` lists the components that exist."""
    if name not in index.components:
        available = ", ".join(sorted(index.components)) or "none yet"
        raise CheckpointError(f"{root}: has no component {name!r}; it has: {available}")
    return index.components[name]


def listed_files(folder: Path) -> list[str]:
    """Sorted relative POSIX paths of the files under ``folder``, except hidden ones."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def write_index(root: Path, index: CheckpointIndex) -> None:
    """Replace the index of ``root`` atomically; ``OutputError`` if it cannot be written."""
    temporary = root / f".{INDEX_NAME}.{os.getpid()}"
    try:
        write_json(temporary, index.to_json())
        sync(root, [temporary.name])
        temporary.replace(root / INDEX_NAME)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{root / INDEX_NAME}: cannot be written ({error.strerror})") from error
