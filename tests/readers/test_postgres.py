"""A study whose database is PostgreSQL: a server of the test's own, where its programs are installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tests.conftest import Ran
from tests.postgres import postgres_server
from tests.readers.conftest import a_plan
from tests.readers.simulated import answer_all, synthetic_worse
from xgem.readers.report import report_of
from xgem.readers.server import reader_app
from xgem.readers.study import build, new_links, open_study
from xgem.readers.tables import AnswerRow
from xgem.types import InputError


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def test_whole_study_in_postgres(
    postgres: str, plan_file: Callable[..., Path], tmp_path: Path, xgem: Callable[..., Ran]
) -> None:
    for name in ("first", "second"):  # one database holds several studies
        build(a_plan(plan_file, name=name, turing=True), tmp_path / name, postgres)
    assert not (tmp_path / "first" / "study.db").exists()
    with pytest.raises(InputError, match="--database"):
        open_study(tmp_path / "first")
    study = open_study(tmp_path / "first", postgres)
    client = TestClient(reader_app(study), follow_redirects=False)
    assert client.get(f"/r/{new_links(study)['anna']}").status_code == 200
    found = re.search(r'action="(/items/[0-9a-f]{32})"', client.get("/").text)
    assert found is not None
    assert client.get(found[1]).status_code == 200
    with ThreadPoolExecutor(16) as pool:
        data = {"score": "4", "guess": "real"}
        assert {one.status_code for one in pool.map(lambda _: client.post(found[1], data=data), range(200))} == {303}
    with Session(study.engine) as session:
        assert session.scalar(select(func.count()).select_from(AnswerRow)) == 1
        session.delete(session.scalars(select(AnswerRow)).one())
        session.commit()
    answer_all(study, synthetic_worse(1, turing=True))
    report = report_of(study)
    assert report.state == "All 40 answers of 2 readers."
    assert {row["median"] for row in report.table("times")} == {10.0}
    study.engine.dispose()
    done = xgem("readers", "report", tmp_path / "second", "--database", postgres, "--out", tmp_path / "report")
    assert "Unfinished: 40 of 40" in done.out


def test_database_that_is_not_there(plan_file: Callable[..., Path], tmp_path: Path, xgem: Callable[..., Ran]) -> None:
    plan = plan_file(protocol="xgem", items=2)
    for url in ("postgresql://nobody:secret@127.0.0.1:1/none", "nonsense"):
        done = xgem("readers", "new", plan, "--out", tmp_path / "study", "--database", url)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert "secret" not in done.err
        assert not (tmp_path / "study").exists()
