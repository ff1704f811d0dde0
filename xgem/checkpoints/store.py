"""The checkpoint folder: one sub-folder a component, an index with the hash of every file, safetensors only.

::

    model_index.json       format, format_version, xgem_version, the whole preset, and per component its kind and files
    README.md              the model card (optional)
    <component>/           config.json, model.safetensors (or shards with their index), assets such as a tokenizer

Nothing is ever unpickled. Every file is compared with its SHA-256 before it is used, so a missing, truncated or
swapped component is a ``CheckpointError`` and never a silently wrong image. Writing is atomic: a component is
written beside its place and renamed, and the index, replaced last, is what makes it count.
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

    A checkpoint that is there already keeps its components, and takes the new preset, as long as the preset
    configures those components as before (so that training goes on in the same folder with other step counts).

    Raises:
        CheckpointError: the folder holds a component that the preset configures differently.
        OutputError: the folder cannot be written, or holds other files than a checkpoint's.
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
                        f"{root}: its component {name!r} was made with another configuration than the preset "
                        f"{values.get('name')!r} has; use another folder or the preset it was made with"
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
    """Write ``component`` as ``root/name`` and enter it in the index, replacing what was there, atomically.

    Args:
        root: a folder that ``init_checkpoint`` made.
        name: the component's name in the preset, ``"image_vae"`` say.
        component: its ``config``, ``state_dict()`` and ``save_assets`` are written; it is not changed.
        dtype: floating-point weights are stored in it; None keeps each weight's own.
        max_shard_size: bytes, or text like ``"2GB"`` (powers of ten); larger weights are split over files.

    Raises:
        CheckpointError: not a checkpoint, a name that is not valid, or weights that ``dtype`` cannot hold.
        OutputError: the folder cannot be written.
    """
    root = Path(root)
    check_name(name)
    read_index(root)
    config: dict[str, Any] = component.config.model_dump(mode="json")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
    except OSError as error:
        raise OutputError(f"{root}: cannot be written ({error.strerror})") from error
    try:
        write_json(temporary / CONFIG_NAME, config)
        write_weights(temporary, name, component.state_dict(), dtype=dtype, max_shard_size=max_shard_size)
        component.save_assets(temporary)
        files = {file: file_sha256(temporary / file) for file in listed_files(temporary)}
        temporary.chmod(new_file_mode(0o777))  # mkdtemp's folders are the owner's alone
        sync(temporary, files)
        with locked(root):
            # Read under the lock: another process may have entered its component meanwhile.
            index = read_index(root)
            entry = ComponentEntry(str(config["kind"]), files)
            _swap(temporary, root / name)
            write_index(root, CheckpointIndex(index.preset, {**index.components, name: entry}, _version()))
            for left in root.glob(f".{name}.*"):  # by a save that was killed
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{root / name}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_checkpoint(source: str | Path, target: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Copy a verified checkpoint, with its card, to the folder ``target``, which must be new or empty.

    With ``dtype`` the floating-point weights are stored in it (``torch.float16`` halves a float32 checkpoint).
    The copy appears as a whole or not at all.

    Raises:
        CheckpointError: the source is not whole. OutputError: the target is used or cannot be written.
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
    """Put ``temporary`` where ``place`` is; what was there is removed afterwards."""
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
    """Load one component, in evaluation mode, after every file of it was compared with its hash.

    Weights are float32 unless ``dtype`` says otherwise, whatever they are stored in. The global random state is
    left as it was.

    Raises:
        CheckpointError: a file is missing, altered or unreadable; a weight is missing, unknown or of another
            shape than its configuration gives, not finite, or too large for ``dtype``. The message names the file
            and the weight.
    """
    import torch

    from xgem.checkpoints.component import component_class

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
    weights = read_weights(folder, entry.files)
    wanted = component.state_dict()
    for key, (value, file) in weights.items():
        if key not in wanted:
            raise CheckpointError(f"{folder / file}: unexpected weight {key!r}, {CONFIG_NAME} has none of that name")
        if value.shape != wanted[key].shape:
            raise CheckpointError(
                f"{folder / file}: weight {key!r} has shape {tuple(value.shape)}, "
                f"{CONFIG_NAME} gives {tuple(wanted[key].shape)}"
            )
        if value.is_floating_point() != wanted[key].is_floating_point():
            raise CheckpointError(f"{folder / file}: weight {key!r} is {value.dtype}, expected {wanted[key].dtype}")
    missing = [key for key in wanted if key not in weights]
    if missing:
        raise CheckpointError(f"{folder}: weight {missing[0]!r} is missing ({len(missing)} in all)")
    component.load_state_dict({key: value for key, (value, _) in weights.items()}, strict=True)
    # Convolutions of this layout are faster, on a CPU too.
    component.eval().to(memory_format=torch.channels_last)
    component = component.to(device=device, dtype=dtype) if dtype is not None else component.to(device)
    for key, value in component.state_dict().items() if dtype not in (None, torch.float32) else ():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{folder}: the weight {key!r} does not fit into {dtype}; use bfloat16 or float32")
    return component


def read_component_config(root: str | Path, name: str) -> Any:
    """The component's configuration, checked against the schema of its kind (``xgem.configs.preset``).

    Raises:
        CheckpointError: not JSON, not valid, or of another kind than the index says.
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
    """A component's configuration with what it leaves to the defaults, so that a later field is no difference."""
    from pydantic import TypeAdapter, ValidationError

    from xgem.configs.components import ComponentConfig

    components = preset.get("components")
    found = cast(dict[str, Any], components).get(name) if isinstance(components, dict) else None
    adapter: TypeAdapter[Any] = TypeAdapter(ComponentConfig)
    try:
        return adapter.dump_python(adapter.validate_python(found), mode="json")
    except ValidationError:
        return found


def _preset_json(preset: Preset | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(preset, Mapping):
        return json.loads(json.dumps(dict(preset)))
    return preset.model_dump(mode="json")


def _make_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root}: is a file, expected a folder")
    if root.is_dir() and not (root / INDEX_NAME).exists():
        strangers = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        clash = [name for name in strangers if (root / name / CONFIG_NAME).exists()]
        if clash:
            raise OutputError(f"{root}: holds another model's files ({clash[0]}); choose another folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: cannot be made ({error.strerror})") from error


def _version() -> str:
    from xgem._version import __version__

    return __version__
