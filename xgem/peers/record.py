"""The file beside trained weights that says what they are: of which base, trained how."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from xgem._version import __version__
from xgem.configs.base import Config, Section
from xgem.pipeline.kinds import PEER_RECORD
from xgem.types import CheckpointError, ConfigError
from xgem.utils.files import read_json, replacing, write_json

ADAPTER_NAME: Final = "pytorch_lora_weights.safetensors"
"""The weights of a LoRA, as diffusers names and lays them out."""
FORMAT: Final = "xgem-peer"


class PeerRecord(Config):
    """What ``xgem_peer.json`` says.

    Attributes:
        kind: ``lora``, weights to add to those of ``base``; ``full``, a pipeline of its own.
        base: the name it was trained from, as :func:`xgem.load` takes it; ``base_hash`` stands for that one's files.
        resolution: of the images that it learned, in pixels, which it generates.
        sections: of the reports that it learned from.
        rank, alpha, targets: of a LoRA (Hu et al. 2022).
        settings: of training; ``data`` is a hash of its images and texts.
    """

    format: Literal["xgem-peer"] = FORMAT
    kind: Literal["lora", "full"]
    base: str
    base_hash: str
    revision: str | None = None
    pipeline: str
    resolution: int = Field(ge=1)
    sections: tuple[Section, ...]
    rank: int | None = Field(default=None, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] = ()
    steps: int
    seed: int
    settings: dict[str, Any]
    data: str
    xgem: str = __version__


def read_record(folder: Path) -> PeerRecord | None:
    """The record in a folder; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or is not one.
    """
    file = folder / PEER_RECORD
    if not file.is_file():
        return None
    try:
        return PeerRecord.parse(read_json(file), str(file))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def write_record(folder: Path, record: PeerRecord) -> None:
    """Write the record atomically; OutputError if it cannot be written."""
    with replacing(folder / PEER_RECORD) as partial:
        write_json(partial, record.model_dump(mode="json"))
