"""Training that starts from another checkpoint's weights."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import T5Config, T5EncoderModel

from tests.train.batches import batch_of
from xgem.checkpoints.store import init_checkpoint, load_component, read_index, save_component, verify
from xgem.configs.codecs import ImageVAEConfig
from xgem.configs.components import DiTGeneratorConfig, T5EncoderConfig
from xgem.configs.preset import ModalityConfig, Preset, StageConfig
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.encoders.tokenizer import train_tokenizer
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.loop import LoopOptions
from xgem.train.processes import Processes
from xgem.train.stages import make_stage, run, stages
from xgem.types import CheckpointError, ConfigError
from xgem.utils.hashing import module_hash

QUIET = LoopOptions(progress=False, tensorboard=False)


def write_t5(folder: Path) -> Path:
    tokenizer = train_tokenizer(["no acute disease"], 300)
    T5EncoderModel(T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(str(folder))
    return folder


def write_vae(folder: Path) -> Path:
    sizes: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8), "norm_num_groups": 4,
    }  # fmt: skip
    AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(debug_preset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of random weights."""
    root = tmp_path_factory.mktemp("source") / "checkpoint"
    random_checkpoint(root, debug_preset, seed=3)
    return root


@pytest.mark.parametrize(
    "name", [name for name in stages() if name not in ("image-decoder", "control")]
)  # it goes on from its folder
def test_a_stage_starts_from_the_given_weights(
    name: str, debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    fresh, again, started = (
        make_stage(name, StageContext(debug_preset, *corpora, source, 0, init)) for init in (None, None, source)
    )
    assert fresh.fingerprint() == again.fingerprint() != started.fingerprint()
    for part, module in started.fresh.items():
        wanted = load_component(source, part)
        assert module_hash(module) == module_hash(wanted) != module_hash(fresh.fresh[part])
        for old in ("tokenizer", "decoder_tokenizer"):
            if hasattr(wanted, old):
                assert getattr(module, old).get_vocab() == getattr(wanted, old).get_vocab()


@pytest.mark.parametrize("name", ["frontal", "joint"])
def test_the_first_process_alone_has_weights_that_are_divided(
    name: str, debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others build what they train without storage, read no weights to start from, and are the same run."""
    first = make_stage(name, StageContext(debug_preset, *corpora, source, 0, source, divided=True))
    ((part, module),) = first.fresh.items()
    assert module_hash(module) == module_hash(load_component(source, part))

    class Second(Processes):
        def __init__(self) -> None:
            self.count, self.rank, self.main = 2, 1, False

        def of_all(self, value: Any) -> list[Any]:
            assert value == ""
            return [first.origin, value]

    monkeypatch.setattr(Processes, "current", Second)
    second = make_stage(name, StageContext(debug_preset, *corpora, source, 0, source, divided=True))
    assert second.fingerprint() == first.fingerprint()
    assert all(parameter.is_meta for parameter in second.module.parameters())
    shapes = ({key: value.shape for key, value in one.module.state_dict().items()} for one in (first, second))
    assert next(shapes) == next(shapes)


@pytest.mark.parametrize("divided", [False, True])
def test_pretrained_weights_are_read_by_the_first_process_alone(
    divided: bool, debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = debug_preset.components["frontal"].model_copy(update={"pretrained": "no/such/unet"})
    preset = debug_preset.model_copy(update={"components": debug_preset.components | {"frontal": settings}})
    context = StageContext(preset, *corpora, source, 0, divided=divided)
    with pytest.raises(CheckpointError, match="no/such/unet"):
        context.build("frontal")
    monkeypatch.setattr(Processes, "current", lambda: SimpleNamespace(main=False))
    if divided:
        assert next(context.build("frontal").parameters()).is_meta
    else:
        with pytest.raises(CheckpointError, match="no/such/unet"):
            context.build("frontal")


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_a_generator_keeps_the_mean_of_what_it_is_trained_on(
    name: str, debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    settings = debug_preset.components[name].model_copy(update={"latents_mean": True})
    preset = debug_preset.model_copy(update={"components": debug_preset.components | {name: settings}})
    for init in (None, source):  # the source has none
        stage: Any = make_stage(name, StageContext(preset, *corpora, source, 0, init))
        wanted = stage.train.targets.latents.float().mean(dim=0)
        torch.testing.assert_close(stage.model.latents_mean, wanted, rtol=1e-3, atol=1e-4)
        assert float(wanted.abs().max()) > 0.01


def test_one_stage_alone_gives_a_whole_checkpoint(debug_preset: Any, toy: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(["report"], debug_preset, Manifest.read(toy), out, QUIET, init=source)
    verify(out)
    changed = {
        name
        for name in read_index(source).components
        if module_hash(load_component(out, name)) != module_hash(load_component(source, name))
    }
    assert changed == {"report"}
    assert read_index(out).components.keys() == read_index(source).components.keys()


def test_another_architecture_is_refused(debug_preset: Any, toy: Path, source: Path, tmp_path: Path) -> None:
    wider = debug_preset.components["report"].model_copy(update={"width": 32})
    preset = debug_preset.model_copy(update={"components": debug_preset.components | {"report": wider}})
    with pytest.raises(ConfigError, match="'report' is of another architecture"):
        run(["report"], preset, Manifest.read(toy), tmp_path / "out", QUIET, init=source)


def test_components_that_are_there_already_stay(
    debug_preset: Any, debug_parts: dict[str, Any], toy: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    init_checkpoint(out, debug_preset)
    save_component(out, "image_vae", debug_parts["image_vae"])
    run(["report"], debug_preset, Manifest.read(toy), out, QUIET, init=source)
    assert module_hash(load_component(out, "image_vae")) == module_hash(debug_parts["image_vae"])


def test_pretrained_frozen_parts_are_taken_and_let_go(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 and Stable Diffusion's VAE need no stage of their own; the encoder's memory is free once its bank is made."""
    t5, vae = write_t5(tmp_path / "t5"), write_vae(tmp_path / "vae")
    preset = Preset(
        name="toy",
        transform=debug_preset.transform,
        components={
            "t5": T5EncoderConfig(pretrained=str(t5)),
            "vae": ImageVAEConfig(pretrained=str(vae), image_size=debug_preset.transform.size),
            "dit": DiTGeneratorConfig(
                modality="frontal", prompts=("report",), latent_shape=(4, *[debug_preset.transform.size // 2] * 2),
                width=16, depth=1, heads=2, context_dim=16,
            ),
        },
        modalities={
            "frontal": ModalityConfig(codec="vae", generator="dit"),
            "report": ModalityConfig(encoder="t5"),
        },
        train={"frontal": StageConfig(steps=1, batch_size=2, learning_rate=1e-3)},
    )  # fmt: skip
    seen: dict[str, weakref.ref[Any]] = {}
    original = StageContext._part

    def watched(context: StageContext, name: str, stage: str) -> Any:
        part = original(context, name, stage)
        seen[name] = weakref.ref(part)
        return part

    monkeypatch.setattr(StageContext, "_part", watched)
    root = tmp_path / "root"
    init_checkpoint(root, preset)
    stage: Any = make_stage("frontal", StageContext(preset, *corpora, root, 0))
    gc.collect()
    assert seen["t5"]() is None
    assert seen["vae"]() is stage.codec  # shows what was generated
    assert set(read_index(root).components) == {"t5", "vae"}
    (loss, _) = stage.loss(stage.module, batch_of(stage, 0))
    assert torch.isfinite(loss)
