"""The queue: in order, in batches, once; and what it does when workers end."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from tests.postgres import postgres_server
from xgem.serve.queue import ALONE_AFTER, MOST_ATTEMPTS, STALE_S, Here, New, Queue
from xgem.serve.tables import MIGRATIONS, Base
from xgem.web.database import open_database, sqlite_url


class Clock:
    """A time that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database."""
    sqlite = request.param == "sqlite"
    url = sqlite_url(tmp_path / "q.sqlite") if sqlite else request.getfixturevalue("postgres")
    opened = open_database(url, MIGRATIONS)
    yield opened
    with opened.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    opened.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(engine: Engine, clock: Clock) -> Queue:
    return Queue(engine, clock)


def submit(queue: Queue, shape: str = "a", owner: int | None = None) -> str:
    identifier = uuid.uuid4().hex
    queue.submit(New(identifier, owner, shape, "m", 2**63 - 1, {"outputs": ["frontal"], "options": {}}, {}))
    return identifier


def test_migrations_make_the_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_requests_are_claimed_in_order_with_those_of_their_shape(queue: Queue) -> None:
    made = [submit(queue, shape) for shape in "abaaba"]
    assert [queue.position(job) for name in made[:3] if (job := queue.get(name, None))] == [0, 1, 2]
    assert [job.id for job in queue.claim("w", 3)] == [made[0], made[2], made[3]]
    assert [job.id for job in queue.claim("w", 3)] == [made[1], made[4]]
    assert [job.id for job in queue.claim("w", 1)] == [made[5]]
    assert queue.claim("w", 3) == []
    assert queue.counts()["running"] == 6
    found = queue.get(made[0], None)
    assert found is not None
    assert (found.seed, found.attempts, queue.position(found)) == (2**63 - 1, 1, None)


def test_several_claim_at_once_and_none_twice(queue: Queue) -> None:
    made = {submit(queue, str(k % 3)) for k in range(60)}
    claimed: list[str] = []

    def claim() -> None:
        while jobs := queue.claim(uuid.uuid4().hex, 4):
            claimed.extend(job.id for job in jobs)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(made)


def test_what_a_worker_leaves_goes_back_to_its_place(queue: Queue, clock: Clock) -> None:
    first, second = submit(queue), submit(queue)
    queue.beat(Here("w", "cpu", "host", 1), [])
    queue.claim("w", 1)
    queue.leave("w")
    assert [job.id for job in queue.claim("v", 2)] == [first, second]
    queue.beat(Here("v", "cpu", "host", 2), [])
    clock.now += STALE_S - 1
    queue.release_stale()
    assert queue.counts()["running"] == 2
    clock.now += 2
    assert queue.workers() == []
    queue.release_stale()
    assert queue.counts()["queued"] == 2


def test_only_the_owner_of_a_claim_finishes_it_and_only_once(queue: Queue) -> None:
    name = submit(queue)
    queue.beat(Here("slow", "cpu", "host", 1), [])
    queue.claim("slow", 1)
    queue.leave("slow")
    queue.claim("fast", 1)
    published: list[str] = []
    assert not queue.finish("slow", name, lambda: published.append("slow"))
    assert queue.finish("fast", name, lambda: published.append("fast"))
    assert not queue.finish("fast", name, lambda: published.append("again"))
    assert published == ["fast"]
    queue.fail("fast", name, "too late")
    done = queue.get(name, None)
    assert done is not None
    assert (done.state, done.error) == ("done", None)


def test_results_that_cannot_be_published_leave_the_request_running(queue: Queue) -> None:
    name = submit(queue)
    queue.claim("w", 1)

    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        queue.finish("w", name, full)
    assert queue.counts()["running"] == 1


def test_a_request_that_ends_workers_is_isolated_and_then_fails(queue: Queue) -> None:
    bad, good = submit(queue), submit(queue)
    for attempt in range(MOST_ATTEMPTS):
        claimed = [job.id for job in queue.claim(str(attempt), 8)]
        assert claimed == ([bad, good] if attempt < ALONE_AFTER else [bad])
        queue.beat(Here(str(attempt), "cpu", "host", 1), [])
        queue.leave(str(attempt))
    failed = queue.get(bad, None)
    assert failed is not None
    assert failed.state == "failed"
    assert "5 workers ended" in str(failed.error)
    assert [job.id for job in queue.claim("w", 8)] == [good]


def test_cancelling(queue: Queue) -> None:
    waiting, running = submit(queue, "a"), submit(queue, "b")
    assert queue.cancel(waiting)
    assert not queue.cancel(waiting)
    assert [job.id for job in queue.claim("w", 1)] == [running]
    assert queue.progress("w", [running], "frontal", 1, 2).own == {running}
    assert queue.cancel(running)
    assert queue.progress("w", [running], "frontal", 2, 2).own == frozenset()
    assert not queue.finish("w", running, lambda: pytest.fail("published"))
    queue.delete(running)
    assert queue.get(running, None) is None


def test_previews_are_for_those_who_look(queue: Queue, clock: Clock) -> None:
    seen, unseen = submit(queue), submit(queue)
    queue.claim("w", 2)
    queue.watch(seen)
    assert queue.progress("w", [seen, unseen], "frontal", 1, 2).watched == {seen}
    clock.now += 60
    assert queue.progress("w", [seen, unseen], "frontal", 1, 2).watched == frozenset()


def test_requests_put_back_cost_no_attempt_unless_they_failed_together(queue: Queue) -> None:
    first, second = submit(queue), submit(queue)
    queue.claim("w", 2)
    queue.put_back("w", [first, second], alone=False)
    assert [job.attempts for job in queue.claim("w", 2)] == [1, 1]
    queue.put_back("w", [first, second], alone=True)
    assert [job.id for job in queue.claim("w", 2)] == [first]


def test_an_owner_must_exist(queue: Queue) -> None:
    with pytest.raises(IntegrityError):
        submit(queue, owner=7)
