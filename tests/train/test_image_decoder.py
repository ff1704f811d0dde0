"""The decoder is sharpened, the encoder and all latents stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.batches import batch_of
from xgem.checkpoints.store import load_component
from xgem.configs.changes import with_stage_settings
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.image_decoder import ImageDecoderStage, power_divergence
from xgem.train.image_vae import Autoencoder
from xgem.train.loop import LoopOptions
from xgem.train.perceptual import TAPS
from xgem.train.stages import make_stage, run


@pytest.fixture(scope="module")
def source(debug_preset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "checkpoint"
    random_checkpoint(root, debug_preset, seed=4)
    return root


@pytest.fixture
def stage(debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path) -> ImageDecoderStage:
    made = make_stage("image-decoder", StageContext(debug_preset, *corpora, source, 0))
    assert isinstance(made, ImageDecoderStage)
    return made


@pytest.fixture
def on_features(debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path) -> ImageDecoderStage:
    changed = ["image-decoder.loss.perceptual=0.1", "image-decoder.loss.on_features=1"]
    preset = debug_preset.model_copy(update={"train": with_stage_settings(debug_preset.train, changed)})
    made = make_stage("image-decoder", StageContext(preset, *corpora, source, 0))
    assert isinstance(made, ImageDecoderStage)
    return made


def test_latents_stay_and_images_change(
    debug_preset: Any, toy: Path, corpora: tuple[Corpus, Corpus], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    quiet = LoopOptions(progress=False, tensorboard=False)
    run(["image-decoder"], debug_preset, Manifest.read(toy), out, quiet, init=source)
    before: Any = load_component(source, "image_vae")
    after: Any = load_component(out, "image_vae")
    x = corpora[1].images.floats(torch.arange(4))
    with torch.inference_mode():
        z = before.encode(x)
        assert torch.equal(z, after.encode(x))
        assert not torch.allclose(before.decode(z), after.decode(z), atol=1e-3)
    assert before.config == after.config


def test_a_resumed_run_is_known_by_its_encoder_alone(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], stage: ImageDecoderStage
) -> None:
    known = stage.fingerprint()
    with torch.no_grad():
        next(stage.vae.decoder_parameters()).add_(1)
    assert stage.fingerprint() == known
    with torch.no_grad():
        next(stage.vae.vae.encoder.parameters()).add_(1)
    assert stage.fingerprint() != known


def test_each_side_of_the_game_gets_its_own_gradient(on_features: ImageDecoderStage) -> None:
    game: Any = on_features.module
    features: Any = on_features.features
    x = torch.randn(2, 1, 64, 64)
    y = torch.randn(2, 1, 64, 64, requires_grad=True)
    patches, *scales = game.judge(x, y, (features(x), features(y)))
    assert [len(scales), patches[0].shape] == [len(TAPS), (2, 1, 14, 14)]
    for discriminator, logits in ((game.discriminator, [patches]), (game.on_features, scales)):
        y.grad = None
        for _, fake, judged in logits:
            torch.testing.assert_close(fake, judged)  # the same verdict twice
        torch.stack([real.sum() + fake.sum() for real, fake, _ in logits]).sum().backward(retain_graph=True)
        assert y.grad is None
        seen = {name: parameter.grad.clone() for name, parameter in discriminator.named_parameters()}
        torch.stack([judged.sum() for *_, judged in logits]).sum().backward(retain_graph=True)
        assert y.grad is not None
        assert y.grad.abs().sum() > 0
        for name, parameter in discriminator.named_parameters():
            assert torch.equal(parameter.grad, seen[name])


def test_features_are_asked_only_where_they_count(stage: ImageDecoderStage, on_features: ImageDecoderStage) -> None:
    assert stage.features is None
    for one, names in ((stage, set()), (on_features, {"perceptual", "on_features"})):
        one.module.train()
        _, logged = one.loss(one.module, batch_of(one, 200))
        assert logged.keys() == {"l1", "gradient", "power", "discriminator"} | names
    assert not {name for name in on_features.module.state_dict() if name.startswith("features")}


def test_noise_meets_the_decoder_in_training_alone(stage: ImageDecoderStage) -> None:
    x = stage.train.floats(torch.arange(4))
    mean = stage.vae.moments(x)[0]
    far: dict[float, float] = {}
    for noise in (0.0, 20.0):
        module = Autoencoder(stage.vae, noise)
        torch.testing.assert_close(module.eval()(x)[0], stage.vae.reconstruct(stage.vae.moments(x)[0]))
        drawn = {"noise": torch.randn_like(mean), "amount": torch.rand(4), "added": torch.randn_like(mean)}
        far[noise] = float((module(x, drawn)[0] - module(x)[0]).detach().square().mean())
    assert far[20.0] > 4 * far[0.0]


def test_the_discriminator_counts_after_its_warm_up(stage: ImageDecoderStage) -> None:
    weights = [batch_of(stage, step)["adversarial"] for step in (0, 149, 150)]
    assert weights == [0.0, 0.0, 0.01]


def test_only_the_decoder_learns(stage: ImageDecoderStage) -> None:
    stage.module.train()
    loss, _ = stage.loss(stage.module, batch_of(stage, 200))
    loss.backward()
    decoder = set(stage.vae.decoder_parameters())
    for name, parameter in stage.vae.named_parameters():
        assert (parameter.grad is not None) == (parameter in decoder), name


def test_the_divergence_settles_for_the_mean_power() -> None:
    """Windows of one texture with powers 1 and 4: a common strength is best at the mean, 2.5, not in between."""
    texture = torch.randn(2, 1, 64, 64)
    x = texture * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    powers = torch.linspace(0.5, 5, 181)
    divergences = torch.stack([power_divergence(x, texture * power.sqrt()) for power in powers])
    assert float(powers[divergences.argmin()]) == pytest.approx(2.5, abs=0.05)
    assert float(power_divergence(x, x)) == pytest.approx(0, abs=1e-6)
