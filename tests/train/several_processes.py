"""What each of several processes that train together does; started by test_processes.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


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
    torch.distributed.destroy_process_group()


def train(rank: int, world: int, port: int, manifest: Path, root: Path, micro_batch_size: int | None) -> None:
    """Train every stage of the golden losses."""
    from tests.train.test_golden_losses import train_presets

    _together(rank, world, port, lambda: train_presets(manifest, root, micro_batch_size=micro_batch_size))


def train_each(
    rank: int, world: int, port: int, manifest: Path, root: Path, stop: int | None, micro_batch_size: int | None
) -> None:
    """Resume the stage of every folder in ``root``, a checkpoint with all components, up to step ``stop``."""
    from dataclasses import replace

    from tests.train.test_golden_losses import CASES, QUIET, SEED, tiny
    from xgem.data.manifest import Manifest
    from xgem.train import loop
    from xgem.train.stages import run

    def work() -> None:
        if stop is not None:
            loop._Run.time_is_up = lambda one: one.state.step == stop  # type: ignore[method-assign]
        options = replace(QUIET, resume=True, micro_batch_size=micro_batch_size)
        for folder in sorted(root.iterdir()):
            case = CASES[folder.name]
            run([case.stage], tiny(case.preset, {}), Manifest.read(manifest), folder / case.preset, options, seed=SEED)

    _together(rank, world, port, work)


if __name__ == "__worker__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # before other packages' tests
    function, arguments = globals()["TASK"]
    globals()[function](*arguments)
