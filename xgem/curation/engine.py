"""Where parts are worked on: in this process, in several of this machine, or in those of a Dask cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from xgem.types import DataError, InputError, OutputError
from xgem.utils.progress import StepBar

Task = Callable[[int], None]
"""Works on the part of this number, and writes it."""


@dataclass(frozen=True)
class Engine:
    """``jobs`` processes of this machine; or, by ``name``, the workers of the Dask cluster at ``scheduler``.

    Workers need the folder of the curation, and those of the sources, under the same names.

    Raises:
        InputError: options that do not belong together.
    """

    name: Literal["local", "dask"] = "local"
    jobs: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if (self.name == "dask") != (self.scheduler is not None):
            raise InputError("--engine dask and --scheduler ADDRESS: expected both or none")
        if self.jobs > 1 and self.name == "dask":
            raise InputError("--jobs: processes of this machine; the workers of a Dask cluster are its own")

    def run(self, task: Task, parts: Sequence[int], title: str) -> None:
        """Work on all ``parts``; the first error ends it. What a part has written stays.

        Raises:
            OutputError, DataError: workers ended, or the cluster cannot be reached.
        """
        with StepBar(title, len(parts)) as bar:
            if self.name == "dask":
                self._on_cluster(task, parts, bar)
            elif self.jobs == 1 or len(parts) < 2:
                for part in parts:
                    task(part)
                    bar.advance()
            else:
                self._in_processes(task, parts, bar)

    def _in_processes(self, task: Task, parts: Sequence[int], bar: StepBar) -> None:
        from concurrent.futures.process import BrokenProcessPool

        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(self.jobs, len(parts)), mp_context=context)
        try:
            for done in as_completed([pool.submit(task, part) for part in parts]):
                done.result()
                bar.advance()
        except BrokenProcessPool as error:
            raise OutputError(
                "a process ended before its work did; start the same command with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _on_cluster(self, task: Task, parts: Sequence[int], bar: StepBar) -> None:
        from distributed import Client, KilledWorker
        from distributed import as_completed as as_done

        try:
            client = Client(self.scheduler, timeout=30, set_as_default=False)
        except (OSError, ValueError) as error:
            raise DataError(f"--scheduler {self.scheduler}: no Dask scheduler answers there ({error})") from error
        futures: Any = []
        try:
            # pure=False: a task that was done for another folder, or before its file was lost, is done again
            futures = client.map(task, list(parts), pure=False)
            for future in as_done(futures, loop=client.loop):
                future.result()
                bar.advance()
        except KilledWorker as error:
            raise OutputError(f"workers of {self.scheduler} ended again and again; look into their logs") from error
        finally:
            with suppress(Exception):
                client.cancel(futures)
            client.close()
