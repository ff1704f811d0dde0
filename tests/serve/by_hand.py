"""A server with the page whose only worker is the test: it moves requests on, and puts in place what is to be shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from xgem.pipeline.generation import Generation
from xgem.serve.requests import stored_files
from xgem.serve.state import Server
from xgem.serve.tables import Job
from xgem.web.run import address_of, listen

HAND = "hand"


@contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    listening = listen("127.0.0.1", port)
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield address_of(listening)
    finally:
        running.should_exit = True
        thread.join(10)
        listening.close()


def ramp() -> Image.Image:
    """Every grey level in a column of its own: (256, 256)."""
    return Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))


@dataclass
class ByHand:
    """What a test does with the server at ``url``."""

    server: Server
    url: str

    @property
    def jobs(self) -> list[Job]:
        """All requests, in the order in which they were sent."""
        return list(self.server.queue.history(None, 200))[::-1]

    @property
    def last(self) -> Job:
        """The latest request."""
        return self.jobs[-1]

    def empty(self) -> None:
        """Forget all requests."""
        for job in self.jobs:
            self.server.queue.cancel(job.id)
            self.server.queue.delete(job.id)
            self.server.settings.remove(job.id)

    def files(self, job: Job) -> dict[str, bytes]:
        """The files that were sent, by field."""
        folder = self.server.settings.inputs(job.id)
        return {field: (folder / name).read_bytes() for field, name in stored_files(job.stored).items()}

    def step(self, step: int, steps: int) -> None:
        """The last request is at this step, with previews of its first samples."""
        self.server.queue.claim(HAND, 1)
        job, folder = self.last, self.server.settings.previews(self.last.id)
        folder.mkdir(parents=True, exist_ok=True)
        for output in job.request["outputs"]:
            self.server.queue.progress(HAND, [job.id], output, step, steps)
            if output == "report":
                (folder / "report-0.txt").write_text("Clear.", encoding="utf-8")
            else:
                ramp().save(folder / f"{output}-0.png")

    def done(self) -> None:
        """The last request ends: every picture is a ramp, every report the same."""
        self.server.queue.claim(HAND, 1)
        job, target = self.last, self.server.settings.results(self.last.id)
        count = job.request["options"].get("num_samples", 1)
        values: dict[str, list[Any]] = {
            name: ["Clear." if name == "report" else ramp()] * count for name in job.request["outputs"]
        }
        samples = {name: [{"output": name, "sample": i} for i in range(count)] for name in values}
        generation = Generation(values, {"seed": job.seed, "num_samples": count}, samples)
        generation.save(target / "png")
        assert self.server.queue.finish(HAND, job.id, lambda: None)

    def fail(self, reason: str) -> None:
        """The last request fails."""
        self.server.queue.claim(HAND, 1)
        self.server.queue.fail(HAND, self.last.id, reason)
