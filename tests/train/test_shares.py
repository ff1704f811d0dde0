"""A batch is the same however it is divided among processes and passes, in every stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.train.batches import batch_of
from tests.train.test_golden_losses import CASES, tiny, write_data
from xgem.configs.preset import StageConfig
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.passes import shares_of
from xgem.train.stage import ComparingStage
from xgem.train.stages import make_stage
from xgem.types import ConfigError

ORDERED = ("image-vae", "image-decoder", "clip", "report-vae", "frontal", "lateral", "report", "joint")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.read(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def contexts(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageContext]:
    found = {}
    for name in ("debug", "debug-chexgen"):
        # No sample is drawn from all others by chance: what remains is the order
        plain = {key: {"loss": {}} for key in CASES} | {"report-vae": {"loss": {"recombined": 0.0}}}
        preset, root = tiny(name, plain), tmp_path_factory.mktemp(name) / "checkpoint"
        random_checkpoint(root, preset, seed=1)
        train, val = (
            Corpus.load(manifest, split, preset, root / "cache", progress=False) for split in ("train", "val")
        )
        found[name] = StageContext(preset, train, val, root, 0)
    return found


def values_of(stage: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What each sample of a batch contributes to the loss; of stages whose loss is a mean, the loss itself."""
    with torch.no_grad():
        if isinstance(stage, ComparingStage):
            return stage.per_sample(stage.module, batch)
        return {"loss": stage.loss(stage.module, batch)[0][None]}


CASES_OF_PRESETS = [*(f"debug {name}" for name in ORDERED), "debug-chexgen frontal", "debug-chexgen control"]


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("name", CASES_OF_PRESETS)
def test_parts_of_a_batch_are_the_whole(name: str, step: int, contexts: dict[str, StageContext]) -> None:
    preset, _, kind = name.partition(" ")
    stage: Any = make_stage(kind, contexts[preset])
    stage.module.train()
    for part in stage.module.modules():
        if isinstance(part, torch.nn.Dropout):  # drawn by part
            part.p = 0.0
    size = stage.config.batch_size
    whole = values_of(stage, batch_of(stage, step))
    for count in (2, 3, 6):
        share = size // count
        parts = [values_of(stage, batch_of(stage, step, first, share)) for first in range(0, size, share)]
        for key, value in whole.items():
            found = torch.cat([part[key] for part in parts])
            found = found if len(found) == len(value) else found.mean()[None]
            torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
    other = values_of(stage, batch_of(stage, step + 1))
    assert any(not torch.allclose(other[key], value) for key, value in whole.items() if key in other)


def test_a_batch_is_divided_evenly_or_refused(contexts: dict[str, StageContext]) -> None:
    stage = make_stage("image-vae", contexts["debug"])
    size = stage.config.batch_size  # 8
    shares = [share for process in range(2) for share in shares_of(stage, process, 2, 3)]
    assert [(share.first, share.size, share.batch) for share in shares] == [(k, 2, size) for k in range(0, size, 2)]
    with pytest.raises(ConfigError, match=r"batch of 8 .* among 3 processes: start 1, 2, 4, 8"):
        shares_of(stage, 0, 3, None)


def test_earlier_parts_of_a_batch_are_one_batch() -> None:
    settings = {"steps": 1, "batch_size": 4, "learning_rate": 0.1}
    assert StageConfig.model_validate(settings | {"gradient_accumulation": 3}).batch_size == 12
    for wrong in ("2", 0):
        with pytest.raises(ValueError, match="gradient_accumulation"):
            StageConfig.model_validate(settings | {"gradient_accumulation": wrong})
    with pytest.raises(ValueError, match="batch_size"):
        StageConfig.model_validate({"gradient_accumulation": 2})
