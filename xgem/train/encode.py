"""Encode a manifest once, into shards that generators are trained from (ADR-0020)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from xgem.checkpoints import store
from xgem.checkpoints.component import component_class
from xgem.configs.preset import Preset
from xgem.data.manifest import Manifest
from xgem.data.prepare import read_images
from xgem.data.streamed import StreamedManifest
from xgem.data.transforms import Notes
from xgem.train.banks import Batches, Rows, items, truncated
from xgem.train.context import is_pretrained
from xgem.train.corpus import Corpus
from xgem.train.encoded import EncodedStudies, config_hash
from xgem.train.initial import check_architecture, fitting
from xgem.train.shards import (
    INDEX,
    PLAN,
    SPLITS,
    Plan,
    finished_shard,
    preset_parts,
    shard_name,
    write_arrays,
    write_index,
)
from xgem.types import CheckpointError, ConfigError, DataError, OutputError, XgemError
from xgem.utils.files import locked, replacing, write_json
from xgem.utils.hashing import crc, module_hash
from xgem.utils.progress import track
from xgem.utils.shards import Shard

log = logging.getLogger(__name__)

STUDIES = 512
"""Studies in a shard."""


@dataclass(frozen=True)
class Done:
    """Shards ``made`` by a call, and those still ``missing`` of ``shards``; if none is, the index is written."""

    made: int
    missing: int
    shards: int


def encode(
    manifest: Path,
    preset: Preset,
    checkpoint: Path,
    out: Path,
    *,
    share: Shard | None = None,
    device: torch.device | str = "cpu",
    studies_per_shard: int = STUDIES,
) -> Done:
    """Write what generators of ``preset`` are trained on: latents of every output, encodings of every prompt.

    Shards that are there already are kept, so that a killed call goes on where it stopped; other processes may write
    others meanwhile, each its ``share``. Whoever finds all shards there writes the index.

    Raises:
        ManifestError, ImageError, DataError: the data cannot be used. CheckpointError, ConfigError: ``checkpoint``
            lacks a component, or has one of another architecture. OutputError: the folder cannot be written, or holds
            shards of other data, encoders or settings; says what differs.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error
    with closing(StreamedManifest(manifest, out)) as data:
        try:
            work = _Work(data, preset, checkpoint, out, torch.device(device))
            plan = work.plan(studies_per_shard)
            _settle(out, plan)
        except XgemError:
            data.remove_copy()
            raise
        wanted = [
            unit
            for unit in (share or Shard()).of(plan.shards)
            if finished_shard(out, shard_name(*unit), plan.key) is None
        ]
        for split, number in track(wanted, "encoding shards"):
            work.write(out, plan, split, number)
        work.notes.log()
        if work.truncated:
            log.warning("%d texts are too long and were truncated", work.truncated)
        noted = {shard_name(*unit): finished_shard(out, shard_name(*unit), plan.key) for unit in plan.shards}
        missing = sum(note is None for note in noted.values())
        if not missing:
            with locked(out):
                finish(out, plan, {name: note for name, note in noted.items() if note})
                data.remove_copy()
        return Done(len(wanted), missing, len(plan.shards))


def _settle(out: Path, plan: Plan) -> None:
    """Write the plan, or compare it with that of the shards in the folder."""
    with locked(out):
        if not (out / PLAN).exists():
            strangers = [path.name for path in out.iterdir() if not path.name.startswith((".", "rows-"))]
            if strangers:
                raise OutputError(f"{out}: holds other files ({strangers[0]}); choose another folder")
            write_index(out / PLAN, plan, {})
            return
    before = Plan.read(out / PLAN)
    if before.key == plan.key:
        return
    names = ("manifest", "preset", "targets", "prompts", "splits", "studies_per_shard")
    differs = [name for name in names if getattr(before, name) != getattr(plan, name)]
    parts, made_with = plan.contents["components"], before.contents["components"]
    changed = {name for name in parts if parts[name] != made_with.get(name)}
    differs += [f"component {name!r}" for name in sorted(changed)]
    raise OutputError(f"{out}: holds shards of another {', '.join(differs)}; choose another folder, or delete it")


class _Work:
    """The components that encode, and the data."""

    def __init__(
        self, data: StreamedManifest, preset: Preset, checkpoint: Path, out: Path, device: torch.device
    ) -> None:
        self.data, self.preset, self.out, self.device = data, preset, out, device
        self.truncated, self.notes = 0, Notes()
        for split in SPLITS:
            if not data.count(split):
                raise DataError(f"the manifest has no studies in split {split!r}: prepare it again with that split")
        generators = {name: preset.components[preset.generator(name)] for name in preset.outputs}
        if not generators:
            raise ConfigError(f"preset {preset.name!r} has no generator to encode for")
        inputs = [name for generator in generators.values() for name in getattr(generator, "prompts", ())]
        inputs += list(preset.outputs) if preset.alignment else []
        self.targets = {name: preset.codec(name) for name in sorted(generators)}
        self.prompts = {name: preset.encoder(name) for name in sorted(set(inputs))}
        # The fewest tokens that a generator reads of a prompt
        limits = [limit for one in generators.values() if (limit := getattr(one, "caption_tokens", None)) is not None]
        self.limit = min(limits) if limits else None
        names = sorted({*self.targets.values(), *self.prompts.values()})
        self.components = {name: self._component(checkpoint, name) for name in names}
        self.files = {name: store.component_hash(checkpoint, name) for name in names}

    def _component(self, checkpoint: Path, name: str) -> Any:
        """One of the checkpoint, into which a pretrained one is put where it lacks it, as training does."""
        with locked(self.out):
            if name not in store.read_index(checkpoint).components:
                if not is_pretrained(name, self.preset):
                    raise CheckpointError(f"{checkpoint}: has no {name!r}: train it first, or give another --model")
                config = self.preset.components[name]
                store.save_component(checkpoint, name, component_class(config.kind).from_config(config))
        check_architecture(checkpoint, name, self.preset)
        return fitting(checkpoint, name, self.preset).eval().requires_grad_(False)

    def plan(self, studies_per_shard: int) -> Plan:
        hashes = {
            name: {"weights": module_hash(one), "config": config_hash(one), "files": self.files[name]}
            for name, one in self.components.items()
        }
        for one in self.components.values():
            one.to(self.device)
        splits = {split: self.data.count(split) for split in SPLITS}
        parts = preset_parts(self.preset)
        return Plan(self.data.sha256, parts, self.targets, self.prompts, hashes, splits, studies_per_shard)

    @torch.no_grad()
    def write(self, out: Path, plan: Plan, split: str, number: int) -> None:
        """Encode the studies of one shard and write it, then what is noted of it."""
        manifest, name = self.data.part(split, plan.studies(split, number)), shard_name(split, number)
        corpus = self._corpus(manifest, split)
        arrays = {"known": corpus.facts.known, "classes": corpus.facts.classes.astype(np.uint16)}
        for modality, component in self.targets.items():
            arrays |= self._target(corpus, modality, self.components[component])
        for modality, component in self.prompts.items():
            arrays |= self._prompt(corpus, modality, self.components[component])
        noted = write_arrays(out / f"{name}.safetensors", arrays, plan.key)
        with replacing(out / f"{name}.json") as partial:
            write_json(partial, noted | {"key": plan.key, "pixels": corpus.images.sha256})

    def _corpus(self, manifest: Manifest, split: str) -> Corpus:
        described = Corpus.without_images(manifest, split, self.preset)
        return replace(described, images=read_images(manifest, split, self.preset.transform, self.notes))

    def _target(self, corpus: Corpus, modality: str, codec: Any) -> dict[str, np.ndarray]:
        rows, values = items(corpus, modality, as_target=True)
        batches = Batches(corpus, modality, values, self.device)
        parts = [_half(codec.encode(batch), f"latents of {modality}") for batch in batches]
        latents = np.concatenate(parts) if parts else np.zeros((0, *codec.latent_shape), np.float16)
        return {
            f"targets.{modality}.values": latents,
            f"targets.{modality}.sum": latents.sum(axis=0, dtype=np.float64),
            f"targets.{modality}.crc": np.array([crc(np.asarray(one)) for one in latents], np.uint32),
            f"targets.{modality}.counts": _counts(rows),
        }

    def _prompt(self, corpus: Corpus, modality: str, encoder: Any) -> dict[str, np.ndarray]:
        rows, values = items(corpus, modality, as_target=False)
        self.truncated += truncated(encoder, values, self.limit)
        pooled: list[np.ndarray] = []
        tokens: list[np.ndarray] = []
        for batch in Batches(corpus, modality, values, self.device):
            found = encoder.encode(batch)
            counts = found.mask.sum(dim=1).tolist()  # (b,)
            if any(not one[:count].all() for one, count in zip(found.mask, counts, strict=True)):
                raise DataError(f"the encoder of {modality} masks tokens in front of others, which shards cannot hold")
            pooled += list(_half(found.pooled, f"vectors of {modality}"))
            halves = _half(found.tokens * found.mask[..., None], f"tokens of {modality}")
            tokens += [one[:count] for one, count in zip(halves, counts, strict=True)]
        prefix = f"prompts.{modality}"
        empty = np.zeros((0, 1), np.float16)
        return {
            f"{prefix}.pooled": np.stack(pooled) if pooled else empty,
            f"{prefix}.tokens": np.concatenate(tokens) if tokens else empty,
            f"{prefix}.ends": np.cumsum([0, *map(len, tokens)], dtype=np.int64),
            f"{prefix}.crc": np.array([crc(*row) for row in zip(pooled, tokens, strict=True)], np.uint32),
            f"{prefix}.counts": _counts(rows),
        }


def _half(values: Tensor, what: str) -> np.ndarray:
    """As float16 on the CPU; DataError where a number is too large for it, or not finite."""
    halves = values.half().cpu()
    if not bool(torch.isfinite(halves).all()):
        raise DataError(f"{what} are not finite in float16: shards cannot hold what this component gives")
    return halves.contiguous().numpy()


def _counts(rows: Rows) -> np.ndarray:
    return np.diff(rows.ends).astype(np.uint32)


def finish(out: Path, plan: Plan, noted: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what is known of all studies, and the index, of shards by name; nothing where they are there."""
    files = {f"{name}.safetensors": {"bytes": note["bytes"], "sha256": note["sha256"]} for name, note in noted.items()}
    if _is_finished(out, files):
        return
    pixels = hashlib.sha256("".join(note["pixels"] for note in noted.values()).encode()).hexdigest()
    for split in SPLITS:
        name = f"studies-{split}.safetensors"
        files[name] = write_arrays(out / name, _of_studies(out, plan, split), plan.key)
    write_index(out / INDEX, plan, {"pixels": pixels, "files": files})
    for partial in out.glob(".*.part"):  # of processes that were killed
        partial.unlink(missing_ok=True)


def _is_finished(out: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the index is there, and of these shards."""
    try:
        found = EncodedStudies.open(out).files
    except DataError:
        return False
    return all(found.get(name) == note for name, note in files.items())


def _of_studies(out: Path, plan: Plan, split: str) -> dict[str, np.ndarray]:
    """Of all shards of a split: ``known`` and ``classes`` (n,), and for each modality as target and as prompt the
    ``ends`` (n + 1,) of its studies' rows, and of targets the ``mean``."""
    kinds = [*(f"targets.{name}" for name in plan.targets), *(f"prompts.{name}" for name in plan.prompts)]
    names = ["known", "classes", *(f"{kind}.counts" for kind in kinds)]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    sums: dict[str, Any] = dict.fromkeys((f"targets.{name}" for name in plan.targets), 0.0)
    for of, number in plan.shards:
        if of == split:
            with safe_open(out / f"{shard_name(of, number)}.safetensors", "np") as file:
                for name, arrays in parts.items():
                    arrays.append(file.get_tensor(name))
                for kind in sums:
                    sums[kind] = sums[kind] + file.get_tensor(f"{kind}.sum")
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    found = {name: whole[name] for name in ("known", "classes")}
    for kind in kinds:
        found[f"{kind}.ends"] = Rows.counted(whole[f"{kind}.counts"]).ends
    for kind, total in sums.items():
        found[f"{kind}.mean"] = (total / max(1, int(found[f"{kind}.ends"][-1]))).astype(np.float32)
    return found
