"""What all tests share: the real studies where they are, one thread a worker, the same random numbers every time,
tiny checkpoints, and the command line run in this process."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# Before anything imports torch: the suite runs one worker a core, and tests never ask a hub for anything.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from xgem.configs.preset import Preset

PROJECT = Path(__file__).resolve().parent.parent

settings.register_profile("xgem", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xgem")


def real_data() -> Path:
    """The folder of the real studies, there or not: ``XGEM_DATA``, or ``../shared/data`` beside the project."""
    return (PROJECT / os.environ.get("XGEM_DATA", "../shared/data")).resolve()


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real studies; the test is skipped where they are absent."""
    folder = real_data()
    if not folder.is_dir():
        pytest.skip(f"no real studies at {folder.name!r}: set XGEM_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """Made-up files with odd headers, depths and rows, beside the real studies; the test is skipped where absent."""
    folder = real_data().parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no made-up cases at {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Evaluations of this process keep nothing in the user's cache, and find nothing there."""
    os.environ["XGEM_CACHE"] = str(tmp_path_factory.mktemp("xgem-cache"))


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Seeds every generator of the process, and keeps torch (once it is imported) to one thread."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- libraries still draw from the global generator
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def debug_preset() -> Preset:
    """The preset of tiny sizes."""
    from xgem.configs.preset import load_preset

    return load_preset("debug")


@pytest.fixture(scope="session")
def debug_parts(debug_preset: Preset) -> dict[str, Any]:
    """Its components with random weights, in evaluation mode; shared, so copy one before changing it."""
    import torch

    from xgem.convert.random_init import random_component

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: random_component(config) for name, config in debug_preset.components.items()}


@pytest.fixture(scope="session")
def debug_checkpoint(tmp_path_factory: pytest.TempPathFactory, debug_preset: Preset) -> Path:
    """A checkpoint of the tiny preset with random weights; read only."""
    from xgem.convert.random_init import random_checkpoint

    root = tmp_path_factory.mktemp("model") / "random"
    random_checkpoint(root, debug_preset)
    return root


@pytest.fixture(scope="session")
def chexgen_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny preset with transformer and ControlNet, with random weights; read only."""
    from xgem.configs.preset import load_preset
    from xgem.convert.random_init import random_checkpoint

    root = tmp_path_factory.mktemp("model") / "control"
    random_checkpoint(root, load_preset("debug-chexgen"))
    return root


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The address of a server that forks processes in which xgem is imported already (``tests/forked.py``)."""
    from tests.forked import server

    address = tmp_path_factory.mktemp("forked") / "socket"
    with server(address):
        yield address


class Ran(NamedTuple):
    """What a command did: its exit code, and what it wrote where."""

    code: int
    out: str
    err: str


@pytest.fixture
def xgem(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command in this process."""
    from xgem.cli import main

    def run(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


LONGEST = (
    "train/test_processes.py",
    "test_docs.py",
    "test_readme.py",
    "train/test_launchers.py",
    "cohort/test_resume.py",
    "train/test_plan.py",
    "test_benchmarks.py",
    "serve/test_restart.py",
    "train/test_train_gpu.py",
    "serve/test_browser.py",
    "eval/test_with_pipeline.py",
    "cli/test_plan.py",
    "train/test_encoded.py",
)
"""The files that take longest: begun first, so that no job waits for them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; skips, with a reason, what this machine cannot run."""
    tests = Path(__file__).parent
    rank = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            skip = pytest.mark.skip(reason="needs a CUDA device")
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(skip)
    if not os.environ.get("XGEM_LONG"):
        skip = pytest.mark.skip(reason="takes more than a minute: set XGEM_LONG to 1")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)
    if not real_data().is_dir():
        skip = pytest.mark.skip(reason="needs the real studies: set XGEM_DATA to their folder")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(skip)
