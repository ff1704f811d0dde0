"""The stages by name, in the order in which they build on one another."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from xgem.checkpoints import store
from xgem.checkpoints import training as checkpoint
from xgem.configs.preset import Preset
from xgem.data.manifest import Manifest
from xgem.data.streamed import StreamedManifest
from xgem.modalities import MODALITIES, get_modality
from xgem.train import needs
from xgem.train.clip import ClipStage
from xgem.train.context import StageContext, is_pretrained, save_pretrained
from xgem.train.control import ControlStage
from xgem.train.corpus import Corpus
from xgem.train.diffusion import DiffusionStage
from xgem.train.encoded import EncodedStudies
from xgem.train.image_decoder import ImageDecoderStage
from xgem.train.image_vae import ImageVAEStage
from xgem.train.initial import start_from
from xgem.train.joint import JointStage
from xgem.train.loop import LoopOptions, TrainState, is_finished, train
from xgem.train.processes import Processes
from xgem.train.report_vae import ReportVAEStage
from xgem.train.stage import Stage
from xgem.types import InputError, XgemError
from xgem.utils.files import file_sha256
from xgem.utils.hashing import module_hash

log = logging.getLogger(__name__)

Builder = Callable[[StageContext], Stage]
_BEFORE: dict[str, Builder] = {
    "image-vae": ImageVAEStage,
    "image-decoder": ImageDecoderStage,
    "clip": ClipStage,
    "report-vae": ReportVAEStage,
}
_AFTER: dict[str, Builder] = {"joint": JointStage, "control": ControlStage}


def stages() -> dict[str, Builder]:
    """What builds each stage; between codecs, encoders and what steers them, one for every modality's generator."""
    generators = {name: partial(DiffusionStage, target=name) for name, one in MODALITIES.items() if one.is_output}
    return {**_BEFORE, **generators, **_AFTER}


def planned(preset: Preset) -> tuple[str, ...]:
    """The stages that make all of a preset's components; a pretrained codec is taken as it is at the first."""
    codecs = [preset.codec(name) for name in preset.outputs if get_modality(name).is_image]
    pretrained = any(getattr(preset.components[codec], "pretrained", None) is not None for codec in codecs)
    return tuple(name for name in stages() if name in preset.train or (name == "image-vae" and pretrained))


def make_stage(name: str, context: StageContext) -> Stage:
    """Build a stage with freshly initialised weights, or those of the checkpoint ``context.init``.

    Raises:
        InputError: an unknown name; lists the known ones. ConfigError: the preset does not train it.
        CheckpointError: a component that the stage builds on has not been trained.
    """
    if name not in stages():
        raise InputError(f"unknown stage {name!r}: expected all or one of {', '.join(stages())}")
    context.config(name)
    context.seed_weights(name)
    stage = stages()[name](context)
    if context.init is not None:
        there = store.read_index(context.init).components
        for part, module in stage.fresh.items():
            if part not in there:
                log.info("%s: --init has no %r, which starts fresh", name, part)
                continue
            if any(parameter.is_meta for parameter in module.parameters()):
                continue  # the first process hands it out
            loaded = store.load_component(context.init, part)
            module.load_state_dict(loaded.state_dict())
            stage.origin += module_hash(loaded)
        stage.origin = Processes.current().of_all(stage.origin)[0]
    return stage


def _is_left_out(name: str, preset: Preset, root: Path) -> bool:
    """Whether a codec's stage is left out because the codec is taken as it is; then it is saved."""
    if name not in ("image-vae", "image-decoder") or name in preset.train:
        return False
    codec = preset.codec(next(view for view in preset.modalities if get_modality(view).is_image))
    if not is_pretrained(codec, preset):
        return False
    save_pretrained(codec, preset, root)
    return True


def check_needs(names: Sequence[str], preset: Preset, manifest: Manifest | StreamedManifest) -> None:
    """Refuse what a stage of ``names`` would fail at, before the first of them trains.

    Raises:
        ConfigError: a stage has an unknown loss setting. DataError: the splits lack what stages need; lists all of it.
    """
    splits = {split: Corpus.without_images(manifest, split, preset) for split in needs.SPLITS}
    wanted: dict[str, Sequence[needs.Need]] = {}
    for name in names:
        if name in preset.train:
            kind = _kind(name)
            kind.loss_weights(name, preset.train[name])
            wanted[name] = kind.needs(name, preset)
    needs.check(wanted, splits)


def _kind(name: str) -> type[Stage]:
    """The class of a stage."""
    stage = stages()[name]
    return cast(type[Stage], stage.func if isinstance(stage, partial) else stage)


def run(
    names: Sequence[str],
    preset: Preset,
    manifest: Manifest | Path,
    root: Path,
    options: LoopOptions,
    *,
    seed: int = 0,
    init: Path | None = None,
) -> dict[str, TrainState]:
    """Train stages one after the other into the checkpoint folder ``root``; finished ones are only written again.

    When the time of ``options.until`` is up, the stage that trains stops with a checkpoint, and later ones do not
    start. A call takes one step at least, so that repeated calls come to an end.

    Rows of a ``manifest`` on the disk stay there, so that memory does not grow with it. ``init`` is a checkpoint whose
    weights training starts from, and whose components stand in where ``root`` has none.

    Raises:
        ManifestError: the manifest is refused. DataError, ConfigError: as :func:`check_needs`, before anything is
            trained.
    """
    processes, cache = Processes.current(), root / "cache"
    with processes.in_agreement():
        if processes.main:
            with left_as_it_was(root), _opened(manifest, cache) as data:
                if isinstance(data, Manifest):
                    data.check(files=True)
                check_needs(names, preset, data)
            _begin(root, preset, init)
    with ExitStack() as stack:
        with processes.in_agreement():
            data = stack.enter_context(_opened(manifest, cache))
            train_split, val_split = (
                Corpus.load(data, split, preset, cache, progress=options.progress) for split in needs.SPLITS
            )
        divided = options.sharding != "no"
        context = StageContext(preset, train_split, val_split, root, seed, init, divided=divided)
        return _train_all(names, context, options)


@contextmanager
def _opened(manifest: Manifest | Path, cache: Path) -> Iterator[Manifest | StreamedManifest]:
    if isinstance(manifest, Manifest):
        yield manifest
        return
    with closing(StreamedManifest(manifest, cache)) as data:
        yield data


@contextmanager
def left_as_it_was(root: Path) -> Iterator[None]:
    """An error leaves no folder where there was none."""
    existed = root.exists()
    try:
        yield
    except XgemError:
        if not existed:
            shutil.rmtree(root, ignore_errors=True)
        raise


def run_encoded(
    names: Sequence[str],
    preset: Preset,
    manifest: Path,
    encoded: Path,
    root: Path,
    options: LoopOptions,
    *,
    seed: int = 0,
    init: Path | None = None,
) -> dict[str, TrainState]:
    """:func:`run` from the shards that ``xgem data encode`` has made of ``manifest``, whose rows are not read.

    Raises:
        InputError: a stage that is not trained from shards. DataError: the shards are of another manifest, preset,
            encoder or codec, or some are missing or truncated.
    """
    wrong = [name for name in names if name in stages() and not _kind(name).reads_shards]
    if wrong:
        able = ", ".join(name for name in stages() if _kind(name).reads_shards)
        raise InputError(
            f"--encoded: stage {wrong[0]!r} reads images or texts, not what encoders make of them: "
            f"leave --encoded out, or train by name one of {able}"
        )
    processes = Processes.current()
    with processes.in_agreement():
        studies = EncodedStudies.open(encoded)
        if not manifest.is_file():
            raise InputError(f"--data {manifest}: no such manifest; give the one that {encoded} was encoded from")
        if processes.main:
            studies.check_is_of(file_sha256(manifest), preset)
            _begin(root, preset, init)
    for name in studies.plan.components:
        if is_pretrained(name, preset):
            save_pretrained(name, preset, root)
    with processes.in_agreement():
        studies.check_components(root)
    empty = Manifest((), manifest.parent)
    train_split, val_split = (Corpus.without_images(empty, split, preset) for split in ("train", "val"))
    divided = options.sharding != "no"
    context = StageContext(preset, train_split, val_split, root, seed, init, studies, divided)
    return _train_all(names, context, options)


def _begin(root: Path, preset: Preset, init: Path | None) -> None:
    """The checkpoint folder, with what ``init`` brings."""
    store.init_checkpoint(root, preset)
    if init is not None:
        start_from(init, preset, root)


def _train_all(names: Sequence[str], context: StageContext, options: LoopOptions) -> dict[str, TrainState]:
    preset, root = context.preset, context.root
    states: dict[str, TrainState] = {}
    progressed = False
    for place, name in enumerate(names):
        if progressed and options.time_is_up:
            log.info("time is up: %s not started; --resume goes on", ", ".join(names[place:]))
            break
        if _is_left_out(name, preset, root):
            states[name] = TrainState()
            continue
        stage = make_stage(name, context)
        log.info("%s: %d steps of %d", name, stage.config.steps, stage.config.batch_size)
        checkpoints = root / "training" / name / "checkpoints"
        before = checkpoint.latest(checkpoints)
        states[name] = train(stage, root, options)
        progressed |= checkpoint.latest(checkpoints) != before
        if not is_finished(states[name], stage.config):
            break
    return states
