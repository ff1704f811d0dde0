"""Encoded studies in shards on the disk: what generators read in place of encodings in memory (ADR-0020)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from xgem.checkpoints import store
from xgem.configs.preset import Preset
from xgem.train.banks import Rows
from xgem.train.corpus import FEWEST
from xgem.train.facts import by_class, by_field
from xgem.train.shards import (
    INDEX,
    Plan,
    again,
    opened,
    plan_values,
    preset_parts,
    shard_name,
)
from xgem.types import CheckpointError, DataError, Encoded
from xgem.utils.devices import moved
from xgem.utils.files import file_sha256
from xgem.utils.hashing import canonical, crc, module_hash
from xgem.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class EncodedStudies:
    """A folder that ``xgem data encode`` has written."""

    folder: Path
    plan: Plan
    files: Mapping[str, Mapping[str, Any]]
    """By name, size and SHA-256 of every file."""

    @classmethod
    def open(cls, folder: Path) -> EncodedStudies:
        """Read the index, and see whether every shard is there in its size.

        Raises:
            DataError: no index, of another format, or shards are missing or truncated.
        """
        if not (folder / INDEX).is_file():
            raise DataError(
                f"{folder}: has no {INDEX}, which `xgem data encode` writes last: run it (again) to its end"
            )
        values = plan_values(folder / INDEX, more=True)
        if "files" not in values:
            raise DataError(f"{folder / INDEX}: lists no files; run the same `xgem data encode` again, which writes it")
        found = cls(folder, Plan.read(folder / INDEX), values["files"])
        wrong = [name for name, noted in found.files.items() if _size(folder / name) != noted["bytes"]]
        if wrong:
            gone = "missing" if _size(folder / wrong[0]) is None else "truncated"
            raise DataError(
                f"{folder}: {wrong[0]} is {gone} ({len(wrong)} of {len(found.files)} files are wrong); "
                "run the same `xgem data encode` again, which makes them"
            )
        return found

    def check_files(self) -> None:
        """Compare every file with its SHA-256; DataError names the first that was altered, and counts them."""
        altered = [
            name
            for name, noted in track(list(self.files.items()), "checking shards")
            if file_sha256(self.folder / name) != noted["sha256"]
        ]
        if altered:
            first = self.folder / altered[0]
            raise DataError(f"{first}: was altered, as {len(altered)} of {len(self.files)} files; {again(first)}")

    def check_is_of(self, manifest: str, preset: Preset) -> None:
        """Compare with the SHA-256 of a manifest's file and with a preset; DataError says what differs."""
        if manifest != self.plan.manifest:
            raise DataError(
                f"{self.folder}: was encoded from another manifest than --data (SHA-256 {self.plan.manifest[:12]}, "
                f"--data has {manifest[:12]}): give the manifest that it is of, or encode this one"
            )
        mine = preset_parts(preset)
        differs = [name for name in mine if mine[name] != self.plan.preset.get(name)]
        if differs:
            raise DataError(
                f"{self.folder}: was encoded by a preset with another {differs[0]} "
                f"({self.plan.preset.get(differs[0])}) than {preset.name!r} ({mine[differs[0]]}): "
                "train with the preset that it was encoded by, or encode again"
            )

    def check_components(self, root: Path) -> None:
        """Compare the encoders and codecs in a checkpoint folder; DataError names one that is another.

        Weights are loaded only where files are not those that were encoded with.

        Raises:
            CheckpointError: the folder has no such component.
        """
        there = store.read_index(root).components
        for name, hashes in self.plan.components.items():
            if name not in there:
                raise CheckpointError(
                    f"{root}: has no {name!r}, which {self.folder} was encoded with: take it by --init from that "
                    "checkpoint"
                )
            if store.component_hash(root, name) == hashes["files"]:
                continue
            loaded = store.load_component(root, name)
            if (module_hash(loaded), config_hash(loaded)) != (hashes["weights"], hashes["config"]):
                raise DataError(
                    f"{self.folder}: was encoded with another {name!r} than that of {root}: train with the checkpoint "
                    "that it was encoded with (--init), or encode again"
                )

    def split(self, split: str) -> EncodedSplit:
        """The studies of ``train`` or ``val``."""
        name = f"studies-{split}.safetensors"
        path = self.folder / name
        if file_sha256(path) != self.files[name]["sha256"]:
            raise DataError(f"{path}: was altered; {again(path)}")
        try:
            return EncodedSplit(self, split, load_file(path))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read ({error}); {again(path)}") from None


def config_hash(component: Any) -> str:
    """SHA-256 of a component's configuration."""
    return hashlib.sha256(canonical(component.config.model_dump(mode="json")).encode()).hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


class EncodedSplit:
    """One split: a :class:`xgem.train.source.Source`.

    In memory are, for each study, 4 bytes for each of its modalities as target and as prompt, and 3 for its fields and
    classes; whatever else is read when it is asked for.
    """

    def __init__(self, studies: EncodedStudies, split: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.studies, self.name, self.arrays = studies, split, arrays

    def targets(self, modality: str, codec: Any) -> EncodedTargets:
        del codec  # compared by ``check_components``
        return EncodedTargets(self, f"targets.{modality}", self._rows("targets", modality))

    def prompts(self, modality: str, encoder: Any, limit: int | None = None) -> EncodedPrompts:
        del encoder, limit
        return EncodedPrompts(self, f"prompts.{modality}", self._rows("prompts", modality))

    def _rows(self, kind: str, modality: str) -> Rows:
        ends = self.arrays.get(f"{kind}.{modality}.ends")
        if ends is None:
            known = sorted(self.studies.plan.targets if kind == "targets" else self.studies.plan.prompts)
            raise DataError(
                f"{self.studies.folder}: holds no {kind} {modality!r}, only {', '.join(known)}: encode with the preset "
                "that is trained"
            )
        if not ends[-1]:
            raise DataError(f"split {self.name} has no {modality}: encode a manifest with some")
        return Rows(ends)

    def by_field(self, usable: NDArray[np.int32], share: float) -> list[NDArray[np.int32]]:
        return by_field(usable, self.arrays["known"], share)

    def by_class(self, usable: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        return by_class(usable, self.arrays["classes"], FEWEST)

    def fingerprint(self) -> str:
        return self.studies.plan.key


class _Shards:
    """The rows of one modality in the shards of a split."""

    def __init__(self, split: EncodedSplit, name: str, rows: Rows) -> None:
        plan = split.studies.plan
        self.rows, self.name, self.split = rows, name, split
        self.folder, self.key = split.studies.folder, plan.key
        self.firsts = rows.ends[:: plan.studies_per_shard]  # the first row of each shard

    def read(self, row: int) -> tuple[NDArray[np.float16], ...]:
        """The arrays of a row; DataError where they are not what was written."""
        shard = int(np.searchsorted(self.firsts, row, side="right")) - 1
        path = self.folder / f"{shard_name(self.split.name, shard)}.safetensors"
        place = row - int(self.firsts[shard])
        with opened(path, self.key) as file:
            arrays = self.slices(file, place)
            written = int(file.get_slice(f"{self.name}.crc")[place : place + 1][0])
        if crc(*arrays) != written:
            raise DataError(f"{path}: row {place} of {self.name} was altered; {again(path)}")
        return arrays

    def slices(self, file: Any, place: int) -> tuple[NDArray[np.float16], ...]:
        """The arrays of the row at ``place`` of a shard."""
        raise NotImplementedError


class EncodedTargets(_Shards):
    """A :class:`xgem.train.source.Targets`."""

    def take(self, rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self.read(row)[0] for row in rows])).float()

    def mean(self) -> Tensor:
        return torch.from_numpy(self.split.arrays[f"{self.name}.mean"])

    def slices(self, file: Any, place: int) -> tuple[NDArray[np.float16], ...]:
        return (file.get_slice(f"{self.name}.values")[place : place + 1][0],)


class EncodedPrompts(_Shards):
    """A :class:`xgem.train.source.Prompts`."""

    def encoded(self, rows: Sequence[int], device: torch.device | None = None) -> Encoded:
        once = {row: self.read(row) for row in dict.fromkeys(rows)}  # row 0 stands for all that were not drawn
        read = [once[row] for row in rows]
        counts = torch.tensor([len(tokens) for _, tokens in read])  # (b,)
        width = int(counts.max())
        padded = np.zeros((len(read), width, read[0][1].shape[1]), np.float16)  # (b, n, c)
        for one, (_, tokens) in zip(padded, read, strict=True):
            one[: len(tokens)] = tokens
        pooled = torch.from_numpy(np.stack([vector for vector, _ in read]))  # (b, d)
        mask = torch.arange(width)[None] < counts[:, None]  # (b, n)
        return Encoded(
            moved(pooled, device).float(), moved(torch.from_numpy(padded), device).float(), moved(mask, device)
        )

    def slices(self, file: Any, place: int) -> tuple[NDArray[np.float16], ...]:
        first, last = file.get_slice(f"{self.name}.ends")[place : place + 2].tolist()
        pooled = file.get_slice(f"{self.name}.pooled")[place : place + 1][0]
        return pooled, file.get_slice(f"{self.name}.tokens")[first:last]
