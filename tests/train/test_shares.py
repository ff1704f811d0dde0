"""Each process takes its own part of a batch, in every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_golden_losses import CASES, tiny, write_data
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.reid import PRESETS, Patients, ReidStage
from xgem.train.stages import make_stage

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


def studies_of(stage: Any, batch_of: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a batch was made from: indices of studies, texts, or images."""
    seen: list[Any] = []
    if hasattr(stage, "_collate"):
        original = stage._collate
        with monkeypatch.context() as patched:
            # The studies are the one list of numbers among the arguments
            patched.setattr(
                stage,
                "_collate",
                lambda *given: (
                    seen.extend(next(x for x in given if isinstance(x, list) and x and isinstance(x[0], int)))
                    or original(*given)
                ),
            )
            stage.batch(*batch_of)
        return seen
    batch = stage.batch(*batch_of)
    return batch["texts"] if "texts" in batch else [image.numpy().tobytes() for image in batch["x"]]


@pytest.mark.parametrize("name", ORDERED)
def test_processes_share_each_batch_in_the_order_of_one(
    name: str, contexts: dict[str, StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage: Any = make_stage(name, contexts["debug"])
    alone = [studies_of(stage, (step, 0, 1), monkeypatch) for step in range(8)]
    shared = [[studies_of(stage, (step, rank, 2), monkeypatch) for rank in range(2)] for step in range(4)]
    assert all(first != second for first, second in shared)
    if name == "joint":  # whose groups of outputs are drawn by the step
        assert not set(shared[0][0]) & set(shared[0][1])
    else:
        assert [part for parts in shared for part in parts] == alone


@pytest.mark.parametrize("name", ["control", "reid"])
def test_where_processes_draw_by_themselves_they_draw_differently(
    name: str, contexts: dict[str, StageContext], manifest: Manifest, tmp_path: Path
) -> None:
    if name == "control":
        stage: Any = make_stage(name, contexts["debug-chexgen"])
        key = "z0"
    else:
        patients = Patients.load(manifest, ("train",), 32, tmp_path, progress=False)
        stage, key = ReidStage(PRESETS["debug"], patients, patients, 0), "first"
    for step in range(3):
        drawn = []
        for rank in (0, 1, 0):
            torch.manual_seed(0)  # augmentation apart
            drawn.append(stage.batch(step, rank, 2)[key])
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[0], drawn[2])
