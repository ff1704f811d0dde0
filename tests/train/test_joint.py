"""The stage that trains the alignment: what it draws, what learns, what stays frozen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.published_layout import published_layout
from tests.train.batches import batch_of
from xgem.alignment.environment import summary
from xgem.checkpoints.store import load_component, read_index
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.joint import JointStage
from xgem.train.loop import LoopOptions
from xgem.train.stages import make_stage, run
from xgem.types import ConfigError
from xgem.utils.hashing import module_hash


@pytest.fixture(scope="module")
def source(debug_preset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "checkpoint"
    random_checkpoint(root, debug_preset, seed=5)
    return root


@pytest.fixture(scope="module")
def stage(debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path) -> JointStage:
    made = make_stage("joint", StageContext(debug_preset, *corpora, source, 0))
    assert isinstance(made, JointStage)
    return made


def test_groups_are_drawn_uniformly_and_prompts_from_the_rest(stage: JointStage) -> None:
    seen: Counter[tuple[str, ...]] = Counter()
    kept: Counter[bool] = Counter()
    steps = 400
    for step in range(steps):
        batch = batch_of(stage, step)
        group = tuple(batch["z0"])
        seen[group] += 1
        assert set(batch["encoded"]) == set(batch["keep"]) == set(stage.outputs) - set(group)
        for flags in batch["keep"].values():
            kept.update(flags.tolist())
    assert set(seen) == set(stage.groups)
    assert len(stage.groups) == 4
    assert all(abs(count - steps / 4) < 5 * (steps * 3 / 16) ** 0.5 for count in seen.values())
    assert kept[True]
    assert kept[False]


def test_studies_that_lack_a_modality_serve_the_groups_they_have(stage: JointStage) -> None:
    pair, triple = (stage.usable(stage.train, group) for group in (("frontal", "lateral"), stage.groups[-1]))
    assert set(triple) < set(pair)
    for name in ("frontal", "lateral"):
        assert all(stage.train[name][0].rows[index] for index in pair)


def test_environment_encoders_may_learn_alone_first(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = debug_preset.train["joint"].model_copy(update={"loss": {"alone": 2}})
    preset = debug_preset.model_copy(update={"train": debug_preset.train | {"joint": config}})
    stage: Any = make_stage("joint", StageContext(preset, *corpora, source, 0))
    assert [batch_of(stage, step)["alone"] for step in range(4)] == [True, True, False, False]
    batch = batch_of(stage, 0)
    assert tuple(batch["z0"]) == stage.groups[-1]
    for model in stage.generators.values():
        monkeypatch.setattr(model, "forward", None)
    loss, logged = stage.loss(stage.module, batch)
    loss.backward()
    assert set(logged) == {"contrast"}
    assert all(p.grad.abs().sum() > 0 for p in stage.model.environment.parameters())
    assert all(p.grad is None for p in stage.model.attention.parameters())


def test_gradient_reaches_the_alignment_alone(stage: JointStage) -> None:
    with torch.no_grad():  # a zero layer passes no gradient on
        for attentions in stage.model.attention.values():
            for site in attentions.sites:  # type: ignore[union-attr]
                site.leave.weight.normal_(std=0.1)
    for step in range(12):
        loss, logged = stage.loss(stage.module, batch_of(stage, step))
        loss.backward()
        assert logged["denoising"] > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.module.parameters())
    frozen = [p for model in stage.generators.values() for p in model.parameters()]
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_training_changes_the_alignment_alone(debug_preset: Any, toy: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(["joint"], debug_preset, Manifest.read(toy), out, LoopOptions(progress=False, tensorboard=False), init=source)
    changed = {
        name
        for name in read_index(source).components
        if module_hash(load_component(out, name)) != module_hash(load_component(source, name))
    }
    assert changed == {"alignment"}


def test_fresh_weights_denoise_as_the_generators_alone(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    stage: Any = make_stage("joint", StageContext(debug_preset, *corpora, source, 0))
    batch = batch_of(stage, 3)
    t = torch.randint(stage.steps, (len(next(iter(batch["z0"].values()))),))
    with torch.no_grad():
        _, logged = stage.loss(stage.module, batch | {"t": t, "level": torch.tensor(5)})
        alone = []
        for name, z0 in batch["z0"].items():
            model = stage.generators[name]
            z, target = model.noisy(z0, batch["noise"][name], t)
            context = model.fuse(batch["encoded"], batch["keep"]) if batch["encoded"] else model.null(len(t))
            alone.append((model(z, t, context) - target).square().mean())
    torch.testing.assert_close(logged["denoising"], torch.stack(alone).mean())


# ------------------------------------------------------------------------------------------------------- the loss


def with_loss(preset: Any, corpora: tuple[Corpus, Corpus], source: Path, **loss: float) -> Any:
    config = preset.train["joint"].model_copy(update={"loss": loss, "batch_size": 8})
    preset = preset.model_copy(update={"train": preset.train | {"joint": config}})
    return make_stage("joint", StageContext(preset, *corpora, source, 0))


@pytest.mark.parametrize("weight", [0.0, 0.02, 3.0])
def test_the_loss_is_denoising_and_weighted_contrast(
    weight: float, debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    stage = with_loss(debug_preset, corpora, source, contrastive=weight)
    loss, logged = stage.loss(stage.module, batch_of(stage, 0))
    assert logged["contrast"] > 0
    torch.testing.assert_close(loss.detach(), logged["denoising"] + weight * logged["contrast"])
    stage.module.zero_grad()
    loss.backward()
    # Fresh attention passes nothing on: what the environment encoders learn is from the contrast alone
    learnt = sum(float(p.grad.abs().sum()) for p in stage.model.environment.parameters() if p.grad is not None)
    assert (learnt > 0) == (weight > 0)


def test_timesteps_of_denoising_start_at_the_lowest(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = with_loss(debug_preset, corpora, source, lowest=900, contrastive=0.1)
    denoised: list[int] = []
    contrasted: list[int] = []
    for generator in stage.generators.values():

        def seen(z0: Tensor, noise: Tensor, t: Tensor, *, original: Any = generator.noisy) -> Any:
            (denoised if t.ndim else contrasted).extend(t.reshape(-1).tolist())
            return original(z0, noise, t)

        monkeypatch.setattr(generator, "noisy", seen)
    with torch.no_grad():
        for step in range(40):
            stage.loss(stage.module, batch_of(stage, step))
        assert set(denoised) <= set(range(900, stage.steps))
        assert min(denoised) < 910
        assert min(contrasted) < 500  # any noise tells studies apart
        denoised.clear()
        stage.validate(stage.module)
    assert denoised
    assert min(denoised) >= 900


def test_published_layers_are_trained_by_every_stage(
    debug_preset: Any, toy: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Optimus from position 1 on, the fully connected denoiser, and the joint attentions, which start from those of a
    checkpoint whose outputs attend to themselves, as converted ones do."""
    preset = published_layout(debug_preset)
    source, out = tmp_path_factory.mktemp("published") / "checkpoint", tmp_path / "out"
    random_checkpoint(source, published_layout(debug_preset, attends="own"), seed=5)
    options = LoopOptions(progress=False, tensorboard=False)
    run(["report-vae", "report", "joint"], preset, Manifest.read(toy), out, options, init=source)
    changed = {
        name
        for name in read_index(source).components
        if module_hash(load_component(out, name)) != module_hash(load_component(source, name))
    }
    assert changed == {"report_vae", "report", "alignment"}
    assert load_component(out, "alignment").config.attends == "others"
    before, after = (dict(load_component(root, "alignment").named_parameters()) for root in (source, out))
    still = {name for name in before if torch.equal(before[name], after[name])}
    # One token to see: the softmax over it is 1 whatever query and key are; with two others it is not
    assert not {name for name in still if not name.startswith("attention.")}
    for output in ("frontal", "lateral", "report"):
        assert {name for name in before if name.startswith(f"attention.{output}.")} - still


def test_the_published_infonce(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path, stage: JointStage
) -> None:
    """One direction, temperature 1, and the latents that are denoised, at the timestep of each study."""

    def made(**loss: float) -> JointStage:
        config = debug_preset.train["joint"].model_copy(update={"loss": loss})
        preset = debug_preset.model_copy(update={"train": debug_preset.train | {"joint": config}})
        built = make_stage("joint", StageContext(preset, *corpora, source, 0))
        assert isinstance(built, JointStage)
        return built

    published = made(published=1, contrastive=1, temperature=1)
    step = next(step for step in range(50) if len(batch_of(published, step)["z0"]) == 2)
    batch = batch_of(published, step)
    a, b = (
        published.model.tokens(
            {name: published.generators[name].noisy(z0, batch["noise"][name], batch["t"])[0]}, batch["t"]
        )
        for name, z0 in batch["z0"].items()
    )
    first, second = (summary(next(iter(one.values()))) for one in (a, b))
    contrast = torch.nn.functional.cross_entropy(first @ second.T, torch.arange(len(first)))
    loss, logged = published.loss(published.module, batch)
    torch.testing.assert_close(logged["contrast"], contrast.detach())
    torch.testing.assert_close(loss.detach(), logged["denoising"] + contrast.detach())
    assert not torch.allclose(stage.loss(stage.module, batch)[1]["contrast"], contrast)
    with pytest.raises(ConfigError, match="has no such steps"):
        made(published=1, alone=5)
