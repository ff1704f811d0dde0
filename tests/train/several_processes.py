"""What each of several processes that train together does; started by test_processes.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _together(rank: int, world: int, port: int, work: Callable[[], None]) -> None:
    """Do ``work`` as process ``rank`` of ``world``, on the CPU."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    import torch

    from xgem.train.processes import together

    torch.set_num_threads(1)
    with together():
        work()


def train(rank: int, world: int, port: int, manifest: Path, root: Path, options: dict[str, Any]) -> None:
    """Train every stage of the golden losses, with ``options`` of the loop."""
    from dataclasses import replace

    from tests.train.test_golden_losses import QUIET, train_presets

    _together(rank, world, port, lambda: train_presets(manifest, root, options=replace(QUIET, **options)))


def train_each(
    rank: int, world: int, port: int, manifest: Path, root: Path, stop: int | None, options: dict[str, Any]
) -> None:
    """Resume the stage of every folder in ``root``, a checkpoint with all components, up to step ``stop``."""
    from dataclasses import replace

    from tests.train.test_golden_losses import CASES, QUIET, SEED, tiny
    from xgem.data.manifest import Manifest
    from xgem.train import loop
    from xgem.train.stages import run

    def work() -> None:
        if stop is not None:
            loop._Run.ends = lambda one, signals: "stop" if one.state.step == stop else None  # type: ignore[method-assign]
        chosen = replace(QUIET, resume=True, **options)
        for folder in sorted(root.iterdir()):
            case = CASES[folder.name]
            run([case.stage], tiny(case.preset, {}), Manifest.read(manifest), folder / case.preset, chosen, seed=SEED)

    _together(rank, world, port, work)


if __name__ == "__worker__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # before other packages' tests
    function, arguments = globals()["TASK"]
    globals()[function](*arguments)
