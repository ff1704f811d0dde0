"""A worker: claims requests from the queue, generates them in batches on one device, and puts the results in place."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from xgem.serve.queue import Here, Queue
from xgem.serve.settings import Settings
from xgem.serve.tables import MIGRATIONS, Job
from xgem.types import XgemError
from xgem.utils.files import one_line, replacing
from xgem.web.database import open_database

if TYPE_CHECKING:
    from xgem.pipeline.generation import Generation
    from xgem.pipeline.pipeline import XgemPipeline
    from xgem.pipeline.privacy_gate import PrivacyGate
    from xgem.pipeline.request import Request

logger = logging.getLogger(__name__)
IDLE_S: Final = 0.2
BEAT_S: Final = 5.0
REPORT_S: Final = 0.1
"""Seconds between two looks at the database while a request is sampled, if steps are faster than that."""
PREVIEW_SHARE: Final = 0.1
"""Previews may take such a part of the time."""


class _Stopped(Exception):
    """No request of the batch is wanted any more, or the worker was told to end."""


class Worker:
    """Generates with one device until it is told to stop.

    Args:
        settings: the server's.
        device: its name; None takes the fastest.
        stopping: whether to end, after the current step.
    """

    def __init__(self, settings: Settings, device: str | None, stopping: Callable[[], bool]) -> None:
        from xgem.utils.devices import resolve_device

        self.settings, self.device, self.stopping = settings, str(resolve_device(device)), stopping
        self.queue = Queue(open_database(settings.database_url, MIGRATIONS))
        self.here = Here(uuid.uuid4().hex, self.device, socket.gethostname(), os.getpid())
        self.id = self.here.id
        self.queue.beat(self.here, [])
        self.pipelines: dict[str, XgemPipeline] = {}
        self.gates: dict[str, PrivacyGate] = {}

    def run(self) -> None:
        """Work until told to stop; what was begun then goes back to the queue."""
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            while not self.stopping():
                jobs = self._claim()
                if jobs:
                    self._work(jobs)
                else:
                    time.sleep(IDLE_S)
        finally:
            shutil.rmtree(self.settings.partial(self.id), ignore_errors=True)
            self.queue.leave(self.id)

    def _claim(self) -> list[Job]:
        try:
            return self.queue.claim(self.id, self.settings.batch_size)
        except SQLAlchemyError as error:  # a database that is away for a moment
            logger.warning("database: %s", one_line(error))
            time.sleep(BEAT_S)
            return []

    def _beat(self) -> None:
        while not self.stopping():
            try:
                self.queue.release_stale()
                self.queue.beat(self.here, list(self.pipelines))
            except SQLAlchemyError as error:
                logger.warning("database: %s", one_line(error))
            time.sleep(BEAT_S)

    def _work(self, jobs: Sequence[Job]) -> None:
        """Generate a batch; whatever goes wrong ends requests, not the worker."""
        names = [job.id for job in jobs]
        try:
            for job, generation in zip(jobs, self._generate(jobs), strict=True):
                self._publish(job, generation)
        except _Stopped:
            self.queue.put_back(self.id, names, alone=False)
        except Exception as error:
            if len(jobs) > 1:  # one of them is the cause: each by itself
                self.queue.put_back(self.id, names, alone=True)
                return
            if isinstance(error, XgemError):
                reason = one_line(error)
            else:
                logger.exception("request %s", names[0])
                reason = f"internal error ({type(error).__name__}); the server's log has it"
            self.queue.fail(self.id, names[0], reason)
        finally:
            for name in names:
                shutil.rmtree(self.settings.previews(name), ignore_errors=True)

    def _generate(self, jobs: Sequence[Job]) -> list[Generation]:
        from xgem.pipeline.options import CallOptions
        from xgem.serve.requests import opened

        first = jobs[0]
        pipeline = self._pipeline(first.model)
        given = [opened(job.stored, self.settings.inputs(job.id)) for job in jobs]
        inputs, outputs = [one for one, _ in given], first.request["outputs"]
        starts = {kind: [start[kind] for _, start in given] for kind in given[0][1]}
        options = {**first.request["options"], **starts, "seed": [job.seed for job in jobs]}
        watcher = _Watcher(self, jobs, pipeline, pipeline.checked(inputs, outputs, CallOptions.parse(options)))
        gate = self._gate(pipeline, outputs)
        return pipeline(inputs, outputs, progress=False, callback_on_step_end=watcher, privacy_gate=gate, **options)

    def _pipeline(self, name: str) -> XgemPipeline:
        if name not in self.pipelines:
            from xgem.checkpoints.locate import locate
            from xgem.pipeline.pipeline import XgemPipeline

            places = {location.name: location for location in map(locate, self.settings.models)}
            self.pipelines[name] = XgemPipeline(places[name], device=self.device, dtype=self.settings.dtype)
            self.queue.beat(self.here, list(self.pipelines))
        return self.pipelines[name]

    def _gate(self, pipeline: XgemPipeline, outputs: Sequence[str]) -> PrivacyGate | None:
        """The server's privacy gate with its index for this checkpoint and these outputs, made once."""
        if self.settings.privacy_gate is None:
            return None
        from xgem.pipeline.privacy_gate import PrivacyGate

        key = f"{pipeline.name} {','.join(outputs)}"
        if key not in self.gates:
            self.gates[key] = PrivacyGate.open(self.settings.privacy_gate).indexed(pipeline, outputs)
        return self.gates[key]

    def _publish(self, job: Job, generation: Generation) -> None:
        """Results become visible whole, and only if the request is still this worker's."""
        partial = self.settings.partial(self.id)
        shutil.rmtree(partial, ignore_errors=True)
        for form in ("png", "dicom"):
            generation.save(partial / form, format=form)
        target = self.settings.results(job.id)

        def publish() -> None:
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)

        self.queue.finish(self.id, job.id, publish)


class _Watcher:
    """A batch's callback: reports steps, writes previews of requests that are looked at, ends what is cancelled."""

    def __init__(self, worker: Worker, jobs: Sequence[Job], pipeline: XgemPipeline, request: Request) -> None:
        self.worker, self.jobs, self.pipeline = worker, jobs, pipeline
        self.done, self.total = 0, _steps(request)
        self._reported = self._shown = self._cost = 0.0

    def __call__(self, pipeline: object, step: int, timestep: int, values: Mapping[str, Any]) -> None:
        del pipeline, step, timestep
        self.done += 1
        if self.worker.stopping():
            raise _Stopped
        now = time.monotonic()
        if now - self._reported < REPORT_S:
            return
        self._reported = now
        names = [job.id for job in self.jobs]
        progress = self.worker.queue.progress(
            self.worker.id, names, values["output"], min(self.done, self.total), self.total
        )
        if not progress.own:
            raise _Stopped
        if progress.watched and (now - self._shown) * PREVIEW_SHARE >= self._cost:
            self._preview(values, progress.watched)
            self._shown, self._cost = time.monotonic(), time.monotonic() - now

    def _preview(self, values: Mapping[str, Any], watched: frozenset[str]) -> None:
        """Decode what the samples of watched requests are expected to become."""
        chosen = [(at, row) for at, row in enumerate(values["rows"]) if self.jobs[row.item].id in watched]
        made = self.pipeline.decode(values["output"], values["estimate"][[at for at, _ in chosen]])
        for (_, row), sample in zip(chosen, made, strict=True):
            stem = self.worker.settings.previews(self.jobs[row.item].id) / f"{values['output']}-{row.number}"
            if isinstance(sample, str):
                with replacing(stem.with_suffix(".txt")) as file:
                    file.write_text(sample, encoding="utf-8")
            else:
                with replacing(stem.with_suffix(".png")) as file:
                    sample.save(file, "png")


def _steps(request: Request) -> int:
    """Steps of all outputs and batches."""
    options = request.options
    rows, candidates = len(request.items) * options.num_samples, options.num_candidates
    at_once = max(1, options.batch_size // candidates)  # rows of a batch with all their candidates
    batches = -(-rows // at_once) * -(-at_once * candidates // options.batch_size) if candidates > 1 else 0
    batches = batches or -(-rows // options.batch_size)
    skipped = sum(request.first_step for name in request.outputs if name in request.images[0])
    return batches * (len(request.outputs) * request.steps - skipped)


def run_worker(settings: Settings, device: str | None) -> None:
    """The whole life of a worker's process: until SIGTERM, or until the server that started it is gone."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN if multiprocessing.parent_process() else lambda *_: told.set())
    server = multiprocessing.parent_process()
    logging.basicConfig(format="xgem: %(levelname)s: worker: %(message)s")
    Worker(settings, device, lambda: told.is_set() or (server is not None and not server.is_alive())).run()
