"""A tiny checkpoint of random weights, and the command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xgem.cli import main
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit code, and what it wrote where."""

    code: int
    out: str
    err: str


Xgem = Callable[..., Ran]


@pytest.fixture
def xgem(capsys: pytest.CaptureFixture[str]) -> Xgem:
    def run(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model") / "random"
    random_checkpoint(root, load_preset("debug"))
    return root


@pytest.fixture
def cxr(tmp_path: Path) -> Path:
    """A smooth synthetic image; nothing of a patient's."""
    y, x = np.mgrid[0:64, 0:64] / 64
    Image.fromarray(np.uint8(128 + 100 * np.sin(6 * x) * np.cos(4 * y))).save(tmp_path / "cxr.png")
    return tmp_path / "cxr.png"
