"""Shards of encoded studies on the disk: what they are of, their files, and the index.

::

    index.json                 written last: the plan, and of every shard its size and SHA-256
    plan.json                  what the shards are of, as it was when the first one was written
    studies-train.safetensors  where the rows of each study are, its classes and fields, the mean of all targets
    train-00000.safetensors    encodings of 512 studies, float16, and a CRC-32 for each row; train-00000.json: its size
                               and hashes

A shard holds of every output ``targets.NAME.values`` (rows, ...); of every input ``prompts.NAME.pooled`` (rows, d) and
``.tokens`` (all tokens of its rows, c), those of a row from ``.ends[row]`` to ``.ends[row + 1]``; of both ``.crc``
(rows,) and ``.counts`` (studies,), the rows of each study; and ``known`` and ``classes`` (studies,), a bit for each of
:data:`xgem.train.facts.FIELDS` and of CheXpert's classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from xgem.configs.preset import Preset
from xgem.types import CheckpointError, DataError
from xgem.utils.files import file_sha256, read_json, replacing, write_json
from xgem.utils.hashing import canonical

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT, VERSION = "xgem-encoded", 1
INDEX, PLAN = "index.json", "plan.json"
SPLITS = ("train", "val")

Arrays = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True)
class Plan:
    """What shards are of: all that their contents depend on.

    ``preset``: the parts of it that make images and texts. ``targets`` and ``prompts``: the component of each modality.
    ``components``: by name, hashes of ``weights`` and ``config``, and of the ``files`` that they were read from.
    ``splits``: numbers of studies.
    """

    manifest: str
    preset: Mapping[str, Any]
    targets: Mapping[str, str]
    prompts: Mapping[str, str]
    components: Mapping[str, Mapping[str, str]]
    splits: Mapping[str, int]
    studies_per_shard: int

    @property
    def key(self) -> str:
        """SHA-256 of :attr:`contents`."""
        return hashlib.sha256(canonical(self.contents).encode()).hexdigest()

    @property
    def contents(self) -> dict[str, Any]:
        """All of it but the files of the components, which may hold the same weights in another way."""
        parts = {
            name: {kind: value for kind, value in hashes.items() if kind != "files"}
            for name, hashes in self.components.items()
        }
        return {"format": FORMAT, "version": VERSION} | asdict(self) | {"components": parts}

    @property
    def shards(self) -> list[tuple[str, int]]:
        """Split and number of every shard."""
        size = self.studies_per_shard
        return [(split, number) for split in SPLITS for number in range(-(-self.splits[split] // size))]

    def studies(self, split: str, number: int) -> range:
        """The studies of a shard."""
        first = number * self.studies_per_shard
        return range(first, min(first + self.studies_per_shard, self.splits[split]))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """That of ``plan.json``, or of ``index.json``, which holds more; DataError where it is none of this version."""
        return cls(**plan_values(path))


def plan_values(path: Path, *, more: bool = False) -> dict[str, Any]:
    """The fields of a plan in a file, ``more``: all that the file holds."""
    try:
        values = read_json(path)
    except CheckpointError as error:
        raise DataError(f"{error}; make it with `xgem data encode`") from None
    if (values.get("format"), values.get("version")) != (FORMAT, VERSION):
        raise DataError(
            f"{path}: format {values.get('format')!r}, version {values.get('version')!r}; "
            f"expected {FORMAT!r}, {VERSION}: encode again with this xgem"
        )
    names = set(Plan.__dataclass_fields__)
    if missing := names - set(values):
        raise DataError(f"{path}: has no {sorted(missing)[0]!r}; it was altered: encode again")
    return values if more else {name: values[name] for name in names}


def preset_parts(preset: Preset) -> dict[str, Any]:
    """What of a preset makes images and texts."""
    return {
        "transform": preset.transform.model_dump(mode="json"),
        "report_sections": list(preset.report_sections),
        "prompt_sections": None if preset.prompt_sections is None else list(preset.prompt_sections),
        "joined": sorted(name for name, modality in preset.modalities.items() if modality.joins == "report"),
        "captions": preset.captions,
        "prefix": preset.prefix,
    }


def shard_name(split: str, number: int) -> str:
    """The name of a shard's files."""
    return f"{split}-{number:05}"


def write_arrays(path: Path, arrays: Arrays, key: str) -> dict[str, Any]:
    """Write a file of the plan ``key`` in one piece; its size and SHA-256."""
    with replacing(path) as partial:
        # One entry, as the order of several would differ from file to file
        save_file(dict(arrays), partial, metadata={"is": f"{path.stem} of {key}"})
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        return {"bytes": partial.stat().st_size, "sha256": file_sha256(partial)}


def write_index(path: Path, plan: Plan, more: Mapping[str, Any]) -> None:
    """Write a plan, with ``more`` beside it."""
    with replacing(path) as partial:
        write_json(partial, {"format": FORMAT, "version": VERSION} | asdict(plan) | dict(more))


def finished_shard(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """What was noted of a shard when it was written; None where it has to be made (again)."""
    try:
        noted = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        size = (folder / f"{name}.safetensors").stat().st_size
    except (OSError, ValueError):
        return None
    return noted if noted.get("key") == key and noted.get("bytes") == size else None


@contextmanager
def opened(path: Path, key: str) -> Iterator[Any]:
    """A shard as ``safe_open`` gives it; nothing of it stays in memory.

    Raises:
        DataError: it is missing, not readable, or of another plan.
    """
    try:
        with safe_open(path, "np") as file:
            name, _, of = (file.metadata() or {}).get("is", "").partition(" of ")
            if (name, of) != (path.stem, key):
                what = "shard " + repr(name) if of == key else "a shard of other data or encoders"
                raise DataError(f"{path}: is {what}, not what the index says; {again(path)}")
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; run the same `xgem data encode` again, which makes it") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {again(path)}") from None


def again(path: Path) -> str:
    """What to do about a shard that is not as it was written."""
    return f"delete {path.name} and run the same `xgem data encode` again, which makes it"
