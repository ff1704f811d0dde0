"""Keeps a worker running on each device: one that ends is started again, and its requests go back to the queue."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from xgem.serve.queue import Queue
from xgem.serve.reading import context
from xgem.serve.settings import Settings
from xgem.serve.worker import run_worker
from xgem.utils.files import one_line

logger = logging.getLogger(__name__)
LOOK_S: Final = 0.2
MOST_WAIT_S: Final = 30.0


class Supervisor:
    """Starts workers, one for each of ``devices``, in processes of their own; a context manager."""

    def __init__(self, settings: Settings, queue: Queue, devices: Sequence[str]) -> None:
        self.settings, self.queue = settings, queue
        self._context = context()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._keep, args=(device,)) for device in devices]

    def __enter__(self) -> Supervisor:
        # Workers of this machine that a crash of the server left in the table
        host = socket.gethostname()
        for worker in self.queue.workers():
            if worker.host == host and not _lives(worker.pid):
                self.queue.leave(worker.id)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _keep(self, device: str) -> None:
        """One device's worker, again and again; where it ends before it has begun, with pauses that grow."""
        wait = 0.0
        while not self._ending.wait(wait):
            process: Any = self._context.Process(target=run_worker, args=(self.settings, device))
            process.start()
            while process.is_alive() and not self._ending.is_set():
                process.join(LOOK_S)
            if self._ending.is_set():
                process.terminate()
                process.join(MOST_WAIT_S)
                process.kill()
                process.join()
                self._release(process.pid)
                return
            had_begun = self._release(process.pid)
            wait = 0.0 if had_begun else min(max(1.0, 2 * wait), MOST_WAIT_S)
            logger.warning("worker on %s ended (%s): started again", device, _ending(process.exitcode))

    def _release(self, pid: int) -> bool:
        """Give back what the worker of an ended process had; whether it had begun to work."""
        found = False
        try:
            for worker in self.queue.workers():
                if worker.pid == pid and worker.host == socket.gethostname():
                    self.queue.leave(worker.id)
                    found = True
        except SQLAlchemyError as error:  # its requests go back when its heartbeat is old
            logger.warning("database: %s", one_line(error))
        return found


def _lives(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
