"""What each of several processes that train together does; started by test_processes.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

Place = tuple[int, int, int, int]
"""Of a process: its rank, how many there are, on how many nodes they are, and the port where they meet."""


def _together(place: Place, work: Callable[[], None]) -> None:
    """Do ``work`` as one of several processes, on the CPU."""
    rank, world, nodes, port = place
    own = world // nodes
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank % own), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(own),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    import torch

    from xgem.train.processes import together

    torch.set_num_threads(1)
    with together():
        work()


def train(place: Place, manifest: Path, root: Path, options: dict[str, Any]) -> None:
    """Train every stage of the golden losses, with ``options`` of the loop."""
    from dataclasses import replace

    from tests.train.test_golden_losses import QUIET, train_presets

    _together(place, lambda: train_presets(manifest, root, options=replace(QUIET, **options)))


def train_each(
    place: Place,
    manifest: Path,
    root: Path,
    stop: int | None,
    options: dict[str, Any],
    compiled: Collection[str] = (),
) -> None:
    """Resume the stage of every folder in ``root``, a checkpoint with all components, up to step ``stop``.

    Once the image codec is trained, its decoder is trained too, which starts from it. Those of ``compiled`` are
    compiled, without a C++ compiler, and compute their activations again.
    """
    from dataclasses import replace
    from functools import partial

    import torch

    from tests.train.test_golden_losses import CASES, QUIET, SEED, tiny
    from xgem.data.manifest import Manifest
    from xgem.train import loop
    from xgem.train.stages import run

    divide = loop._Run._divide

    def divide_seen(one: loop._Run) -> Any:
        without = all(parameter.is_meta for parameter in one.stage.module.parameters())
        assert without == (not one.main and one.stage.name in ("frontal", "lateral", "report", "joint", "control"))
        return divide(one)

    def work() -> None:
        loop._Run._divide = divide_seen  # type: ignore[method-assign]
        if stop is not None:
            loop._Run.ends = lambda one, signals: "stop" if one.state.step == stop else None  # type: ignore[method-assign]
        torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
        for folder in sorted(root.iterdir()):
            case, again = CASES[folder.name], folder.name in compiled
            chosen = replace(QUIET, resume=True, compile=again, checkpoint_activations=again, **options)
            stages = [case.stage, *(["image-decoder"] if case.stage == "image-vae" else [])]
            run(stages, tiny(case.preset, {}), Manifest.read(manifest), folder / case.preset, chosen, seed=SEED)

    _together(place, work)


def train_lines(place: Place, roots: list[Path], full_at: int | None = None) -> None:
    """Train the stage ``Line`` in parts into one folder after the other; a file beside each says how that ended.

    At the checkpoint of step ``full_at`` in the last one, the disk is full for the second process.
    """
    import logging
    import resource
    from dataclasses import replace

    from tests.train.test_loop import RESUME, Line
    from xgem.train import saving
    from xgem.train.loop import train
    from xgem.types import XgemError

    save = saving.Saver.save

    def save_on_full_disk(saver: saving.Saver, state: Any, parts: Any) -> None:
        saver.wait()  # the checkpoint before is written
        if place[0] == 1 and saver.folder.is_relative_to(roots[-1]) and state.step == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        save(saver, state, parts)

    def work() -> None:
        for root in roots:
            file = root.with_name(f"{root.name}-{place[0]}.txt")
            told = logging.FileHandler(file)
            logging.getLogger("xgem").addHandler(told)
            try:
                train(Line(), root, replace(RESUME, sharding="full"))
            except (XgemError, SystemExit) as error:
                file.write_text(f"{type(error).__name__}: {error}")
            logging.getLogger("xgem").removeHandler(told)

    saving.Saver.save = save_on_full_disk  # type: ignore[method-assign]
    _together(place, work)


if __name__ == "__worker__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # before other packages' tests
    function, arguments = globals()["TASK"]
    globals()[function](*arguments)
