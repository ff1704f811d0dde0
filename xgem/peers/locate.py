"""Where a peer is found: a diffusers pipeline in a folder or on the hub, alone or with a LoRA."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from xgem.checkpoints.locate import HUB_ID, Location, fetched
from xgem.peers.folder import PipelineFolder
from xgem.peers.record import ADAPTER_NAME, PeerRecord, read_record
from xgem.pipeline.kinds import DIFFUSERS
from xgem.types import CheckpointError, InputError
from xgem.utils.files import file_sha256


@dataclass(frozen=True)
class PeerLocation(Location):
    """A peer's pipeline ``root``, its ``name`` for metadata (never a local path), and what is known of it.

    Attributes:
        base: the pipeline's name, without its adapter. ``revision``: the hub's commit, where it comes from there.
        adapter: the folder of its LoRA; ``record``: what training wrote beside the LoRA, or the whole pipeline.
    """

    base: str
    folder: PipelineFolder
    revision: str | None = None
    adapter: Path | None = None
    record: PeerRecord | None = None

    @property
    def hash(self) -> str:
        """Stands for all files that decide what it generates."""
        if self.adapter is None:
            return self.folder.hash
        own = file_sha256(self.adapter / ADAPTER_NAME)
        return hashlib.sha256(f"{self.folder.hash}+{own}".encode()).hexdigest()[:16]


def locate_peer(model: str | Path, *, revision: str | None = None) -> PeerLocation:
    """Find ``diffusers:BASE``, ``diffusers:BASE+ADAPTER``, or the folder of ``xgem train lora`` or ``full``.

    BASE is a folder or a hub id, ADAPTER a folder with ``pytorch_lora_weights.safetensors``.

    Raises:
        CheckpointError: there is no such pipeline or adapter, or the adapter is of another base.
        InputError: a revision of what is not on the hub.
    """
    text = str(model).removeprefix(DIFFUSERS)
    base, plus, adapter = (text, "", "") if Path(text).is_dir() else text.partition("+")
    record = read_record(Path(base))
    if record is not None and record.kind == "lora":
        if plus:
            raise CheckpointError(f"{base}: is a LoRA itself; give one adapter, {DIFFUSERS}BASE+{base}")
        if revision is not None:
            raise InputError(f"revision {revision!r} was given for {text!r}, whose base has its own; leave it out")
        try:
            found = locate_peer(record.base, revision=record.revision)
        except CheckpointError as error:
            raise CheckpointError(
                f"{base}: its base {record.base!r} is not found ({error}); give it: {DIFFUSERS}BASE+{base}"
            ) from error
        return _with_adapter(found, Path(base), Path(base).resolve().name)
    found = _base(base, revision, record)
    return _with_adapter(found, Path(adapter), f"{found.name}+{Path(adapter).resolve().name}") if plus else found


def _base(text: str, revision: str | None, record: PeerRecord | None) -> PeerLocation:
    folder = Path(text)
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"revision {revision!r} was given for {text!r}, which is not a hub id; leave it out")
        place = folder.resolve()
        name = place.name if record else f"{DIFFUSERS}{place.name}"
        return PeerLocation(folder, name, f"{DIFFUSERS}{place}", PipelineFolder(folder), record=record)
    if not HUB_ID.fullmatch(text):
        raise CheckpointError(
            f"model {DIFFUSERS + text!r}: {text!r} is neither a folder nor a hub id (owner/name); "
            f"expected {DIFFUSERS}ID-OR-FOLDER"
        )
    root = fetched(text, revision, lambda: _download(text, revision))
    name = f"{DIFFUSERS}{text}" if revision is None else f"{DIFFUSERS}{text}@{revision}"
    return PeerLocation(root, name, f"{DIFFUSERS}{text}", PipelineFolder(root), root.name)


def _download(name: str, revision: str | None) -> str:
    """Fetch what the pipeline needs, which is less than all that lies beside it on the hub."""
    from diffusers import DiffusionPipeline

    options = {} if revision is None else {"revision": revision}
    return str(DiffusionPipeline.download(name, use_safetensors=True, **options))


def _with_adapter(base: PeerLocation, adapter: Path, name: str) -> PeerLocation:
    if base.adapter is not None:
        raise CheckpointError(f"{base.name}: has an adapter already; give its own base")
    if not (adapter / ADAPTER_NAME).is_file():
        raise CheckpointError(f"{adapter}: has no {ADAPTER_NAME}; expected the folder of a LoRA in diffusers' format")
    record = read_record(adapter)
    if record is not None and record.base_hash != base.folder.hash:
        raise CheckpointError(
            f"{adapter}: is a LoRA for {record.base} (hash {record.base_hash}), not for {base.base} "
            f"(hash {base.folder.hash}); give the base that it was trained on"
        )
    base_name, at, revision = name.partition("@")
    if at:  # a revision comes last, as a replay reads it
        revision, _, own = revision.partition("+")
        name = f"{base_name}+{own}@{revision}"
    return PeerLocation(base.root, name, base.base, base.folder, base.revision, adapter, record or base.record)
