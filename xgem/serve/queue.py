"""The queue of requests in the database: accepted once, generated once, whatever ends in between.

A worker claims requests in a transaction, and what it made counts only if they are still its own when it has finished.
Requests of a worker that ended go back to their place in the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from xgem.serve.tables import CANCELLED, DONE, ENDED, FAILED, QUEUED, RUNNING, STATES, Job, Worker

STALE_S: Final = 60.0
"""A worker without a sign of life for so long counts as ended."""
MOST_ATTEMPTS: Final = 5
"""A request during which so many workers ended has failed."""
ALONE_AFTER: Final = 2
"""A request during which so many workers ended shares no batch any more: it may be the cause."""
WATCHED_S: Final = 10.0


@dataclass(frozen=True)
class New:
    """A request that was checked; fields as in :class:`xgem.serve.tables.Job`."""

    id: str
    owner: int | None
    shape: str
    model: str
    seed: int
    request: Mapping[str, Any]
    stored: Mapping[str, Any]


@dataclass(frozen=True)
class Here:
    """A worker: its id, the device it generates with, and its process."""

    id: str
    device: str
    host: str
    pid: int


@dataclass(frozen=True)
class Progress:
    """What a worker learns when it reports a step: which requests are still its own, and which are looked at."""

    own: frozenset[str]
    watched: frozenset[str]


class Queue:
    """The requests in a database.

    Args:
        engine: of :func:`xgem.web.database.open_database`, with this package's migrations.
        clock: the time in seconds since the epoch.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine, self._clock = engine, clock

    def _session(self) -> Session:
        return Session(self.engine, expire_on_commit=False)

    # Of users

    def submit(self, new: New) -> Job:
        """Accept a request."""
        job = Job(
            id=new.id,
            owner=new.owner,
            state=QUEUED,
            shape=new.shape,
            model=new.model,
            seed=new.seed,
            request=dict(new.request),
            stored=dict(new.stored),
            created=self._clock(),
            attempts=0,
            output="",
            step=0,
            steps=0,
            watched=0.0,
        )
        with self._session() as session, session.begin():
            session.add(job)
        return job

    def get(self, identifier: str, owner: int | None) -> Job | None:
        """A request of this owner."""
        with self._session() as session:
            return session.scalar(select(Job).where(Job.id == identifier, _owned(owner)))

    def history(self, owner: int | None, limit: int, before: str | None = None) -> Sequence[Job]:
        """The owner's requests, the newest first; those accepted ``before`` another one."""
        query = select(Job).where(_owned(owner)).order_by(Job.number.desc()).limit(limit)
        with self._session() as session:
            if before is not None:
                query = query.where(Job.number < select(Job.number).where(Job.id == before).scalar_subquery())
            return session.scalars(query).all()

    def position(self, job: Job) -> int | None:
        """How many requests come first; None if it is not waiting."""
        if job.state != QUEUED:
            return None
        with self._session() as session:
            waiting = select(func.count()).where(Job.state == QUEUED, Job.number < job.number)
            return int(session.scalar(waiting) or 0)

    def watch(self, identifier: str) -> None:
        """Note that somebody looks at a request's progress."""
        with self._session() as session, session.begin():
            session.execute(update(Job).where(Job.id == identifier).values(watched=self._clock()))

    def cancel(self, identifier: str) -> bool:
        """Cancel a request that has not ended; whether it was."""
        with self._session() as session, session.begin():
            return self._end(session, [identifier], CANCELLED) == 1

    def delete(self, identifier: str) -> None:
        """Forget a request that has ended."""
        with self._session() as session, session.begin():
            job = session.scalar(select(Job).where(Job.id == identifier, Job.state.in_(ENDED)))
            if job is not None:
                session.delete(job)

    def counts(self) -> dict[str, int]:
        """Requests by state."""
        with self._session() as session:
            found = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        return {**dict.fromkeys(STATES, 0), **{str(state): int(number) for state, number in found}}

    def workers(self) -> Sequence[Worker]:
        """Workers that live."""
        with self._session() as session:
            return session.scalars(select(Worker).where(Worker.heartbeat > self._clock() - STALE_S)).all()

    def times(self, last: int = 100) -> tuple[float, float]:
        """Mean seconds of waiting and of generating, of the ``last`` requests that were done; zeros without any."""
        query = select(Job.created, Job.started, Job.ended).where(Job.state == DONE).order_by(Job.number.desc())
        with self._session() as session:
            found = [row for row in session.execute(query.limit(last)) if row.started and row.ended]
        if not found:
            return 0.0, 0.0
        waited = sum(row.started - row.created for row in found)
        return waited / len(found), sum(row.ended - row.started for row in found) / len(found)

    def identifiers(self) -> set[str]:
        """Of all requests."""
        with self._session() as session:
            return set(session.scalars(select(Job.id)))

    # Of workers

    def beat(self, here: Here, models: Sequence[str]) -> None:
        """A worker's sign of life, with the checkpoints that it has in memory; the first one enters it."""
        with self._session() as session, session.begin():
            session.merge(
                Worker(
                    id=here.id,
                    device=here.device,
                    host=here.host,
                    pid=here.pid,
                    heartbeat=self._clock(),
                    models=list(models),
                )
            )

    def leave(self, worker: str) -> None:
        """A worker has ended: its requests go back to their places in the queue."""
        with self._session() as session, session.begin():
            self._release(session, [worker])

    def release_stale(self) -> None:
        """End every worker that gives no sign of life."""
        with self._session() as session, session.begin():
            old = list(session.scalars(select(Worker.id).where(Worker.heartbeat <= self._clock() - STALE_S)))
            self._release(session, old)

    def _release(self, session: Session, workers: Sequence[str]) -> None:
        lost = (Job.state == RUNNING, Job.worker.in_(workers))
        reason = f"{MOST_ATTEMPTS} workers ended while they generated it; the server's log says why"
        session.execute(
            update(Job)
            .where(*lost, Job.attempts >= MOST_ATTEMPTS)
            .values(state=FAILED, worker=None, ended=self._clock(), error=reason)
        )
        session.execute(update(Job).where(*lost).values(state=QUEUED, worker=None, step=0))
        for worker in session.scalars(select(Worker).where(Worker.id.in_(workers))):
            session.delete(worker)

    def claim(self, worker: str, most: int) -> list[Job]:
        """The first request of the queue, and up to ``most`` in all that can be generated in one batch with it."""
        with self._session() as session, session.begin():
            first = session.scalar(
                # PostgreSQL: rows that no other worker is about to claim. SQLite has one writer at a time.
                select(Job).where(Job.state == QUEUED).order_by(Job.number).limit(1).with_for_update(skip_locked=True)
            )
            if first is None:
                return []
            claimed = [first]
            if most > 1 and first.attempts < ALONE_AFTER:
                alike = select(Job).where(
                    Job.state == QUEUED, Job.shape == first.shape, Job.id != first.id, Job.attempts < ALONE_AFTER
                )
                claimed += session.scalars(alike.order_by(Job.number).limit(most - 1).with_for_update(skip_locked=True))
            for job in claimed:
                job.state, job.worker, job.started = RUNNING, worker, self._clock()
                job.attempts, job.step, job.output, job.error = job.attempts + 1, 0, "", None
            return claimed

    def progress(self, worker: str, jobs: Sequence[str], output: str, step: int, steps: int) -> Progress:
        """Report a step of a batch."""
        mine = (Job.id.in_(jobs), Job.worker == worker, Job.state == RUNNING)
        with self._session() as session, session.begin():
            session.execute(update(Job).where(*mine).values(output=output, step=step, steps=steps))
            found = session.execute(select(Job.id, Job.watched).where(*mine)).all()
        since = self._clock() - WATCHED_S
        return Progress(frozenset(one for one, _ in found), frozenset(one for one, seen in found if seen > since))

    def put_back(self, worker: str, jobs: Sequence[str], *, alone: bool) -> None:
        """Requests that were not finished go back to the queue; ``alone`` ones will share no batch."""
        with self._session() as session, session.begin():
            for job in session.scalars(select(Job).where(Job.id.in_(jobs), Job.worker == worker, Job.state == RUNNING)):
                job.state, job.worker, job.step = QUEUED, None, 0
                job.attempts = ALONE_AFTER if alone else job.attempts - 1

    def finish(self, worker: str, job: str, publish: Callable[[], None]) -> bool:
        """A request is done: ``publish`` makes its results visible, unless it is no longer this worker's.

        A process that ends between the two makes the results again, and replaces them.
        """
        with self._session() as session, session.begin():
            if self._end(session, [job], DONE, worker) != 1:
                return False
            publish()
            return True

    def fail(self, worker: str, job: str, reason: str) -> None:
        """A request cannot be generated, in one line."""
        with self._session() as session, session.begin():
            self._end(session, [job], FAILED, worker, reason)

    def _end(
        self, session: Session, jobs: Sequence[str], state: str, worker: str | None = None, reason: str | None = None
    ) -> int:
        query = update(Job).where(Job.id.in_(jobs), Job.state.in_((QUEUED, RUNNING)))
        if worker is not None:
            query = query.where(Job.worker == worker, Job.state == RUNNING)
        ended: Any = session.execute(query.values(state=state, ended=self._clock(), error=reason, worker=None))
        return int(ended.rowcount)


def _owned(owner: int | None) -> Any:
    return Job.owner.is_(None) if owner is None else Job.owner == owner
