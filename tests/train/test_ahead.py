"""Batches that workers make ahead are those of the process itself, in the same order, with the same errors."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.test_golden_losses import COMMON, QUIET, SEED, read_log, tiny, write_data
from xgem.configs.preset import Preset
from xgem.data.manifest import Manifest
from xgem.data.stored_pixels import StoredPixels
from xgem.train.stages import run
from xgem.types import CheckpointError, DataError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.read(write_data(tmp_path_factory.mktemp("data")))


def preset(workers: int, **changes: Any) -> Preset:
    return tiny("debug", {name: {"workers": workers} | changes for name in ("image-vae", "clip")})


@pytest.mark.parametrize(("stage", "parts"), [("image-vae", None), ("image-vae", 4), ("clip", 4)])
def test_losses_are_the_same(stage: str, parts: int | None, manifest: Manifest, tmp_path: Path) -> None:
    logs = []
    for workers in (0, 2):
        root = tmp_path / str(workers)
        options = replace(QUIET, micro_batch_size=parts)
        run([stage], preset(workers), manifest, root, options, seed=SEED)
        logs.append(read_log(root / "training" / stage))
    assert logs[0] == logs[1]


def test_a_run_is_resumed_with_other_workers(manifest: Manifest, tmp_path: Path) -> None:
    run(["image-vae"], preset(0), manifest, tmp_path / "whole", QUIET, seed=SEED)
    stopping = replace(QUIET, resume=True, until=time.monotonic())
    run(["image-vae"], preset(0), manifest, tmp_path / "parts", stopping, seed=SEED)
    run(["image-vae"], preset(2), manifest, tmp_path / "parts", replace(QUIET, resume=True), seed=SEED)
    logs = [read_log(tmp_path / name / "training" / "image-vae") for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert COMMON["steps"] == len(logs[0]["loss"])
    changed = preset(2, learning_rate=1e-3)
    with pytest.raises(CheckpointError):  # other settings make another run
        run(["image-vae"], changed, manifest, tmp_path / "parts", replace(QUIET, resume=True), seed=SEED)


def test_errors_of_workers_are_those_of_the_stage(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StoredPixels._read

    def refuse(self: StoredPixels, row: int) -> Any:
        import torch.utils.data

        if torch.utils.data.get_worker_info() is not None:
            raise DataError("image 1 was altered")
        return read(self, row)

    monkeypatch.setattr(StoredPixels, "_read", refuse)
    with pytest.raises(DataError, match=r"^image 1 was altered$"):
        run(["image-vae"], preset(1), manifest, tmp_path / "out", QUIET, seed=SEED)
