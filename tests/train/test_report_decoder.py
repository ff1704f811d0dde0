"""The report codec's decoder learns to read noisy latents; the encoder and all latents stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xgem.checkpoints.store import load_component
from xgem.configs.preset import Preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.loop import LoopOptions
from xgem.train.report_decoder import ReportDecoderStage
from xgem.train.stages import make_stage, run

QUIET = LoopOptions(progress=False, tensorboard=False)


@pytest.fixture(scope="module", params=[False, True], ids=["own embeddings", "shared embeddings"])
def preset(request: pytest.FixtureRequest, debug_preset: Preset) -> Preset:
    settings = debug_preset.components["report_vae"].model_copy(update={"shared_embeddings": request.param})
    return debug_preset.model_copy(update={"components": debug_preset.components | {"report_vae": settings}})


@pytest.fixture(scope="module")
def source(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "checkpoint"
    random_checkpoint(root, preset, seed=4)
    return root


def stage_of(preset: Preset, corpora: tuple[Corpus, Corpus], source: Path, **loss: float) -> Any:
    config = preset.train["report-decoder"].model_copy(update={"loss": loss})
    changed = preset.model_copy(update={"train": preset.train | {"report-decoder": config}})
    stage = make_stage("report-decoder", StageContext(changed, *corpora, source, 0))
    assert isinstance(stage, ReportDecoderStage)
    return stage


def test_latents_stay_and_texts_change(
    preset: Preset, toy: Path, corpora: tuple[Corpus, Corpus], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(["report-decoder"], preset, Manifest.read(toy), out, QUIET, init=source)
    before: Any = load_component(source, "report_vae")
    after: Any = load_component(out, "report_vae")
    reports = [report for report in corpora[1].reports if report]
    ids = before.decoder_ids(reports)
    with torch.inference_mode():
        z = before.encode(reports)
        assert torch.equal(z, after.encode(reports))
        codes = z[:, : before.config.latent_dim]
        assert not torch.allclose(before.logits(ids, codes), after.logits(ids, codes), atol=1e-3)
    assert before.config == after.config


def test_noise_is_of_the_stated_size(preset: Preset, corpora: tuple[Corpus, Corpus], source: Path) -> None:
    module = stage_of(preset, corpora, source, noise=0.8).module
    unit = module.vae.config.latent_std
    torch.manual_seed(0)
    mean = torch.full((2000, 16), 3.0)
    module.eval()
    assert float(module.latents(mean, mean).std()) == pytest.approx(0.4 * unit, rel=0.02)
    module.train()
    noisy = module.latents(mean, mean)
    # Uniform from 0 to 0.8: mean square 0.8^2 / 3, and rows of little and of much noise
    assert float((noisy - mean).square().mean().sqrt()) == pytest.approx(0.8 / 3**0.5 * unit, rel=0.05)
    spread = (noisy - mean).std(dim=1) / unit
    assert float(spread.min()) < 0.05
    assert 0.7 < float(spread.max()) < 1.4


def test_without_noise_it_is_the_codecs_own_likelihood(
    preset: Preset, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    stage = stage_of(preset, corpora, source, noise=0.0)
    vae: Any = load_component(source, "report_vae").eval()
    texts = stage.val_texts[:8]
    stage.module.eval()
    with torch.no_grad():
        nll, mean, _, _ = stage.module(texts)
        torch.testing.assert_close(nll, vae.reconstruction_loss(vae.decoder_ids(texts), mean))


def test_a_resumed_run_is_known_by_its_encoder_alone(
    preset: Preset, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    stage = stage_of(preset, corpora, source)
    known = stage.fingerprint()
    with torch.no_grad():
        stage.module.vae.to_memory.weight.add_(1)
    assert stage.fingerprint() == known
    with torch.no_grad():
        stage.module.vae.to_posterior.weight.add_(1)
    assert stage.fingerprint() != known
