"""Train a LoRA on a diffusers pipeline, or all of its denoiser."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState

from xgem.configs.components import TransformConfig
from xgem.data.manifest import Manifest
from xgem.peers.adapter import peft_package
from xgem.peers.families import family_of
from xgem.peers.loading import load_pipeline
from xgem.peers.locate import PeerLocation, locate_peer
from xgem.peers.preset import VIEW, peer_preset
from xgem.peers.record import read_record
from xgem.train.corpus import Corpus
from xgem.train.loop import LoopOptions, TrainState, train
from xgem.train.peers.settings import Kind, PeerTraining
from xgem.train.peers.stage import PeerStage
from xgem.train.processes import Processes
from xgem.train.stages import left_as_it_was
from xgem.types import ConfigError, OutputError

log = logging.getLogger(__name__)


def run(
    kind: Kind,
    base: str | Path,
    manifest: Manifest,
    root: Path,
    options: LoopOptions,
    *,
    settings: Callable[[str, int], PeerTraining],
    seed: int = 0,
    revision: str | None = None,
) -> TrainState:
    """Train on the split ``train`` of a manifest, and write what :func:`xgem.load` takes into ``root``.

    Args:
        kind: ``lora`` writes ``pytorch_lora_weights.safetensors`` in diffusers' format, ``full`` a diffusers pipeline;
            ``xgem_peer.json`` beside it says of which base.
        base: as :func:`xgem.peers.locate.locate_peer` takes it.
        settings: from the class of the pipeline and the number of training studies with a frontal, such as
            :func:`xgem.train.peers.settings.settings_of`.

    Raises:
        CheckpointError: the base cannot be used. ConfigError: it is of a family that is not trained here, it has an
        adapter, or a setting does not fit it. DataError, ManifestError: the manifest cannot be used. OutputError:
        ``root`` holds another peer. InputError: peft is not installed.
    """
    with Processes.current().in_agreement(), left_as_it_was(root):
        location = _checked(kind, base, revision, root)
        stage = _stage(kind, location, manifest, root, options, settings, seed)
    log.info("%s of %s: %d steps, %s", kind, location.name, stage.config.steps, stage.family.objective)
    return train(stage, root, options)


def _checked(kind: Kind, base: str | Path, revision: str | None, root: Path) -> PeerLocation:
    """Where the base is, if it can be trained into ``root``."""
    location = locate_peer(base, revision=revision)
    if location.adapter is not None:
        raise ConfigError(f"--base {base}: has a LoRA already; give a pipeline without one")
    family_of(location.folder)
    if kind == "lora":
        peft_package()
    before = read_record(root)
    if before is not None and (before.kind, before.base_hash) != (kind, location.folder.hash):
        raise OutputError(
            f"{root}: holds a {before.kind} of {before.base} (hash {before.base_hash}); choose another --out"
        )
    return location


def _stage(
    kind: Kind,
    location: PeerLocation,
    manifest: Manifest,
    root: Path,
    options: LoopOptions,
    settings: Callable[[str, int], PeerTraining],
    seed: int,
) -> PeerStage:
    manifest.check(files=True)
    studies = sum(bool(study.images.get(VIEW)) for study in manifest.studies("train"))
    config = settings(location.folder.kind.__name__, studies)
    preset = peer_preset(location.folder, location.record)
    resolution = config.resolution or preset.transform.size
    preset = preset.model_copy(
        update={
            "transform": TransformConfig(size=resolution),
            "report_sections": config.sections,
            "prompt_sections": config.sections,
        }
    )
    train_split, val_split = (
        Corpus.load(manifest, split, preset, root / "cache", progress=options.progress) for split in ("train", "val")
    )
    half = options.precision == "bf16"
    pipe = load_pipeline(location, device=PartialState().device or "cpu", dtype=_dtypes(location, kind, half=half))
    return PeerStage(kind, pipe, location, config, (train_split, val_split), resolution, seed, half=half)


def _dtypes(location: PeerLocation, kind: Kind, *, half: bool) -> dict[str, torch.dtype]:
    """With bf16, what is not trained is kept in it; else all in float32."""
    frozen = torch.bfloat16 if half else torch.float32
    trained = {} if kind == "lora" else {location.folder.denoiser: torch.float32}
    return {"default": frozen, "vae": torch.float32, **trained}
