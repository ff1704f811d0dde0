"""What the loop does with gradients and weights: clipping, weight decay, memory for time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xgem.configs.preset import StageConfig, load_preset
from xgem.convert.random_init import random_component
from xgem.train.loop import LoopOptions, train
from xgem.train.optimizer import optimizer_of
from xgem.train.share import Share
from xgem.train.stage import Stage
from xgem.types import CheckpointError

QUIET = LoopOptions(progress=False, tensorboard=False, log_every=1)


class Layers(Stage):
    """A matrix with its bias, and a norm; the loss is a multiple of all weights' sum, so that gradients are equal."""

    name = "layers"

    def __init__(self, factor: float, **settings: Any) -> None:
        common: dict[str, Any] = {"steps": 1, "batch_size": 1, "learning_rate": 0.5, "warmup_steps": 0}
        self.config, self.seed, self.factor = StageConfig(**(common | settings)), 0, factor
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3))
        for parameter in self.module.parameters():
            nn.init.normal_(parameter)
        self.before = {name: value.clone() for name, value in self.module.state_dict().items()}

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {}

    def batch(self, share: Share) -> dict[str, Any]:
        return {}

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.factor * torch.stack([p.sum() for p in module.parameters()]).sum(), {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        return {"loss": 0.0}

    def finish(self, module: nn.Module, root: Path) -> None:
        pass


def state(root: Path, name: str) -> dict[str, Tensor]:
    (folder,) = root.glob("training/layers/checkpoints/step-*")
    return load_file(folder / f"{name}.safetensors")


@pytest.mark.parametrize(("factor", "clip", "norm"), [(10.0, 0.25, 0.25), (0.001, 0.25, None)])
def test_gradients_are_clipped_to_the_norm_of_the_settings(
    factor: float, clip: float, norm: float | None, tmp_path: Path
) -> None:
    """Adam's first mean gradient, a tenth of the gradient that it was given, tells what was left of it."""
    stage = Layers(factor, grad_clip=clip)
    count = sum(p.numel() for p in stage.module.parameters())
    train(stage, tmp_path, QUIET)
    means = [value.flatten() for name, value in state(tmp_path, "optimizer").items() if name.endswith("exp_avg")]
    given = float(torch.cat(means).norm()) / (1 - 0.9)
    assert given == pytest.approx(factor * count**0.5 if norm is None else norm, rel=1e-4)


def test_weights_decay_and_norms_and_biases_do_not(tmp_path: Path) -> None:
    stage = Layers(0.0, weight_decay=0.1)  # without a gradient nothing but decay changes a weight
    train(stage, tmp_path, QUIET)
    after = state(tmp_path, "model")
    left = 1 - 0.5 * 0.1
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(after[name], stage.before[name] * left)
    for name in ("0.bias", "1.weight", "1.bias", "2.bias"):
        assert torch.equal(after[name], stage.before[name])
    assert len(after) == 6


def stepped(kind: str, decayed: str, gradients: list[Tensor], before: Tensor, decays: bool) -> Tensor:
    """``before`` after a step for each gradient, by the papers' algorithms in float64."""
    rate, decay, (first, second), epsilon = 0.1, 0.3, (0.8, 0.95), 1e-8
    decay = decay if decays or decayed == "all" else 0.0
    x, m, v = before.double(), torch.zeros_like(before).double(), torch.zeros_like(before).double()
    for t, g in enumerate(gradients, start=1):
        g = g.double() + (decay * x if kind == "adam" else 0)  # Kingma & Ba 2015, algorithm 1, of an L2 penalty
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
        step = rate * (m / (1 - first**t)) / ((v / (1 - second**t)).sqrt() + epsilon)
        x = x - step - (rate * decay * x if kind == "adamw" else 0)  # Loshchilov & Hutter 2019, algorithm 2
    return x.float()


@pytest.mark.parametrize("decayed", ["matrices", "all"])
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_an_optimizer_steps_as_its_paper_says(kind: Any, decayed: Any) -> None:
    settings: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.95)}
    config = StageConfig(steps=3, batch_size=1, optimizer=kind, decayed=decayed, **settings)
    torch.manual_seed(0)
    module = nn.Linear(3, 4)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    gradients = {name: [torch.randn_like(p) for _ in range(3)] for name, p in module.named_parameters()}
    optimizer = optimizer_of(module, config)
    for t in range(3):
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name][t].clone()
        optimizer.step()
    for name, parameter in module.named_parameters():
        expected = stepped(kind, decayed, gradients[name], before[name], decays=name == "weight")
        torch.testing.assert_close(parameter.detach(), expected)


def test_frozen_parameters_are_left_alone() -> None:
    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    for decayed in ("matrices", "all"):
        config = StageConfig(steps=1, batch_size=1, learning_rate=0.1, decayed=decayed)  # type: ignore[arg-type]
        groups = optimizer_of(module, config).param_groups
        assert [p for group in groups for p in group["params"]] == [module.weight]


def test_runs_of_before_stay_what_they_were_and_another_optimizer_is_another_run(tmp_path: Path) -> None:
    plain, adam = Layers(1.0, steps=2), Layers(1.0, steps=2, optimizer="adam")
    assert not {"optimizer", "decayed"} & plain.config.model_dump().keys()
    assert plain.fingerprint() == Layers(1.0, steps=2, optimizer="adamw", decayed="matrices").fingerprint()
    assert len({one.fingerprint() for one in (plain, adam, Layers(1.0, steps=2, decayed="all"))}) == 3
    train(plain, tmp_path, QUIET)
    with pytest.raises(CheckpointError, match="other settings"):
        train(adam, tmp_path, replace(QUIET, resume=True))


def test_a_resumed_run_with_adam_equals_an_unbroken_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 4, "optimizer": "adam", "decayed": "all", "weight_decay": 0.1}
    for name, until in (("unbroken", None), ("resumed", 0.0)):  # stops after a step
        train(Layers(1.0, **settings), tmp_path / name, replace(QUIET, until=until))
    train(Layers(1.0, **settings), tmp_path / "resumed", replace(QUIET, resume=True))
    for part in ("model", "optimizer"):
        ended = [
            load_file(tmp_path / name / f"training/layers/checkpoints/step-00000004/{part}.safetensors")
            for name in ("unbroken", "resumed")
        ]
        assert ended[0].keys() == ended[1].keys()
        assert all(torch.equal(value, ended[1][key]) for key, value in ended[0].items())


def test_gradient_checkpointing_computes_the_blocks_again_and_the_same_gradients() -> None:
    config: Any = load_preset("debug-chexgen").components["frontal_dit"]
    found: list[tuple[int, list[Tensor]]] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model: Any = random_component(config.model_copy(update={"gradient_checkpointing": checkpointing})).train()
        model.requires_grad_(True)
        calls: list[int] = []
        for block in model.net.pixart.transformer_blocks:
            block.norm1.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        z = torch.randn(2, *config.latent_shape)
        model(z, torch.tensor([10, 500]), model.null(2)).square().sum().backward()
        found.append((len(calls), [p.grad for p in model.parameters() if p.grad is not None]))
    (once, plain), (twice, again) = found
    assert once == config.depth
    assert twice == 2 * once
    assert len(plain) == len(again) > 10
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)
