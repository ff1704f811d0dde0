"""The stages by name, in the order in which they build on one another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from xgem.checkpoints import store
from xgem.checkpoints.component import component_class
from xgem.configs.components import ReportVAEConfig, TextEncoderConfig
from xgem.configs.preset import Preset, StageConfig
from xgem.data.manifest import Manifest
from xgem.encoders.tokenizer import train_tokenizer
from xgem.train.clip import ClipStage
from xgem.train.control import ControlStage
from xgem.train.corpus import Corpus
from xgem.train.diffusion import DiffusionStage
from xgem.train.image_decoder import ImageDecoderStage
from xgem.train.image_vae import ImageVAEStage
from xgem.train.joint import JointStage
from xgem.train.loop import LoopOptions, Stage, TrainState, train
from xgem.train.report_vae import ReportVAEStage
from xgem.types import CheckpointError, ConfigError, InputError
from xgem.utils.hashing import module_hash
from xgem.utils.random import mix

log = logging.getLogger(__name__)

STAGES = ("image-vae", "image-decoder", "clip", "report-vae", "frontal", "lateral", "report", "joint", "control")


def planned(preset: Preset) -> tuple[str, ...]:
    """The stages that make all of a preset's components; a pretrained codec is taken as it is at the first."""
    codec = preset.modalities["frontal"].codec
    pretrained = codec is not None and getattr(preset.components[codec], "pretrained", None) is not None
    return tuple(name for name in STAGES if name in preset.train or (name == "image-vae" and pretrained))


def _tokenizer(corpus: Corpus, config: Any, init: Any = None) -> Any:
    """That of ``init`` or one from the training split's texts; pretrained towers bring their own."""
    if init is not None:
        return init.tokenizer if isinstance(config, TextEncoderConfig) else init.decoder_tokenizer
    if isinstance(config, TextEncoderConfig) and config.pretrained is not None:
        return None
    if isinstance(config, ReportVAEConfig) and config.pretrained_encoder is not None:
        return None
    texts = [text for index in range(len(corpus.studies)) for text in corpus.texts(index)]
    return train_tokenizer(texts, config.vocab_size, lowercase=isinstance(config, TextEncoderConfig))


def _part(root: Path, name: str, stage: str) -> Any:
    try:
        return store.load_component(root, name, device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    except CheckpointError as error:
        raise CheckpointError(f"stage {stage!r} needs component {name!r}: train it first ({error})") from None


def make_stage(
    name: str,
    preset: Preset,
    train_split: Corpus,
    val_split: Corpus,
    root: Path,
    seed: int,
    init: Path | None = None,
) -> Stage:
    """Build a stage with freshly initialised weights, or those of the checkpoint ``init``.

    Raises:
        InputError: an unknown name; lists the known ones. ConfigError: the preset does not train it.
        CheckpointError: a component that the stage builds on has not been trained.
    """
    if name not in STAGES:
        raise InputError(f"unknown stage {name!r}: expected all or one of {', '.join(STAGES)}")
    if name not in preset.train:
        raise ConfigError(f"preset {preset.name!r} has no training settings for stage {name!r}")
    stage = _fresh_stage(name, preset, train_split, val_split, root, seed, init)
    if init is not None:
        there = store.read_index(init).components
        for part, module in stage.fresh.items():
            if part not in there:
                log.info("%s: --init has no %r, which starts fresh", name, part)
                continue
            loaded = store.load_component(init, part)
            module.load_state_dict(loaded.state_dict())
            stage.origin += module_hash(loaded)
    return stage


def _fresh_stage(
    name: str, preset: Preset, train_split: Corpus, val_split: Corpus, root: Path, seed: int, init: Path | None
) -> Stage:
    config = preset.train[name]
    torch.manual_seed(mix(seed, name, "initialise"))
    if name == "image-vae":
        return ImageVAEStage(preset, config, train_split, val_split, preset.codec("frontal"), seed)
    if name == "image-decoder":
        codec = preset.codec("frontal")
        return ImageDecoderStage(config, train_split, val_split, codec, _part(root, codec, name), seed)
    if name in ("clip", "report-vae"):
        text = preset.encoder("report") if name == "clip" else preset.codec("report")
        source = None if init is None else store.load_component(init, text)
        tokenizer = _tokenizer(train_split, preset.components[text], source)
        if name == "clip":
            return ClipStage(preset, config, train_split, val_split, tokenizer, seed)
        return ReportVAEStage(preset, config, train_split, val_split, text, tokenizer, seed)
    if name == "joint":
        return _joint(preset, config, train_split, val_split, root, seed)
    if name == "control":
        return _control(preset, config, train_split, val_split, root, seed)
    prompts = preset.components[preset.generator(name)].prompts  # type: ignore[union-attr]
    needed = {preset.encoder(prompt) for prompt in prompts} | {preset.codec(name)}
    for part in sorted(needed):
        if _is_taken_as_it_is(part, preset):
            _save_pretrained(part, preset, root)
    parts = {part: _part(root, part, name) for part in sorted(needed)}
    device = PartialState().device
    assert device is not None
    torch.manual_seed(mix(seed, name, "initialise"))
    return DiffusionStage(preset, config, train_split, val_split, name, parts, root / "cache", device, seed)


def _joint(
    preset: Preset, config: StageConfig, train_split: Corpus, val_split: Corpus, root: Path, seed: int
) -> JointStage:
    if preset.alignment is None:
        raise ConfigError(f"preset {preset.name!r} has no alignment to train")
    outputs: Sequence[str] = tuple(preset.components[preset.alignment].outputs)  # type: ignore[union-attr]
    needed = {part(output) for output in outputs for part in (preset.encoder, preset.codec, preset.generator)}
    parts = {part: _part(root, part, "joint") for part in sorted(needed)}
    device = PartialState().device
    assert device is not None
    torch.manual_seed(mix(seed, "joint", "initialise"))
    return JointStage(preset, config, train_split, val_split, preset.alignment, parts, root / "cache", device, seed)


def _control(
    preset: Preset, config: StageConfig, train_split: Corpus, val_split: Corpus, root: Path, seed: int
) -> ControlStage:
    steered = [name for name in preset.outputs if preset.modalities[name].control is not None]
    if len(steered) != 1:
        raise ConfigError(f"preset {preset.name!r} has {len(steered)} outputs with a control, expected one to train")
    (target,) = steered
    (prompt,) = preset.components[preset.generator(target)].prompts  # type: ignore[union-attr]
    needed = {preset.encoder(prompt), preset.codec(target), preset.generator(target)}
    parts = {part: _part(root, part, "control") for part in sorted(needed)}
    device = PartialState().device
    assert device is not None
    return ControlStage(preset, config, train_split, val_split, target, parts, root / "cache", device, seed)


_NOT_ARCHITECTURE = {"latent_mean", "latent_std"}
"""What training measures."""
_GRID = {"image_size", "latent_shape", "position_scale"}
"""What differs between resolutions of the same weights: codecs are convolutions, and a transformer's positions are
computed (ChexGen's stage II starts from stage I's weights at twice the resolution)."""


def _architecture(config: Any) -> dict[str, Any]:
    """What a component's weights depend on."""
    scalable = config.kind in ("image_vae", "dit_generator", "controlnet")
    return config.model_dump(exclude=_NOT_ARCHITECTURE | (_GRID if scalable else set()))


def _resized(component: Any, config: Any) -> Any:
    """A component at the resolution that ``config`` asks for."""
    own = component.config
    changed = {
        key: getattr(config, key) for key in _GRID if hasattr(own, key) and getattr(own, key) != getattr(config, key)
    }
    if not changed or getattr(config, "pretrained", None) is not None:
        return component
    other = component_class(own.kind).from_config(own.model_copy(update=changed))
    other.load_state_dict(component.state_dict())
    return other


def _start_from(init: Path, preset: Preset, root: Path) -> None:
    """Put ``init``'s components into ``root`` where it lacks them; ConfigError where one is of another architecture."""
    process = PartialState()
    there = store.read_index(init).components
    for name, config in preset.components.items():
        if name not in there:
            continue
        found = store.read_component_config(init, name)
        if getattr(config, "pretrained", None) is None and _architecture(found) != _architecture(config):
            raise ConfigError(
                f"--init {init.name}: its {name!r} is of another architecture than preset {preset.name!r} gives: "
                "use the preset that it was trained with"
            )
        if process.is_main_process and name not in store.read_index(root).components:
            store.save_component(root, name, _resized(store.load_component(init, name), config))
    process.wait_for_everyone()


def _is_taken_as_it_is(component: str, preset: Preset) -> bool:
    """Whether a component is pretrained and frozen: T5, and a codec (XGeM 3.2.2: AutoKL) that no stage trains."""
    config = preset.components[component]
    frozen = config.kind == "t5_encoder" or (config.kind == "image_vae" and "image-vae" not in preset.train)
    return frozen and getattr(config, "pretrained", None) is not None


def _save_pretrained(component: str, preset: Preset, root: Path) -> None:
    """Put a component that is taken as it is into ``root``, where it lacks it."""
    process = PartialState()
    if process.is_main_process and component not in store.read_index(root).components:
        log.info("%s: pretrained, taken as it is", component)
        config = preset.components[component]
        store.save_component(root, component, component_class(config.kind).from_config(config))
    process.wait_for_everyone()


def _is_left_out(name: str, preset: Preset, root: Path) -> bool:
    """Whether a codec's stage is left out because the codec is taken as it is; then it is saved."""
    if name not in ("image-vae", "image-decoder") or name in preset.train:
        return False
    codec = preset.codec("frontal")
    if not _is_taken_as_it_is(codec, preset):
        return False
    _save_pretrained(codec, preset, root)
    return True


def run(
    names: Sequence[str],
    preset: Preset,
    manifest: Manifest,
    root: Path,
    options: LoopOptions,
    *,
    seed: int = 0,
    init: Path | None = None,
) -> dict[str, TrainState]:
    """Train stages one after the other into the checkpoint folder ``root``; finished ones are only written again.

    ``init`` is a checkpoint whose weights training starts from, and whose components stand in where ``root`` has none.
    """
    manifest.check(files=True)
    store.init_checkpoint(root, preset)
    if init is not None:
        _start_from(init, preset, root)
    train_split, val_split = (
        Corpus.load(manifest, split, preset, root / "cache", progress=options.progress) for split in ("train", "val")
    )
    states: dict[str, TrainState] = {}
    for name in names:
        if _is_left_out(name, preset, root):
            states[name] = TrainState()
            continue
        stage = make_stage(name, preset, train_split, val_split, root, seed, init)
        log.info("%s: %d steps of %d", name, stage.config.steps, stage.config.batch_size)
        states[name] = train(stage, root, options)
    return states
