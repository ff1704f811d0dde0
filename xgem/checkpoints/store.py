"""The checkpoint folder: one sub-folder per component, an index with the hash of every file, safetensors only.

::

    model_index.json       format, format_version, xgem_version, the whole preset, and per component its kind and files
    README.md              the model card (optional)
    <component>/           config.json, model.safetensors (or shards with their index), assets such as a tokenizer

Nothing is ever unpickled. Every file is compared with its SHA-256 before it is used, so a missing, truncated or
swapped component raises ``CheckpointError`` and never gives a silently wrong image. Writing is atomic: a component is
written to a temporary folder and renamed, and it becomes valid with the index, which is replaced last.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from xgem.checkpoints.index import (
    CONFIG_NAME,
    INDEX_NAME,
    CheckpointIndex,
    ComponentEntry,
    check_name,
    checkpoint_hash,
    component_hash,
    index_entry,
    listed_files,
    read_index,
    verify,
    verify_component,
    write_index,
)
from xgem.checkpoints.weights import read_weights, write_weights
from xgem.types import CheckpointError, ConfigError, OutputError
from xgem.utils.files import file_sha256, locked, new_file_mode, new_folder, one_line, read_json, sync, write_json

if TYPE_CHECKING:
    import torch

    from xgem.checkpoints.component import Component
    from xgem.configs.preset import Preset


__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "INDEX_NAME",
    "CheckpointIndex",
    "ComponentEntry",
    "checkpoint_hash",
    "component_hash",
    "copy_checkpoint",
    "file_sha256",
    "init_checkpoint",
    "load_component",
    "new_folder",
    "read_component_config",
    "read_index",
    "save_component",
    "verify",
    "verify_component",
]


CARD_NAME = "README.md"


def init_checkpoint(root: str | Path, preset: Preset | Mapping[str, Any]) -> CheckpointIndex:
    """Create the folder ``root`` with an index that holds ``preset`` and no components yet.

    An existing checkpoint keeps its components and gets the new preset, provided that this configures the components
    as before (so that training can continue in the same folder with other step counts).

    Raises:
        CheckpointError: the folder has a component that the preset configures differently.
        OutputError: the folder cannot be written, or belongs to another model.
    """
    root = Path(root)
    values = _preset_json(preset)
    _make_folder(root)
    with locked(root):
        components: Mapping[str, ComponentEntry] = {}
        if (root / INDEX_NAME).exists():
            old = read_index(root)
            for name in old.components:
                before, now = (_component_json(p, name) for p in (old.preset, values))
                if before != now:
                    raise CheckpointError(
                        f"{root}: its component {name!r} has a different configuration from that in the preset "
                        f"{values.get('name')!r}; use another folder or the preset it was made with"
                    )
            components = old.components
        index = CheckpointIndex(values, components, _version())
        write_index(root, index)
    return index


def save_component(
    root: str | Path,
    name: str,
    component: Component,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "2GB",
) -> None:
    """Write ``component`` to ``root/name`` and enter it in the index, atomically replacing an existing one.

    Args:
        root: a folder created by ``init_checkpoint``.
        name: the component's name in the preset, such as ``"image_vae"``.
        component: its ``config``, ``state_dict()`` and assets are written; it is not changed.
        dtype: dtype in which floating-point weights are stored; None keeps each weight's own.
        max_shard_size: bytes, or text like ``"2GB"`` (powers of ten); larger weights are split into several files.

    Raises:
        CheckpointError: not a checkpoint, an invalid name, or weights that ``dtype`` cannot represent.
        OutputError: the folder cannot be written.
    """
    root = Path(root)
    check_name(name)
    read_index(root)
    config: dict[str, Any] = component.config.model_dump(mode="json")
    # Everything into a temporary folder beside the component's place
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
    except OSError as error:
        raise OutputError(f"{root}: cannot be written ({error.strerror})") from error
    try:
        write_json(temporary / CONFIG_NAME, config)
        write_weights(temporary, name, component.state_dict(), dtype=dtype, max_shard_size=max_shard_size)
        component.save_assets(temporary)
        files = {file: file_sha256(temporary / file) for file in listed_files(temporary)}
        temporary.chmod(new_file_mode(0o777))  # mkdtemp's folders are accessible to their owner only
        sync(temporary, files)
        with locked(root):
            # Read under the lock: another process may have entered its component meanwhile
            index = read_index(root)
            entry = ComponentEntry(str(config["kind"]), files)
            _swap(temporary, root / name)
            write_index(root, CheckpointIndex(index.preset, {**index.components, name: entry}, _version()))
            for leftover in root.glob(f".{name}.*"):  # of a save that was killed
                shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{root / name}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_checkpoint(source: str | Path, target: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Verify a checkpoint and copy it, with its card, to the folder ``target``, which must be new or empty.

    With ``dtype`` the floating-point weights are converted (``torch.float16`` halves the size of a float32
    checkpoint). The copy is atomic.

    Raises:
        CheckpointError: the source is incomplete. OutputError: the target is not empty or cannot be written.
    """
    source, target = Path(source), Path(target)
    verify(source)
    index = read_index(source)
    with new_folder(target) as folder:
        if dtype is None:
            for name, entry in index.components.items():
                for file in entry.files:
                    (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / name / file, folder / name / file)
            write_index(folder, index)
        else:
            write_index(folder, CheckpointIndex(index.preset, {}, _version()))
            for name in index.components:
                save_component(folder, name, load_component(source, name), dtype=dtype)
        if (source / CARD_NAME).is_file():
            shutil.copyfile(source / CARD_NAME, folder / CARD_NAME)


def _swap(temporary: Path, place: Path) -> None:
    """Move ``temporary`` to ``place``; an existing folder there is removed afterwards."""
    if not place.exists():
        temporary.replace(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}.old.", dir=place.parent))
    place.replace(old / place.name)
    temporary.replace(place)
    shutil.rmtree(old, ignore_errors=True)


def load_component(
    root: str | Path, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Component:
    """Load one component, in evaluation mode, after comparing each of its files with its hash.

    Weights are float32 unless ``dtype`` says otherwise, in whatever dtype they are stored. The global random state is
    not changed.

    Raises:
        CheckpointError: a file is missing, altered or unreadable; a weight is missing, unknown or of another
            shape than its configuration gives, not finite, or too large for ``dtype``. The message names the file
            and the weight.
    """
    import torch

    from xgem.checkpoints.component import component_class

    # The module, with new weights
    root = Path(root)
    verify_component(root, name)
    entry = index_entry(root, read_index(root), name)
    folder = root / name
    config = read_component_config(root, name)
    try:
        component_type = component_class(entry.kind)
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{folder}: component kind {entry.kind!r} is not known to this xgem") from error
    with torch.random.fork_rng(devices=[]):
        try:
            component = component_type.from_config(config, assets=folder)
        except (ConfigError, OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder}: cannot be built from its {CONFIG_NAME}: {one_line(error)}") from error
    # Its weights, which must fit exactly
    weights = read_weights(folder, entry.files)
    expected = component.state_dict()
    for key, (value, file) in weights.items():
        if key not in expected:
            raise CheckpointError(f"{folder / file}: unexpected weight {key!r}, {CONFIG_NAME} has none of that name")
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{folder / file}: weight {key!r} has shape {tuple(value.shape)}, "
                f"{CONFIG_NAME} gives {tuple(expected[key].shape)}"
            )
        if value.is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(f"{folder / file}: weight {key!r} is {value.dtype}, expected {expected[key].dtype}")
    missing = [key for key in expected if key not in weights]
    if missing:
        raise CheckpointError(f"{folder}: weight {missing[0]!r} is missing ({len(missing)} in all)")
    component.load_state_dict({key: value for key, (value, _) in weights.items()}, strict=True)
    # Convolutions are faster in this memory format, also on a CPU
    component.eval().to(memory_format=torch.channels_last)
    component = component.to(device=device, dtype=dtype) if dtype is not None else component.to(device)
    for key, value in component.state_dict().items() if dtype not in (None, torch.float32) else ():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{folder}: the weight {key!r} does not fit into {dtype}; use bfloat16 or float32")
    return component


def read_component_config(root: str | Path, name: str) -> Any:
    """The component's configuration, checked against the schema of its kind (:mod:`xgem.configs.components`).

    Raises:
        CheckpointError: not JSON, not valid, or of a different kind than in the index.
    """
    from pydantic import TypeAdapter, ValidationError

    from xgem.configs.components import ComponentConfig

    entry = index_entry(root, read_index(root), name)
    path = Path(root) / name / CONFIG_NAME
    adapter: TypeAdapter[Any] = TypeAdapter(ComponentConfig)
    try:
        config = adapter.validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: not a valid configuration: {where}: {first['msg']}") from error
    if config.kind != entry.kind:
        raise CheckpointError(f"{path}: configures a {config.kind!r}, {INDEX_NAME} says {entry.kind!r}")
    return config


def _component_json(preset: Mapping[str, Any], name: str) -> Any:
    """A component's configuration with defaults filled in, so that a field added later makes no difference."""
    from pydantic import TypeAdapter, ValidationError

    from xgem.configs.components import ComponentConfig

    components = preset.get("components")
    config = cast(dict[str, Any], components).get(name) if isinstance(components, dict) else None
    adapter: TypeAdapter[Any] = TypeAdapter(ComponentConfig)
    try:
        return adapter.dump_python(adapter.validate_python(config), mode="json")
    except ValidationError:
        return config


def _preset_json(preset: Preset | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(preset, Mapping):
        return json.loads(json.dumps(dict(preset)))
    return preset.model_dump(mode="json")


def _make_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root}: is a file, expected a folder")
    if root.is_dir() and not (root / INDEX_NAME).exists():
        entries = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        foreign = [name for name in entries if (root / name / CONFIG_NAME).exists()]
        if foreign:
            raise OutputError(f"{root}: contains another model's files ({foreign[0]}); choose another folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: cannot be created ({error.strerror})") from error


def _version() -> str:
    from xgem._version import __version__

    return __version__
