"""Where a checkpoint is found: embedded in the package, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xgem.checkpoints.index import INDEX_NAME
from xgem.types import CheckpointError, InputError

DEFAULT_MODEL = "openi-256"
CONTROL_MODEL = "chexgen-small"
"""The checkpoint for requests with annotations or demographics."""
ASSETS = Path(__file__).parents[1] / "assets"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""An id of the Hugging Face hub, ``owner/name``."""

_HUB_FILES = ["*.safetensors", "*.json", "*.md", "*.txt"]


@dataclass(frozen=True)
class Location:
    """A checkpoint's folder ``root``, and the ``name`` for metadata: never a local path."""

    root: Path
    name: str


def embedded_names() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    if not ASSETS.is_dir():
        return []
    return sorted(path.name for path in ASSETS.iterdir() if (path / INDEX_NAME).is_file())


def locate(model: str | Path | None = None, *, revision: str | None = None) -> Location:
    """Find a checkpoint by embedded name, folder, or hub id (``owner/name``, fetched if necessary), in this order.

    Args:
        model: None is the default embedded checkpoint.
        revision: branch, tag or commit; for hub ids only.

    Raises:
        CheckpointError: there is no such checkpoint, or the hub cannot be reached or does not have it.
        InputError: a revision is given for a checkpoint that is not on the hub.
    """
    name = DEFAULT_MODEL if model is None else str(model)
    if isinstance(model, str | None) and name in embedded_names():
        _no_revision(name, revision)
        return Location(ASSETS / name, name)
    if Path(name).is_dir():
        _no_revision(name, revision)
        return Location(Path(name), Path(name).resolve().name)
    if isinstance(model, str) and HUB_ID.fullmatch(name) and not Path(name).exists():
        return Location(_fetch(name, revision), name if revision is None else f"{name}@{revision}")
    available = ", ".join(embedded_names()) or "none"
    near = difflib.get_close_matches(name, embedded_names(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise CheckpointError(
        f"model {name!r} is neither a folder nor a hub id (owner/name) nor a checkpoint that ships with xgem "
        f"(those are: {available}){hint}"
    )


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"revision {revision!r} was given for {name!r}, which is not a hub id; leave it out")


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return fetched(name, revision, lambda: snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))


def fetched(name: str, revision: str | None, fetch: Callable[[], str]) -> Path:
    """The folder that ``fetch`` makes of a model on the hub; CheckpointError says why where it cannot."""
    from huggingface_hub.errors import HfHubHTTPError as HubError
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = name if revision is None else f"{name} at {revision}"
    try:
        return Path(fetch())
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{wanted}: no such local folder, and no such model on the hub (or no access)") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{wanted}: no such local folder, not in the local cache, and the hub cannot be reached; "
            "connect, or give a folder"
        ) from error
    except (HubError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{wanted}: cannot be fetched from the hub: {reason}") from error
