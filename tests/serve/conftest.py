"""A server on a tiny checkpoint, in this process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from xgem.serve.app import make_app
from xgem.serve.settings import Settings
from xgem.serve.state import Server
from xgem.serve.worker import Worker


@pytest.fixture(scope="session", autouse=True)
def own_forkserver() -> None:
    """Processes come from a server that has imported what they need, not from one that other tests have started."""
    server: Any = vars(forkserver)["_forkserver"]
    server._stop()


Work = Callable[[Server], None]


@pytest.fixture
def settings(tmp_path: Path, debug_checkpoint: Path, chexgen_checkpoint: Path) -> Settings:
    return Settings(tmp_path / "server", models=(str(debug_checkpoint), str(chexgen_checkpoint)))


@pytest.fixture
def server(settings: Settings) -> Server:
    return Server.open(settings)


@pytest.fixture
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(make_app(server)) as opened:
        yield opened


@pytest.fixture
def work() -> Work:
    """Generates everything that is queued, in this thread."""

    def until_empty(server: Server) -> None:
        def empty() -> bool:
            counts = server.queue.counts()
            return counts["queued"] + counts["running"] == 0

        Worker(server.settings, "cpu", empty).run()

    return until_empty


def picture(seed: int = 0, size: int = 64) -> bytes:
    """A smooth picture as PNG; nothing of a patient's."""
    y, x = np.mgrid[0:size, 0:size] / size
    values = 128 + 100 * np.sin(6 * x + seed) * np.cos(4 * y)
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "png")
    return file.getvalue()


def contents(folder: Path) -> set[str]:
    """The files of requests in a server's folder."""
    return {
        str(path.relative_to(folder))
        for kind in ("inputs", "results", "previews")
        for path in (folder / kind).rglob("*")
    }


def body(outputs: list[str], inputs: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A request for few steps."""
    return {"inputs": inputs or {}, "outputs": outputs, "options": {"num_inference_steps": 2, **options}}
