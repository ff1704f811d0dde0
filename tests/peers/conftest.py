"""Tiny random pipelines, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers.tiny import tiny


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline; read only."""
    root = tmp_path_factory.mktemp("pipelines")
    return lambda name: root / name if (root / name).is_dir() else tiny(name, root)
